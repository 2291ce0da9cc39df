"""What every data set can tell: its archives and where they are kept, its parts, its videos, how many there should be.

`Place` is the folder where archives arrive and are unpacked, `Shard` a share of the work, `Selection` a choice of
videos, `DataSet` what a new data set derives from.
"""

from __future__ import annotations

import argparse
import logging
import re
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from videodata.archive import ArchiveError, available_tools, extract, no_tool
from videodata.download import download
from videodata.errors import UserError, one_line
from videodata.files import has_suffix, lock_file, readable_size, require_room
from videodata.lists import read_lines
from videodata.prepare import Decoder, decode_files
from videodata.video_folder import InputVideo, without_suffix

logger = logging.getLogger(__name__)
MOST_SHARES = 9999  # the names of parts have four digits


@dataclass(frozen=True)
class RemoteFile:
    """A published file. `size` and `sha256` are checked; `about` is a size that is only good for planning."""

    url: str
    size: int | None = None  # bytes
    sha256: str | None = None
    about: int = 0  # bytes
    hint: str = ""  # another way to the same data

    @property
    def name(self) -> str:
        """File name, without the quoting of the address. Raises UserError for one that is no plain name."""
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise UserError(f"{self.url}: does not end in the name of a file")
        return name

    @property
    def bytes(self) -> int:
        """Size for planning, 0 when nobody says."""
        return self.size or self.about


class Archive(NamedTuple):
    """An archive of a data set, what it is called below the root, and the folder there that it is unpacked to."""

    file: RemoteFile
    folder: str
    name: str


@dataclass(frozen=True)
class Place:
    """Where a data set is kept on this machine, and how files come there.

    url_root: take every file from below this address in place of the published host, path unchanged. share: other
    processes work in the same folder, so wait for what they are fetching. delete_archives: once unpacked.
    """

    root: Path
    url_root: str | None = None
    insecure: bool = False
    share: bool = False
    delete_archives: bool = False
    tries: int = 5
    wait: float = 1.0  # seconds before the second try, doubled each time
    reserve: int = 0  # bytes that what is made of the videos will take on the same disk

    def address(self, url: str) -> str:
        """Where a published file is taken from; what must be quoted in its path is."""
        parts = urllib.parse.urlsplit(url)
        path = urllib.parse.quote(urllib.parse.unquote(parts.path))
        if self.url_root is not None:
            return self.url_root.rstrip("/") + path
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def fetch(self, file: RemoteFile, name: str | None = None, reserve: int = 0) -> Path:
        """Download a file to `root/name`, unless it is there. reserve: bytes that must stay free after it."""
        path = self.root / (name or file.name)
        if path.exists() and file.size is None:
            return path
        with self._turn(path):
            if path.exists() and file.size is None:  # another process was faster
                return path
            return download(
                self.address(file.url), path, size=file.size, sha256=file.sha256, insecure=self.insecure,
                allow_file=True, hint=file.hint, tries=self.tries, wait=self.wait, reserve=reserve,
            )  # fmt: skip

    def unpack(self, archive: Archive) -> Path:
        """Download and extract an archive, unless its folder is there. Raises UserError."""
        target, file = self.root / archive.folder, archive.file
        if target.is_dir():  # perhaps on a disk that only can be read
            logger.info("%s exists: download and extraction are skipped", target)
            return target
        with self._turn(target):
            if target.is_dir():  # another process was faster
                return target
            self._require_tool(archive)
            path = self.fetch(file, archive.name, reserve=file.bytes)  # videos hardly shrink: as much when unpacked
            try:
                extract(path, target, hint=file.hint)
            except ArchiveError as error:
                again = "if it came damaged, delete it and run the same command again"
                raise UserError(f"{error}; {again}") from error
            if self.delete_archives:
                path.unlink(missing_ok=True)
            return target

    def _require_tool(self, archive: Archive) -> None:
        """Raise UserError when a rar would be downloaded that nothing here can extract."""
        path = self.root / archive.name
        is_rar = has_suffix(archive.file.name, {".rar"})
        if is_rar and not path.exists() and not available_tools():
            raise no_tool(path, archive.file.hint)

    def _turn(self, path: Path) -> AbstractContextManager[None]:
        """One process at a time fetches a file or folder; the others wait where they share the place."""
        return lock_file(path.with_name(path.name + ".fetch"), "fetching", wait=self.share)

    def plan(self, archive: Archive) -> list[str]:
        """What `unpack` would do, one line per step."""
        target, path, file = self.root / archive.folder, self.root / archive.name, archive.file
        if target.is_dir():
            return [f"{target} exists: download and extraction are skipped"]
        size = f" ({file.bytes / 1e9:.2f} GB)" if file.bytes else ""
        first = f"{path} exists: download is skipped" if path.exists() else f"download {self.address(file.url)}{size}"
        return [first, f"extract {path} to {target}"]

    def check_room(self, archives: Sequence[Archive]) -> None:
        """Raise UserError when archives, what they hold and the output do not fit on the disk together."""
        missing = [a.file.bytes for a in archives if a.file.bytes and not (self.root / a.folder).is_dir()]
        if not missing:
            return
        packed = max(missing) if self.delete_archives else sum(missing)
        have = sum(path.stat().st_size for path in self.root.glob("*.part")) if self.root.is_dir() else 0
        sizes = map(readable_size, (packed, sum(missing), self.reserve))
        require_room(
            self.root, packed + sum(missing) + self.reserve - have, UserError,
            "needs {} for archives, {} unpacked and about {} for the result".format(*sizes),
            ": name another disk with --root, or take fewer videos (--max_videos, --classes, --split)",
        )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count` of the work, numbered from 1. Shares are contiguous, so that parts keep the order."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8". Raises UserError."""
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) <= MOST_SHARES):
            raise UserError(f"--shard {text}: expected i/n with 1 <= i <= n, such as 1/8")
        return cls(int(number), int(count))

    def of(self, items: Sequence) -> list:
        begin, end = (len(items) * k // self.count for k in (self.number - 1, self.number))
        return list(items[begin:end])

    @property
    def suffix(self) -> str:
        return "" if self.count == 1 else f"-{self.number:04d}-of-{self.count:04d}"


@dataclass(frozen=True)
class Selection:
    """Which of the videos are taken; an empty one leaves nothing out."""

    classes: tuple[str, ...] = ()
    split_file: str | None = None  # a list such as trainlist01.txt: only its videos
    max_videos: int = 0  # of each part; 0: all

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Selection:
        classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
        return cls(classes, args.split_file, args.max_videos)

    def of(self, videos: Sequence[InputVideo]) -> list[InputVideo]:
        """Those of the classes and of the list, without regard to case, and the first of them."""
        if self.classes:
            wanted = {name.lower() for name in self.classes}
            videos = [
                video
                for video in videos
                # What cannot be opened may be the folder of a class itself.
                if (video.label or "").lower() in wanted or (video.error and video.path.name.lower() in wanted)
            ]
        if self.split_file:
            listed = set().union(*find_listed(read_split_file(self.split_file), videos).values())
            videos = [video for number, video in enumerate(videos) if number in listed]
        return list(videos[: self.max_videos] if self.max_videos else videos)

    def absent(self, videos: Sequence[InputVideo]) -> str | None:
        """Which videos of its list are not among all that there are, in one line; None for none.

        Only where the list alone chooses: what other flags leave out is no loss.
        """
        if not self.split_file or self.classes or self.max_videos:
            return None
        found = find_listed(read_split_file(self.split_file), videos)
        absent = [entry for entry, numbers in found.items() if not numbers]
        said = f"{self.split_file}: {len(absent)} of {len(found)} listed videos are not in the folder"
        return f"{said}: first {absent[0]}" if absent else None

    def refusal(self, where: object) -> UserError:
        """What to say when it leaves nothing."""
        what = self.split_file or (f"the classes {', '.join(self.classes)}" if self.classes else "the selection")
        return UserError(f"{where}: none of its videos is in {what}")


EVERYTHING = Selection()
_NUMBER = re.compile(r"[\s,;]+-?\d+$")  # of the class, at the end of a line


def report_left_out(failures: Sequence[object], what: str) -> None:
    """One line on stderr for each, and one error for all: what could be done is done. Raises UserError for any."""
    for error in failures:
        logger.warning("left out: %s", error)
    if failures:
        raise UserError(f"{len(failures)} {what} were left out, the first: {failures[0]}; the others are written")


class DataSet(ABC):
    """A data set with its options, and its command below scripts/prepare_data.py.

    A new one is a class in a new file of this folder: `name` and `help` make its command, `defaults` replace those of
    the shared flags, `flags` are its own (as argparse takes them), `from_args` reads them.
    """

    name: str
    help = ""  # one without help has no command
    flags: dict[str, dict[str, Any]] = {}
    defaults: dict[str, Any] = {}  # what papers use, where they agree: size, rule, frames per sequence of an array
    downloads = True
    splits: tuple[str | None, ...] = (None,)  # its own parts; (None,): it is not divided
    counts: dict = {}  # published videos of each part
    exact = True  # whether a complete copy has exactly the published number of videos
    licence = ""
    mean_frames = 0.0  # of a video, for planning
    one_length = False  # whether all videos have that many
    shares_archives = False  # whether a share of the work is a share of the archives

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> DataSet:
        return cls()

    def archives(self, place: Place, split: str | None) -> list[Archive]:
        """What must be downloaded and unpacked for a part."""
        return []

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        """Download and unpack what is missing of a part."""
        for archive in self.archives(place, split):
            place.unpack(archive)

    def plan(self, place: Place, split: str | None) -> list[str]:
        """What `obtain` would do, one line per step."""
        return [line for archive in self.archives(place, split) for line in place.plan(archive)]

    def is_there(self, place: Place, split: str | None) -> bool:
        """Whether the videos can be listed without fetching anything."""
        archives = self.archives(place, split)
        return bool(archives) and all((place.root / archive.folder).is_dir() for archive in archives)

    @abstractmethod
    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        """All videos of a part (of this share, where `shares_archives`), in order. Raises UserError."""

    def published(self, split: str | None) -> int | None:
        """How many videos the part has; None where nobody says."""
        return self.counts.get(split)

    def planned(self, split: str | None) -> float:
        """About how many videos the part has, known before anything is there."""
        return self.published(split) or 0

    def missing(self, place: Place, split: str | None, videos: Sequence[InputVideo]) -> list[str]:
        """Names of published videos that are not there, where the data set has a list."""
        return []

    def decoder(self, place: Place, split: str | None) -> Decoder:
        """Where the frames come from."""
        return decode_files

    def describe(self, videos: Sequence[InputVideo]) -> dict:
        """What the side-car says about the data set."""
        classes = sorted({video.label for video in videos if video.label is not None})
        return {"dataset": self.name, "licence": self.licence, "classes": classes}

    def check_extras(self, path: Path) -> None:
        """Raise UserError where `write_extras` would write over a file of the user."""
        return

    def write_extras(self, place: Place, split: str | None, ids: Sequence[str], path: Path) -> list[str]:
        """Write what belongs to the videos besides pictures, beside the output; a line for each file."""
        return []


def read_split_file(path: str | Path) -> list[str]:
    """Lower-case names, as written, of a list such as trainlist01.txt: `Class/v_Class_g08_c01.avi 1` per line.

    The number may be missing, and names may hold spaces. Raises UserError.
    """
    names = [_NUMBER.sub("", line).replace("\\", "/") for line in read_lines(path)]
    if not names:
        raise UserError(f"{path}: the list is empty")
    return list(dict.fromkeys(name.lower() for name in names))


def find_listed(entries: Sequence[str], videos: Sequence[InputVideo]) -> dict[str, list[int]]:
    """Numbers of the videos that each entry of a list names.

    `class/name` is a video of that class, or one of that name that has no class; `name` is any of that name. Another
    suffix will do where that of the list is not there.
    """
    by_name: dict[str, list[int]] = {}
    for number, video in enumerate(videos):
        names = {video.id.lower(), one_line(video.path.as_posix()).lower()}
        names |= set(map(without_suffix, names))
        ends = {name.split("/", k)[k] for name in names for k in range(name.count("/") + 1)}
        for end in ends:
            by_name.setdefault(end, []).append(number)
    found = {}
    for entry in entries:
        stem = without_suffix(entry)
        plain = [number for number in by_name.get(PurePath(stem).name, []) if videos[number].label is None]
        found[entry] = by_name.get(entry) or by_name.get(stem) or plain
    return found
