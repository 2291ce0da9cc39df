"""What every data set can tell: its files, its parts, its videos, and how many there should be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videodata.datasets.place import Place, RemoteFile
from videodata.decoders import Decoder, decode_files
from videodata.errors import UserError
from videodata.video_list import InputVideo


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
