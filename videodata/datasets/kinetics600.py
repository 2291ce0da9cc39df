"""Kinetics-600: Carreira et al., 2018, arXiv:1808.01340. Clips of 10 s, from a mirror's archives or YouTube."""

from __future__ import annotations

import argparse
import csv
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from videodata.datasets.dataset import Archive, DataSet, Place, RemoteFile, Selection, Shard, report_left_out
from videodata.datasets.youtube import Clip, YouTube, parse_file_name, read_clips
from videodata.errors import UserError, VideoError, one_line
from videodata.files import atomic_path, files_in_folder, portable_name
from videodata.frame_folder import write_trees
from videodata.lists import read_lines
from videodata.video import iter_frames
from videodata.video_folder import InputVideo, find_videos, unique_names, without_suffix

logger = logging.getLogger(__name__)

LISTS = RemoteFile("https://storage.googleapis.com/deepmind-media/Datasets/kinetics600.tar.gz")
MIRROR = "https://s3.amazonaws.com/kinetics/600/{split}/k600_{split}_path.txt"  # a frozen copy, one archive per class
YOUTUBE_HINT = "--source youtube takes the clips from YouTube"
SOURCES = ("mirror", "youtube")


class Kinetics600(DataSet):
    """Three parts. Every copy lacks clips that are gone from YouTube: what is missing is counted and named."""

    name, help = "kinetics600", "Kinetics-600: about 450,000 clips of 10 s"
    flags = {"--source": {"choices": SOURCES, "default": "mirror", "help": "mirror: a frozen copy, one archive per "
             "class; youtube: needs yt-dlp, see scripts/download_kinetics.py for its settings"}}  # fmt: skip
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
        files = self._files(place, split, shard)
        clips = [listed.get(parse_file_name(video.path.stem) or ("", 0)) for _, video in files]
        labels = [
            clip.label if clip and clip.label else folder if folder in known else None
            for (folder, _), clip in zip(files, clips, strict=True)
        ]
        places = [f"{label or folder}/{video.path.name}" for (folder, video), label in zip(files, labels, strict=True)]
        names = unique_names(list(map(without_suffix, places)), places)
        return [
            replace(video, id=name, label=label, group=video.path.stem[:11], split=split, source=video.path.name)
            for (_, video), label, name in zip(files, labels, names, strict=True)
        ]

    def clips(self, place: Place, split: str | None) -> list[Clip]:
        """The published list of a part."""
        root = place.root / "kinetics600" / "lists"
        if (root, split) not in self._clips:
            lists = files_in_folder(root, {".csv"}) if root.is_dir() else []
            named = [path for path in lists if re.search(f"(^|[_-]){split}", path.stem.lower())]
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
        urls = read_lines(path)
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

    def _files(self, place: Place, split: str | None, shard: Shard) -> list[tuple[str, InputVideo]]:
        """(name of its folder, video) of every video of this share."""
        root = self._folder(place, split)
        if self.source == "youtube":
            own = {clip.key for clip in shard.of(self.clips(place, split))}
            videos = [(video.path.parent.name, video) for video in find_videos(root)]
            return [(folder, video) for folder, video in videos if parse_file_name(video.path.stem) in own]
        folders = [place.root / self._unpacked(split, file) for file in self._listed(place, split, shard)]
        return [(folder.name, video) for folder in folders for video in find_videos(folder)]

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
    videos = find_videos(video_dir, wanted="videos")
    if labels is not None:
        videos = _of_classes(videos, labels)
    if not videos:
        raise UserError(f"{video_dir}: holds no video" + (f" of the classes in {labels}" if labels else ""))
    places = [one_line(video.path.relative_to(video_dir).as_posix()) for video in videos]
    names = unique_names(list(map(without_suffix, places)), places)
    tasks = [
        (output_dir / portable_name(name), partial(_square_frames, video.path, size))
        for video, name in zip(videos, names, strict=True)
        if video.error is None
    ]
    failures = [VideoError(video.path, video.error) for video in videos if video.error is not None]
    failures += write_trees(tasks, jobs, first=1)
    yield f"{output_dir}: {len(videos) - len(failures)} of {len(videos)} videos"
    yield (
        "to train on them: python scripts/train_lvt.py --config-file configs/lvt/K-DVQVAE.yaml "
        f"""DATASETS.TRAIN "('{output_dir}',)" DATASETS.TEST "('{output_dir}',)\""""
    )
    report_left_out(failures, "videos")


def _of_classes(videos: Sequence[InputVideo], labels: Path) -> list[InputVideo]:
    """Those below the folders that a list names; a warning names the folders that are not there."""
    names = list(dict.fromkeys(read_lines(labels)))
    # What cannot be opened may be the folder of a class itself.
    folders = [{video.path.parent.name, *([video.path.name] if video.error else [])} for video in videos]
    absent = [name for name in names if not any(name in found for found in folders)]
    if absent:
        logger.warning("%s: %d of %d classes have no video, first: %s", labels, len(absent), len(names), absent[0])
    return [video for video, found in zip(videos, folders, strict=True) if found & set(names)]


def _square_frames(path: Path, size: int) -> Iterator[Image.Image]:
    """The centre square of each frame, by Pillow's Lanczos filter. Raises VideoError at the end of a damaged video."""
    for frame in iter_frames(path):
        picture = Image.fromarray(frame)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        yield picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def write_remaining(input_csv: Path, video_dir: Path, output: Path) -> str:
    """List the clips of a list that are not in a folder; says how many."""
    have = {parse_file_name(video.path.stem) for video in find_videos(video_dir) if video.error is None}
    remaining = [clip for clip in read_clips(input_csv) if clip.key not in have]
    with atomic_path(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "youtube_id", "time_start", "time_end"])
        rows.writerows([clip.label or "", clip.youtube_id, clip.start, clip.end] for clip in remaining)
    return f"{output}: {len(remaining)} clips"
