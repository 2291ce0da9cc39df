"""What every data set can tell: its files, its parts, its videos, and how many there should be."""

from __future__ import annotations

import logging
import shutil
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from videodata.archive import ArchiveError, extract
from videodata.download import download
from videodata.errors import UserError
from videodata.files import lock_file
from videodata.prepare import Decoder, decode_files
from videodata.video_folder import InputVideo

logger = logging.getLogger(__name__)


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

    def unpack(self, file: RemoteFile, folder: str, name: str | None = None) -> Path:
        """Download and extract an archive to `root/folder`, unless that is there. Raises UserError."""
        target = self.root / folder
        if target.is_dir():  # perhaps on a disk that only can be read
            logger.info("%s exists: download and extraction are skipped", target)
            return target
        with self._turn(target):
            if target.is_dir():  # another process was faster
                return target
            archive = self.fetch(file, name, reserve=file.bytes)  # videos hardly shrink: as much again when unpacked
            try:
                extract(archive, target, hint=file.hint)
            except ArchiveError as error:
                again = "if it came damaged, delete it and run the same command again"
                raise UserError(f"{error}; {again}") from error
            if self.delete_archives:
                archive.unlink(missing_ok=True)
            return target

    def _turn(self, path: Path) -> AbstractContextManager[None]:
        """One process at a time fetches a file or folder; the others wait where they share the place."""
        return lock_file(path.with_name(path.name + ".fetch"), "fetching", wait=self.share)

    def plan(self, file: RemoteFile, folder: str, name: str | None = None) -> str:
        """What `unpack` would do."""
        if (self.root / folder).is_dir():
            return f"{self.root / folder} exists: download and extraction are skipped"
        archive = self.root / (name or file.name)
        size = f" ({file.bytes / 1e9:.2f} GB)" if file.bytes else ""
        first = f"{archive} exists" if archive.exists() else f"download {self.address(file.url)}{size}"
        return f"{first}, extract to {self.root / folder}"

    def check_room(self, files: list[tuple[RemoteFile, str]], output_bytes: int) -> None:
        """Raise UserError when archives, what they hold and the output do not fit on the disk together."""
        missing = [file.bytes for file, folder in files if file.bytes and not (self.root / folder).is_dir()]
        if not missing:
            return
        archives = max(missing) if self.delete_archives else sum(missing)
        have = sum(path.stat().st_size for path in self.root.glob("*.part")) if self.root.is_dir() else 0
        existing = next(folder for folder in (self.root.absolute(), *self.root.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if archives + sum(missing) + output_bytes - have > free:
            raise UserError(
                f"{existing}: needs {archives / 1e9:.1f} GB for archives, {sum(missing) / 1e9:.1f} GB unpacked and "
                f"about {output_bytes / 1e9:.1f} GB for the result, but {free / 1e9:.1f} GB are free: name "
                "another disk with --root, or take fewer videos (--max_videos, --classes, --split)"
            )


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count` of the work, numbered from 1. Shares are contiguous, so that parts keep the order."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8". Raises UserError."""
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) <= 9999):
            raise UserError(f"--shard {text}: expected i/n with 1 <= i <= n, such as 1/8")
        return cls(int(number), int(count))

    def of(self, items: Sequence) -> list:
        """This share of a list."""
        begin, end = (len(items) * k // self.count for k in (self.number - 1, self.number))
        return list(items[begin:end])

    @property
    def suffix(self) -> str:
        """What is added to the name of the output."""
        return "" if self.count == 1 else f"-{self.number:04d}-of-{self.count:04d}"


class DataSet(ABC):
    """A data set with its options. `splits` are its own parts, (None,) for one that is not divided."""

    name: str
    splits: tuple[str | None, ...] = (None,)
    exact = True  # whether a complete copy has exactly the published number of videos
    licence = ""
    mean_frames = 0.0  # of a video, for planning
    one_length = False  # whether all videos have that many

    def files(self, split: str | None) -> list[tuple[RemoteFile, str]]:
        """The archives of a part, and the folders that they are unpacked to."""
        return []

    def obtain(self, place: Place, split: str | None, shard: Shard) -> None:
        """Download and unpack what is missing of a part."""
        for file, folder in self.files(split):
            place.unpack(file, folder)

    def plan(self, place: Place, split: str | None) -> list[str]:
        """What `obtain` would do, one line per step."""
        return [place.plan(file, folder) for file, folder in self.files(split)]

    @abstractmethod
    def videos(self, place: Place, split: str | None, shard: Shard) -> list[InputVideo]:
        """All videos of a part (of this share, where `shares_archives`), in order. Raises UserError."""

    shares_archives = False  # whether a share of the work is a share of the archives

    def published(self, split: str | None) -> int | None:
        """How many videos the part has; None where nobody says."""
        return None

    def planned(self, split: str | None) -> int:
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

    def write_extras(self, place: Place, split: str | None, ids: Sequence[str], path: Path) -> list[str]:
        """Write what belongs to the videos besides pictures, beside the output; a line for each file."""
        return []
