"""Kinetics-600: Carreira et al., 2018, arXiv:1808.01340. Clips of 10 s, from a mirror's archives or YouTube."""

from __future__ import annotations

import argparse
import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from videodata.datasets.dataset import Archive, DataSet, Place, RemoteFile, Selection, Shard, report_left_out
from videodata.datasets.youtube import Clip, YouTube, parse_file_name, read_clips
from videodata.errors import UserError
from videodata.files import atomic_path, files_in_folder
from videodata.frame_folder import write_trees
from videodata.video import VIDEO_SUFFIXES, iter_frames
from videodata.video_folder import InputVideo

logger = logging.getLogger(__name__)

LISTS = RemoteFile("https://storage.googleapis.com/deepmind-media/Datasets/kinetics600.tar.gz")
MIRROR = "https://s3.amazonaws.com/kinetics/600/{split}/k600_{split}_path.txt"  # a frozen copy, one archive per class
YOUTUBE_HINT = "--source youtube takes the clips from YouTube"
SOURCES = ("mirror", "youtube")


class Kinetics600(DataSet):
    """Three parts. Every copy lacks clips that are gone from YouTube: what is missing is counted and named."""

    name, help = "kinetics600", "Kinetics-600: about 450,000 clips of 10 s"
    defaults = {"width": 64, "height": 64, "num_frames": 16, "resize": "crop", "clips_per_video": 1}
    splits, exact = ("train", "val", "test"), False
    licence = "annotations CC BY 4.0; the films belong to YouTube users"
    mean_frames = 270.0
    shares_archives = True
    about = {"train": 383_393, "val": 30_000, "test": 72_924}  # clips of a good copy

    def __init__(
        self,
        source: str = "mirror",
        youtube: YouTube | None = None,
        keep_going: bool = False,
        classes: Sequence[str] = (),
    ) -> None:
        """keep_going: do without archives that cannot be had. classes: fetch these alone; (): all."""
        self.source, self.youtube, self.keep_going = source, youtube or YouTube(trim=True), keep_going
        self._wanted = {name.lower() for name in classes}
        self._clips: dict[tuple[Path, str], list[Clip]] = {}

    @classmethod
    def add_flags(cls, add: Callable[..., Any]) -> None:
        add("--source", choices=SOURCES, default="mirror", help="mirror: a frozen copy, one archive per class; "
            "youtube: needs yt-dlp, see scripts/download_kinetics.py for its settings")  # fmt: skip

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Kinetics600:
        return cls(args.source, keep_going=args.keep_going, classes=Selection.from_args(args).classes)

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        place.unpack(Archive(LISTS, "kinetics600/lists", f"kinetics600/{LISTS.name}"))
        if self.source == "youtube":
            clips = [clip for clip in shard.of(self.clips(place, split)) if self._is_wanted(clip.label)]
            self.youtube.download(clips, self._folder(place, split), shard.suffix)
            return
        failures = []
        files = self._listed(place, split, shard)
        for file in files:
            try:
                place.unpack(Archive(file, self._unpacked(split, file), f"kinetics600/archives/{split}/{file.name}"))
            except UserError as error:
                logger.warning("%s", error)
                failures.append(error)
        if failures and not self.keep_going:
            raise UserError(
                f"{len(failures)} of {len(files)} archives could not be had, the first: {failures[0]}; run the same "
                "command again, or --keep_going to do without them"
            )

    def plan(self, place: Place, split: str | None) -> list[str]:
        if self.source == "youtube":
            return [f"download the clips of {split} from YouTube to {self._folder(place, split)}"]
        return [f"download the archives that {place.address(MIRROR.format(split=split))} lists, to {place.root}"]

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        listed = {clip.key: clip for clip in self.clips(place, split)}
        known = {clip.label for clip in listed.values()} | {
            clip.label for clip in self.clips(place, "train") if split != "train"
        }
        videos = []
        for folder, path in self._files(place, split, shard):
            clip = listed.get(parse_file_name(path.stem) or ("", 0))
            label = clip.label if clip and clip.label else folder if folder in known else None
            videos.append(
                InputVideo(
                    path, f"{label or folder}/{path.stem}", label, path.stem[:11], split=split, source=path.name
                )
            )  # fmt: skip
        return videos

    def clips(self, place: Place, split: str | None) -> list[Clip]:
        """The published list of a part."""
        root = place.root / "kinetics600" / "lists"
        if (root, split) not in self._clips:
            named = [path for path in root.rglob("*.csv") if re.search(f"(^|[_-]){split}", path.stem.lower())]
            found = sorted(named, key=lambda path: (len(path.stem), path))  # test.csv before holdout_test.csv
            if not found:
                raise UserError(f"{root}: has no list {split}*.csv; delete this folder and run the same command again")
            self._clips[root, split] = read_clips(found[0])
        return self._clips[root, split]

    def published(self, split: str | None) -> int | None:
        return next((len(clips) for (_, known), clips in self._clips.items() if known == split), None)

    def planned(self, split: str | None) -> int:
        return self.about[split]

    def missing(self, place: Place, split: str | None, videos: Sequence[InputVideo]) -> list[str]:
        have = {parse_file_name(video.path.stem) for video in videos}
        return [clip.stem for clip in self.clips(place, split) if clip.key not in have]

    def _listed(self, place: Place, split: str | None, shard: Shard) -> list[RemoteFile]:
        listing = RemoteFile(MIRROR.format(split=split), hint=YOUTUBE_HINT)
        path = place.fetch(listing, f"kinetics600/{listing.name}")
        urls = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(url.startswith(("http://", "https://")) for url in urls) or not urls:
            raise UserError(f"{path}: is no list of addresses; delete it and run the same command again")
        files = [RemoteFile(url, hint=YOUTUBE_HINT) for url in urls]
        known = {clip.label for clip in self.clips(place, "train")}
        # The archives of a part without labels are not named after classes: all of them are needed.
        return shard.of([file for file in files if _stem(file) not in known or self._is_wanted(_stem(file))])

    def _is_wanted(self, label: str | None) -> bool:
        return not self._wanted or (label or "").lower() in self._wanted

    def _unpacked(self, split: str | None, file: RemoteFile) -> str:
        return f"kinetics600/videos/{split}/{_stem(file)}"

    def _files(self, place: Place, split: str | None, shard: Shard) -> list[tuple[str, Path]]:
        """(folder, file) of every video of this share."""
        root = self._folder(place, split)
        if self.source == "youtube":
            own = {clip.key for clip in shard.of(self.clips(place, split))}
            files = files_in_folder(root, VIDEO_SUFFIXES)
            return [(path.parent.name, path) for path in files if parse_file_name(path.stem) in own]
        folders = [place.root / self._unpacked(split, file) for file in self._listed(place, split, shard)]
        return [(folder.name, path) for folder in folders for path in files_in_folder(folder, VIDEO_SUFFIXES)]

    def _folder(self, place: Place, split: str | None) -> Path:
        return place.root / "kinetics600" / "videos" / split


def _stem(file: RemoteFile) -> str:
    """Name of an archive, which is that of its class."""
    return file.name.removesuffix(".tar.gz").removesuffix(".tar")


def convert_to_frames(
    video_dir: Path, output_dir: Path, labels: Path | None = None, size: int = 64, jobs: int = 1
) -> Iterator[str]:
    """Write each video of `<video_dir>/<class>/` as `<output_dir>/<class>/<name>/<j>.png`, j from 1; those there stay.

    labels: a file with the names of the classes to keep, one a line. Yields what was done. Raises UserError.
    """
    if not video_dir.is_dir():
        made_by = "scripts/download_kinetics.py or prepare_data.py kinetics600 makes it"
        raise UserError(f"{video_dir}: no such folder; {made_by}")
    videos = files_in_folder(video_dir, VIDEO_SUFFIXES, wanted="videos")
    if labels is not None:
        names = {line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()}
        videos = [video for video in videos if video.parent.name in names]
    if not videos:
        raise UserError(f"{video_dir}: holds no video" + (f" of the classes in {labels}" if labels else ""))
    folders = [output_dir / path.parent.relative_to(video_dir) / path.stem for path in videos]
    tasks = [(folder, partial(_square_frames, path, size)) for folder, path in zip(folders, videos, strict=True)]
    failures = write_trees(tasks, jobs, first=1)
    yield f"{output_dir}: {len(videos) - len(failures)} of {len(videos)} videos"
    report_left_out(failures, "videos")


def _square_frames(path: Path, size: int) -> Iterator[Image.Image]:
    """The centre square of each frame, by Pillow's Lanczos filter. Raises VideoError at the end of a damaged video."""
    for frame in iter_frames(path):
        picture = Image.fromarray(frame)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        yield picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def write_remaining(input_csv: Path, video_dir: Path, output: Path) -> str:
    """List the clips of a list that are not in a folder; says how many."""
    have = {parse_file_name(path.stem) for path in files_in_folder(video_dir, VIDEO_SUFFIXES)}
    remaining = [clip for clip in read_clips(input_csv) if clip.key not in have]
    with atomic_path(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "youtube_id", "time_start", "time_end"])
        rows.writerows([clip.label or "", clip.youtube_id, clip.start, clip.end] for clip in remaining)
    return f"{output}: {len(remaining)} clips"
