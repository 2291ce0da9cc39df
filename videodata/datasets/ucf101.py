"""UCF101: in its three official divisions, or whole; what is known about its files is in videodata/ucf101.py."""

from __future__ import annotations

import argparse
import logging
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from videodata import ucf101
from videodata.archive import extract
from videodata.datasets.dataset import EVERYTHING, Archive, DataSet, Place, RemoteFile, Selection, Shard
from videodata.errors import UserError
from videodata.files import is_hidden, natural_key
from videodata.remote_zip import NoRanges, fetch_members
from videodata.video import VIDEO_SUFFIXES
from videodata.video_folder import InputVideo, describe_videos, list_videos

logger = logging.getLogger(__name__)

# The three official divisions go by the number of the group: these are the test groups, all others are for training.
TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
COUNTS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}  # train, test


class Ucf101(DataSet):
    """Train and test of one of the three official divisions (fold 1 to 3).

    Of a zip on a server, a selection is fetched alone, by byte ranges, to `<folder>.some`: the folder's own name stands
    for all videos.
    """

    name, help, splits = "ucf101", "UCF101: 13,320 clips of 101 classes", ("train", "test")
    defaults = {"width": 320, "height": 240, "num_frames": 50}
    licence = "research use; the clips come from YouTube"
    mean_frames = ucf101.FRAMES / ucf101.VIDEOS

    def __init__(self, fold: int = 1, source: str = "mirror", selection: Selection = EVERYTHING) -> None:
        if fold not in TEST_GROUPS:
            raise UserError(f"--fold must be 1, 2 or 3, found {fold}")
        card = ucf101.SOURCES[source]
        hint = ucf101.MIRROR_HINT if source == "official" else ""
        file = RemoteFile(card.url, card.size, card.sha256, hint=hint)
        self._set_up(Archive(file, "UCF101", card.file_name), selection)
        self.fold = fold
        self.counts: dict[str | None, int] = dict(zip(self.splits, COUNTS[fold], strict=True))

    def _set_up(self, archive: Archive, selection: Selection) -> None:
        self.archive = archive
        self.selection = replace(selection, classes=tuple(ucf101.check_classes(selection.classes)))
        self._some: dict[str | None, list[InputVideo]] = {}  # by part: what was fetched one by one

    @classmethod
    def add_flags(cls, add: Callable[..., Any]) -> None:
        add("--fold", type=int, choices=COUNTS, default=1, help="which of the official divisions")
        add("--source", choices=sorted(ucf101.SOURCES), default="mirror",
            help="mirror: a zip with a known SHA-256; official: a rar")  # fmt: skip

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Ucf101:
        return cls(args.fold, args.source, Selection.from_args(args))

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        return [] if self._comes_in_parts(place) else [self.archive]

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        if self._comes_in_parts(place):
            try:
                self._fetch_some(place, split)
                return
            except NoRanges as error:
                logger.warning("%s: the whole archive is downloaded", error)
        place.unpack(self.archive)

    def plan(self, place: Place, split: str | None) -> list[str]:
        if self._comes_in_parts(place):
            url = place.address(self.archive.file.url)
            return [f"download the chosen videos alone from {url} to {self._some_folder(place)}"]
        return place.plan(self.archive)

    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        if split in self._some:
            return self._some[split]
        return self._of_part(list_videos(place.root / self.archive.folder), split)

    def part(self, group: str) -> str:
        """ "train" or "test" for a group such as v_Archery_g08."""
        number = group.rpartition("_g")[2]
        return "test" if number.isdigit() and int(number) in TEST_GROUPS[self.fold] else "train"

    def published(self, split: str | None) -> int | None:
        return None if split in self._some else self.counts[split]

    def planned(self, split: str | None) -> float:
        return self.counts[split] * (len(self.selection.classes) or len(ucf101.CLASSES)) / len(ucf101.CLASSES)

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        return {**super().describe(videos), "fold": self.fold}

    def _of_part(self, videos: Sequence[InputVideo], split: str | None) -> list[InputVideo]:
        return [
            replace(video, split=split, source=video.path.name) for video in videos if self.part(video.group) == split
        ]

    def _comes_in_parts(self, place: Place) -> bool:
        """Whether the chosen videos can be fetched one by one: from a zip on a web server, while nothing is here."""
        url = urllib.parse.urlsplit(place.address(self.archive.file.url))
        is_zip = url.scheme in ("http", "https") and url.path.endswith(".zip")
        is_here = any((place.root / name).exists() for name in (self.archive.folder, self.archive.name))
        return is_zip and self.selection.is_partial and not is_here and not place.share

    def _some_folder(self, place: Place) -> Path:
        folder = place.root / self.archive.folder
        return folder.with_name(folder.name + ".some")

    def _fetch_some(self, place: Place, split: str | None) -> None:
        """Raises UserError, and NoRanges for a server that sends whole files only."""
        folder, file = self._some_folder(place), self.archive.file
        logger.info("%s", *self.plan(place, split))
        chosen: list[InputVideo] = []

        def choose(names: Sequence[str]) -> list[str]:
            videos = [folder / name for name in sorted(names, key=natural_key) if is_video(name)]
            chosen.extend(self.selection.of(self._of_part(describe_videos(folder, videos), split)))
            if not chosen:
                raise self.selection.refusal(file.url)
            return [video.path.relative_to(folder).as_posix() for video in chosen]

        fetch_members(
            place.address(file.url), folder, choose, size=file.size, insecure=place.insecure, reserve=place.reserve
        )
        self._some[split] = chosen


class WholeUcf101(Ucf101):
    """What prepare_ucf101.py makes: not divided, from any address. An archive that is there is used as it is."""

    help, splits = "", (None,)

    def __init__(self, source: str, url: str, archive: str, folder: str, selection: Selection = EVERYTHING) -> None:
        """The mirror takes the place of the official address and file name where these were left at their defaults."""
        official, chosen = ucf101.SOURCES["official"], ucf101.SOURCES[source]
        url = chosen.url if url == official.url else url
        name = chosen.file_name if archive == official.file_name else archive
        card = next((known for known in ucf101.SOURCES.values() if known.url == url), None)
        hint = ucf101.MIRROR_HINT if card is official else ""
        file = RemoteFile(url, card and card.size, card and card.sha256, hint=hint)
        self._set_up(Archive(file, folder, name), selection)
        self.counts = {None: ucf101.VIDEOS}

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        return [] if (place.root / self.archive.name).exists() else super().archives(place, split)

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        path, folder = place.root / self.archive.name, place.root / self.archive.folder
        if folder.exists() or not path.exists():
            super().obtain(place, split, shard)
            return
        for line in self.plan(place, split):
            logger.info("%s", line)
        found, published = path.stat().st_size, self.archive.file.size
        if published not in (None, found):
            logger.warning(
                "%s has %d bytes, the published file %d: it is used as it is; "
                "if its download was broken off, delete it",
                path, found, published,
            )  # fmt: skip
        extract(path, folder, hint=ucf101.MIRROR_HINT)

    def is_there(self, place: Place, split: str | None) -> bool:
        return (place.root / self.archive.folder).is_dir()

    def published(self, split: str | None) -> int | None:
        return None  # any part of it may be in the folder

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        return {}

    def _of_part(self, videos: Sequence[InputVideo], split: str | None) -> list[InputVideo]:
        return list(videos)


def is_video(name: str) -> bool:
    """Whether a member of an archive is a video by its name; hidden ones are notes of an operating system."""
    path = PurePath(name)
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(map(is_hidden, path.parts))
