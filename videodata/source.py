"""What every source of clips offers, whatever it is stored in."""

from __future__ import annotations

import bisect
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.resize import Size, as_size, resize_frames

Videos = Sequence[int] | np.ndarray  # numbers of videos
GENERATED_FPS = Fraction(12)
HDF5_SUFFIXES = (".hdf5", ".h5")
LARGEST_SIDE = 4096  # pixels of a generated video
LONGEST_RATE = 64  # characters
_RATE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(/\d+|[eE][+-]?\d\d?)?")


class ClipSource(ABC):
    """A numbered list of videos that can be read in pieces. Picklable; safe in loader workers however they start."""

    path: str
    interpolation = "area"  # how `read_clip` resizes unless told otherwise
    broken: list[VideoError] = []  # files found while opening that cannot be read; they have no number

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abstractmethod
    def id(self, index: int) -> str:
        """A name that is unique in this source and the same on every machine."""

    @abstractmethod
    def length(self, index: int) -> int:
        """Number of frames."""

    @abstractmethod
    def size(self, index: int) -> Size:
        """(height, width) of the stored frames."""

    @abstractmethod
    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        """Frames start, start + step, ... of video `index`: uint8 (T, H, W, 3) RGB. Raises VideoError."""

    def label(self, index: int) -> str | None:
        """Class name or caption, if the source knows one."""
        return None

    def group(self, index: int) -> str:
        """What must stay on one side of a split (UCF101: all clips cut from one film)."""
        return self.id(index)

    def fps(self, index: int) -> Fraction | None:
        """Frames per second; None where the source does not say."""
        return None

    def stamp(self, index: int) -> str:
        """Changes when the stored video does (size of its file); part of the fingerprint of a data set."""
        return ""

    def splits(self) -> dict[str, list[int]] | None:
        """Indices of the videos by the name of the split, where the source itself divides them."""
        return None

    def place(self, index: int) -> str | None:
        """Path of the file or folder that holds the video, with `#<which>` where it holds several; None for none."""
        return None

    # Of many videos at once: sources that may hold millions answer without a step of Python for each.

    def lengths(self, videos: Videos) -> np.ndarray:
        """Number of frames of each of the videos, integers (N,)."""
        return np.fromiter((self.length(video) for video in each(videos)), np.int64, len(videos))

    def distinct(self, fact: str, videos: Videos) -> tuple[list, np.ndarray]:
        """The values that "label", "size" or "fps" has among the videos, and for each of them which it is, (N,)."""
        ask, found = getattr(self, fact), {}
        numbers = [found.setdefault(ask(video), len(found)) for video in each(videos)]
        return list(found), np.array(numbers, np.int64)

    def group_hashes(self, videos: Videos) -> np.ndarray | None:
        """The first eight bytes of the SHA-256 of each group's name, as uint64 (N,); None: to be made from `group`."""
        return None

    def blocks(self) -> np.ndarray | None:
        """Number of the first video of each stretch that lies together and is best read together; None: all alike."""
        return None

    def digest(self) -> str | None:
        """Changes when anything in the source does; None where that takes a look at each video."""
        return None

    def scales_in_one_pass(self, interpolation: str | None = None, short_side: int | None = None) -> bool:
        """Whether the scaling of `read_clip` is one that the decoder of a film can do itself."""
        return (interpolation or self.interpolation) == "area" and short_side is None

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        resize: str = "crop",
        interpolation: str | None = None,
        short_side: int | None = None,
    ) -> np.ndarray:
        """`read`, then `resize_frames`: uint8 (T, H, W, 3)."""
        frames = self.read(index, start, count, step)
        try:
            return resize_frames(frames, size, resize, interpolation or self.interpolation, short_side)
        except UserError as error:
            raise VideoError(self.id(index), str(error)) from error


class Objects(NamedTuple):
    """What moves in a generated clip. Lengths are in units of the shorter side of the frame."""

    kinds: np.ndarray  # int64 (N,): which digit, or the number of the kind of shape
    colors: np.ndarray  # (N, 3) RGB in [0, 1]
    centres: np.ndarray  # (N, T, 2) (y, x) in each frame, from the top left corner


class GeneratedSource(ClipSource):
    """`count` videos of `frames` frames that follow from (seed, index) alone: no files, any size and length."""

    kind: str  # what is drawn, the part of the path before the colon

    def __init__(self, count: int, frames: int, size: int | Size, seed: int) -> None:
        if count < 1 or frames < 1 or seed < 0:
            raise UserError(f"{self.kind} need count >= 1, frames >= 1, seed >= 0, found {count}, {frames}, {seed}")
        self.path = f"{self.kind}:{count}"
        self._count, self._frames, self._seed, self._size = count, frames, seed, as_size(size)
        if max(self._size) > LARGEST_SIDE:
            raise UserError(f"{self.kind} are drawn up to {LARGEST_SIDE} pixels a side, found {size}")

    @abstractmethod
    def _draw(self, index: int, times: range, size: Size) -> np.ndarray:
        """Frames of video `index` at the times, uint8 (T, H, W, 3)."""

    @abstractmethod
    def objects(self, index: int, times: Sequence[int], size: Size | None = None) -> Objects:
        """What moves in video `index`, and where it is at the times, in frames of that size (default: the stored)."""

    def __len__(self) -> int:
        return self._count

    def fps(self, index: int) -> Fraction:
        return GENERATED_FPS

    def length(self, index: int) -> int:
        return self._frames

    def lengths(self, videos: Videos) -> np.ndarray:
        return np.broadcast_to(np.int64(self._frames), len(videos))

    def distinct(self, fact: str, videos: Videos) -> tuple[list, np.ndarray]:
        if fact == "label":
            return super().distinct(fact, videos)
        return [getattr(self, fact)(0)], np.broadcast_to(np.int64(0), len(videos))

    def size(self, index: int) -> Size:
        return self._size

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        return self._draw(index, frame_range(self.path, self._frames, start, count, step), self._size)

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        *_: object,
        **__: object,
    ) -> np.ndarray:
        """Drawn at the size that is asked for; nothing is resized."""
        return self._draw(index, frame_range(self.path, self._frames, start, count, step), size or self._size)


def _ask_part(name: str) -> Callable[..., Any]:
    """The method of a joined source that asks the part which holds the video."""

    def ask(self: JoinedSource, index: int, *arguments: Any, **options: Any) -> Any:
        part, local = self.locate(index)
        return getattr(self.parts[part], name)(local, *arguments, **options)

    return ask


class JoinedSource(ClipSource):
    """The videos of several sources, numbered through."""

    def __init__(self, path: str | os.PathLike, parts: Sequence[ClipSource], broken: Sequence[VideoError] = ()) -> None:
        """broken: files that could not be opened and are no parts. Raises the first of them when there is no part."""
        if not parts:
            raise broken[0] if broken else VideoError(path, "holds no videos")
        self.path, self.parts = str(path), list(parts)
        self._ends = list(accumulate(map(len, self.parts)))
        self.interpolation = self.parts[0].interpolation
        self.broken = [*broken, *(error for part in self.parts for error in part.broken)]

    def __len__(self) -> int:
        return self._ends[-1]

    id, label, group, fps = map(_ask_part, ("id", "label", "group", "fps"))
    length, size, stamp, place = map(_ask_part, ("length", "size", "stamp", "place"))
    read, read_clip = map(_ask_part, ("read", "read_clip"))

    def lengths(self, videos: Videos) -> np.ndarray:
        found = np.zeros(len(videos), np.int64)
        for part, places, local in self._by_part(videos):
            found[places] = part.lengths(local)
        return found

    def group_hashes(self, videos: Videos) -> np.ndarray | None:
        found = np.zeros(len(videos), np.uint64)
        for part, places, local in self._by_part(videos):
            hashes = part.group_hashes(local)
            if hashes is None:
                return None
            found[places] = hashes
        return found

    def blocks(self) -> np.ndarray | None:
        blocks = [part.blocks() for part in self.parts]
        if any(block is None for block in blocks):
            return None
        return np.concatenate(
            [block + end - len(p) for p, block, end in zip(self.parts, blocks, self._ends, strict=True)]
        )

    def digest(self) -> str | None:
        digests = [part.digest() for part in self.parts]
        return None if None in digests else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def _by_part(self, videos: Videos) -> Iterator[tuple[ClipSource, np.ndarray, np.ndarray]]:
        """Each part that holds some of the videos, where these stand in `videos`, and their numbers in the part."""
        videos = as_array(videos)
        owners = np.searchsorted(self._ends, videos, side="right")
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            yield self.parts[number], places, videos[places] - (self._ends[number] - len(self.parts[number]))

    def splits(self) -> dict[str, list[int]] | None:
        names: list[str | None] = [None] * len(self)
        for part, end in zip(self.parts, self._ends, strict=True):
            for name, indices in (part.splits() or {}).items():
                for index in each(indices):
                    names[end - len(part) + index] = name
        return by_split(names)

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the source that holds the video, and the video's number in it."""
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def open_each(
    files: Iterable[Path], open_file: Callable[[Path], ClipSource], unreadable: Mapping[Path, str]
) -> tuple[list[ClipSource], list[VideoError]]:
    """The sources in some files, and the errors of those that cannot be read; `unreadable`: what is no file at all."""
    parts, broken = [], [VideoError(path, reason) for path, reason in sorted(unreadable.items())]
    for file in files:
        try:
            parts.append(open_file(file))
        except VideoError as error:
            broken.append(error)
    return parts, broken


def each(videos: Videos) -> Iterable[int]:
    """Numbers of videos one by one, as Python's integers."""
    return videos.tolist() if isinstance(videos, np.ndarray) else videos


def as_array(videos: Videos) -> np.ndarray:
    """Numbers of videos as int64 (N,); NumPy makes an object of Python for each number of a range."""
    return (
        np.arange(videos.start, videos.stop, videos.step) if isinstance(videos, range) else np.asarray(videos, np.int64)
    )


def by_split(names: Sequence[str | None]) -> dict[str, list[int]] | None:
    """Numbers by the name of their split; what has no name goes to train where any has one."""
    if not any(names):
        return None
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name or "train", []).append(number)
    return found


def stored_rate(value: object) -> Fraction:
    """Frames per second as a file states them, as a number or a text such as "30000/1001".

    Raises ValueError for what is no number, or one that no index holds: 1e999999999 would be computed for hours.
    """
    text = str(value).strip()
    if len(text) > LONGEST_RATE or not _RATE.fullmatch(text):
        raise ValueError(f"{text[:LONGEST_RATE]!r} is no number of frames per second")
    try:
        rate = Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by zero") from error
    if max(abs(rate.numerator), rate.denominator) >= 1 << 63:
        raise ValueError(f"{text!r} has too many digits")
    return rate


def frame_range(path: object, length: int, start: int, count: int | None, step: int) -> range:
    """Indices of the frames of a clip. Raises VideoError if the video is too short."""
    if start < 0 or step < 1 or (count is not None and count < 1):
        raise ValueError(f"start >= 0, step >= 1, count >= 1 are needed, found {start}, {step}, {count}")
    stop = length if count is None else start + (count - 1) * step + 1
    if start >= length or stop > length:
        raise VideoError(path, f"has {length} frames, but frame {max(start, stop - 1)} was asked for")
    return range(start, stop, step)


class PerProcess:
    """Calls `open_file(path)` on first use in each process; never pickled, never shared over a fork."""

    def __init__(self, open_file: Callable[[str], Any], path: str | os.PathLike) -> None:
        self._open_file = open_file
        self._path = str(path)
        self._process: int | None = None
        self._handle: Any = None

    def get(self) -> Any:
        """The handle of this process."""
        if self._process != os.getpid():
            self._handle = self._open_file(self._path)
            self._process = os.getpid()
        return self._handle

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None, "_handle": None}
