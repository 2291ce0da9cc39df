"""What is prepared like a published data set, but was not published: videos, trees of frames, generated videos."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.cli import nonnegative_int, positive_int
from videodata.datasets.dataset import DataSet, Place, Shard, report_left_out
from videodata.digits import SPEED, UNIT, Digits, speed_range
from videodata.errors import UserError, VideoError, one_line
from videodata.files import FOLDER, Unreadable, files_in_folder, has_suffix, scan_files, walk
from videodata.frame_folder import read_image
from videodata.prepare import Decoder, decode_source, source_videos
from videodata.shapes import LENGTH, Shapes
from videodata.source import ClipSource
from videodata.splits import SPLITS
from videodata.video_folder import InputVideo, captioned_videos, list_videos, unique_names, without_suffix


class Folder(DataSet):
    """All videos below a folder, sub-folders are their labels; or those of a csv with captions. described: whether the
    side-car speaks of it.
    """

    name, help, downloads = "folder", "a folder of videos of your own, or a csv list of some", False
    flags = {"video_folder": {"help": "all videos below this folder are taken; or a csv with columns path,text"}}

    def __init__(self, folder: Path, described: bool = True) -> None:
        self.folder, self.described = folder, described

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Folder:
        return cls(Path(args.video_folder))

    def is_there(self, place: Place, split: str | None) -> bool:
        return True

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        return _listed(self.folder) if has_suffix(self.folder.name, {".csv"}) else list_videos(self.folder)

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        return super().describe(videos) if self.described else {}


def _listed(path: Path) -> list[InputVideo]:
    """Videos of a csv, by names that can be those of files below a folder."""
    videos = captioned_videos(path)
    full = [video.id.lstrip("/") for video in videos]
    names = unique_names([without_suffix(name) for name in full], full)
    return [replace(video, id=name) for video, name in zip(videos, names, strict=True)]


class Generated(DataSet):
    """Videos that are drawn; nothing is downloaded. The parts are those that the source declares."""

    flags = {
        "--count": {"type": positive_int, "default": 200, "help": "number of videos"},
        "--frames": {"type": positive_int, "default": LENGTH, "help": "frames per video"},
        "--size": {"type": nonnegative_int, "default": 0, "help": "side of the frames; 0: --width and --height"},
        "--seed": {"type": nonnegative_int, "default": 0, "help": "another seed gives other videos"},
    }
    downloads = False

    def __init__(self, source: ClipSource) -> None:
        self.source = source
        self.mean_frames, self.one_length = source.length(0), True
        self._parts = source.splits() or {None: list(range(len(source)))}
        self.splits = tuple(self._parts)
        self._decoder = decode_source(source)  # one, so that all parts can go into one array

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Generated:
        if args.size:
            args.width = args.height = args.size
        return cls(cls.open(args))

    @classmethod
    @abstractmethod
    def open(cls, args: argparse.Namespace) -> ClipSource:
        """The source that the flags describe."""

    def plan(self, place: Place, split: str | None) -> list[str]:
        return [f"draw {len(self.source)} videos"]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        videos = source_videos(self.source, split)
        return [videos[index] for index in self._parts[split]]

    def published(self, split: str | None) -> int | None:
        return len(self._parts[split])

    def decoder(self, place: Place, split: str | None) -> Decoder:
        return self._decoder


class GeneratedShapes(Generated):
    """Coloured shapes that move and bounce."""

    name, help, licence = "shapes", "generated coloured shapes that move and bounce", "generated, no restrictions"
    defaults = {"width": 64, "height": 64, "num_frames": 16, "format": "videos"}

    @classmethod
    def open(cls, args: argparse.Namespace) -> Shapes:
        return Shapes(args.count, args.frames, (args.height, args.width), args.seed)


class GeneratedDigits(Generated):
    """Handwritten digits that move, bounce and cross; val and test show other handwriting than train."""

    name, help = "digits", "generated handwritten digits that move and bounce"
    flags = {
        **Generated.flags,
        "--digits": {"type": positive_int, "default": 2, "help": "digits in each video, 1 to 3"},
        "--speed": {
            "type": speed_range, "default": "{:g}-{:g}".format(*SPEED), "metavar": "SLOWEST-FASTEST",
            "help": f"pixels of a {UNIT}x{UNIT} frame per frame of the video",
        },
        "--colour": {"action": "store_true", "help": "each digit in a colour of its own"},
    }  # fmt: skip
    licence = "generated; handwriting by Alpaydin and Kaynak (1998), UCI, CC BY 4.0"
    defaults = {"width": UNIT, "height": UNIT, "num_frames": 16}

    @classmethod
    def open(cls, args: argparse.Namespace) -> Digits:
        size = args.height, args.width
        return Digits(args.count, args.frames, size, args.digits, args.speed, args.colour, args.seed)


def frames_to_shards(
    data_dir: Path,
    out_dir: Path,
    size: int = 64,
    extension: str = "png",
    layout: str = "river",
    per_shard: int = 100_000,
) -> Iterator[str]:
    """Write `<data_dir>/{train,val,test}/<video>/<frame>.<extension>` as `<out_dir>/{train,val,test}/shard_*.hdf5`.

    Videos may lie deeper, below folders of their classes. Frames become size x size by Pillow's bicubic filter,
    whatever their aspect. Yields what was done. Raises UserError.
    """
    from videodata.hdf5 import Hdf5Writer  # here: --help answers without its library

    splits = [split for split in SPLITS if (data_dir / split).is_dir()]
    if not splits:
        raise UserError(f"{data_dir}: has none of the folders {', '.join(SPLITS)}")
    suffix, left_out = "." + extension.lower().lstrip("."), []
    for split in splits:
        root = data_dir / split
        videos, broken = _frame_folders(root, suffix)
        left_out += broken
        with Hdf5Writer(out_dir / split, layout, per_shard) as writer:
            for video in tqdm(videos, desc=split, disable=None):
                label = one_line(video.parent.name) if video.parent != root else None
                try:  # all frames before the first is written, so that no half video is stored
                    files = files_in_folder(video, {suffix}, deep=False)
                    frames = [np.asarray(Image.fromarray(read_image(file)).resize((size, size))) for file in files]
                except VideoError as error:
                    left_out.append(error)
                else:
                    writer.add(frames, one_line(video.relative_to(root).as_posix()), label)
        yield f"{out_dir / split}: {writer.written} videos"
    report_left_out(left_out, "videos")


def _frame_folders(root: Path, suffix: str) -> tuple[list[Path], list[VideoError]]:
    """The folders of frames below a folder, and what is wrong with others: a frame or a folder that cannot be opened,
    frames in no folder, folders at the end of the tree without frames.
    """
    unreadable: Unreadable = {}
    found = {Path(folder) for folder, _ in scan_files(root, {suffix}, unreadable=unreadable)}
    broken = [VideoError(path, reason) for path, reason in unreadable.items()]
    damaged = {path.parent for path in unreadable if has_suffix(path.name, {suffix})}
    ends = {Path(folder) for folder, kinds in walk(root, unreadable={}) if FOLDER not in kinds.values()}
    broken += [VideoError(folder, f"holds no {suffix} frames") for folder in sorted(ends - found - damaged - {root})]
    if root in found:
        broken.append(VideoError(root, f"holds {suffix} frames beside the folders of the videos"))
    return sorted(found - damaged - {root}), broken
