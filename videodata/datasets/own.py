"""What is prepared like a published data set, but was not published: videos, trees of frames, the generated shapes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from videodata.datasets.dataset import DataSet, Place, Shard, report_left_out
from videodata.errors import UserError, VideoError
from videodata.files import files_in_folder, is_hidden
from videodata.frame_folder import read_image
from videodata.hdf5 import Hdf5Writer
from videodata.prepare import Decoder, decode_source
from videodata.shapes import LENGTH, Shapes
from videodata.splits import SPLITS
from videodata.video_folder import InputVideo, list_videos


class Folder(DataSet):
    """All videos below a folder; sub-folders are their labels. described: whether the side-car speaks of it."""

    name, help, downloads = "folder", "a folder of videos of your own", False

    def __init__(self, folder: Path, described: bool = True) -> None:
        self.folder, self.described = folder, described

    @classmethod
    def add_flags(cls, add: Callable[..., Any]) -> None:
        add("video_folder", help="all videos below this folder are taken")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Folder:
        return cls(Path(args.video_folder))

    def is_there(self, place: Place, split: str | None) -> bool:
        return True

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        return list_videos(self.folder)

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        return super().describe(videos) if self.described else {}


class GeneratedShapes(DataSet):
    """Coloured shapes that move and bounce; nothing is downloaded."""

    name, help, licence = "shapes", "generated coloured shapes that move and bounce", "generated, no restrictions"
    defaults = {"width": 64, "height": 64, "num_frames": 16, "format": "videos"}
    downloads = False

    def __init__(self, source: Shapes) -> None:
        self.source = source
        self.mean_frames, self.one_length = source.length(0), True

    @classmethod
    def add_flags(cls, add: Callable[..., Any]) -> None:
        add("--count", type=int, default=200, help="number of videos")
        add("--frames", type=int, default=LENGTH, help="frames per video")
        add("--size", type=int, default=0, help="width and height of the frames; 0: --width and --height")
        add("--seed", type=int, default=0, help="another seed gives other videos")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> GeneratedShapes:
        if args.size:
            args.width = args.height = args.size
        return cls(Shapes(args.count, args.frames, (args.height, args.width), args.seed))

    def plan(self, place: Place, split: str | None) -> list[str]:
        return [f"draw {len(self.source)} videos"]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        source = self.source
        return [
            InputVideo(
                Path(source.path), source.id(index), source.label(index), source.group(index),
                stop=source.length(index), stamp=source.stamp(index),
            )
            for index in range(len(source))
        ]  # fmt: skip

    def published(self, split: str | None) -> int | None:
        return len(self.source)

    def decoder(self, place: Place, split: str | None) -> Decoder:
        return decode_source(self.source)


def frames_to_shards(
    data_dir: Path,
    out_dir: Path,
    size: int = 64,
    extension: str = "png",
    layout: str = "river",
    per_shard: int = 100_000,
) -> Iterator[str]:
    """Write `<data_dir>/{train,val,test}/<video>/<frame>.<extension>` as `<out_dir>/{train,val,test}/shard_*.hdf5`.

    Frames become size x size by Pillow's bicubic filter, whatever their aspect. Yields what was done. Raises UserError.
    """
    splits = [split for split in SPLITS if (data_dir / split).is_dir()]
    if not splits:
        raise UserError(f"{data_dir}: has none of the folders {', '.join(SPLITS)}")
    suffix, left_out = "." + extension.lower().lstrip("."), []
    for split in splits:
        videos = sorted(path for path in (data_dir / split).iterdir() if path.is_dir() and not is_hidden(path.name))
        with Hdf5Writer(out_dir / split, layout, per_shard) as writer:
            for video in tqdm(videos, desc=split, disable=None):
                try:  # all frames before the first is written, so that no half video is stored
                    frames = _squeezed_frames(video, suffix, size)
                except VideoError as error:
                    left_out.append(error)
                else:
                    writer.add(frames, video.name)
        yield f"{out_dir / split}: {writer.written} videos"
    report_left_out(left_out, "videos")


def _squeezed_frames(video: Path, suffix: str, size: int) -> list[np.ndarray]:
    files = files_in_folder(video, {suffix}, deep=False)
    if not files:
        raise VideoError(video, f"holds no {suffix} frames")
    return [np.asarray(Image.fromarray(read_image(file)).resize((size, size))) for file in files]
