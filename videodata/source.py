"""What every source of clips offers, whatever it is stored in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.resize import Size, resize_frames


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


def by_split(names: Sequence[str | None]) -> dict[str, list[int]] | None:
    """Numbers by the name of their split; what has no name goes to train where any has one."""
    if not any(names):
        return None
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name or "train", []).append(number)
    return found


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
