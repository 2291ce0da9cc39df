"""A stretch of bytes that is a video file of its own: a member of a tar, wherever the tar lies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class Stretch:
    """Stands in the place of a path where films are read. Two are the same by name, size and stamp, not by content.

    read: gives `count` bytes from a position of the stretch on, fewer at its end. `release` lets go of it: whatever
    remembers the stretch, such as a table of its frames, keeps a name and no bytes.
    """

    def __init__(self, name: str, size: int, read: Callable[[int, int], bytes], stamp: str = "") -> None:
        self.name, self.size, self.stamp = name, size, stamp
        self._read: Callable[[int, int], bytes] | None = read

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stretch) and self._known_by() == other._known_by()

    def __hash__(self) -> int:
        return hash(self._known_by())

    def __enter__(self) -> Stretch:
        return self

    def __exit__(self, *_: object) -> None:
        self._read = None

    def read(self, start: int, count: int) -> bytes:
        if self._read is None:
            raise ValueError(f"{self.name} was released")
        return self._read(start, max(0, min(count, self.size - start)))

    def _known_by(self) -> tuple[str, int, str]:
        return self.name, self.size, self.stamp


class _StretchFile(io.RawIOBase):
    def __init__(self, stretch: Stretch) -> None:
        super().__init__()
        self.name = stretch.name  # FFmpeg looks at its suffix
        self._stretch, self._position = stretch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stretch.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        data = self._stretch.read(self._position, self._stretch.size if count is None or count < 0 else count)
        self._position += len(data)
        return data


def open_bytes(path: str | Path | Stretch) -> BinaryIO:
    """A file, or a stretch of one, for reading."""
    return _StretchFile(path) if isinstance(path, Stretch) else open(path, "rb")


def size_of(path: str | Path | Stretch) -> int:
    return path.size if isinstance(path, Stretch) else Path(path).stat().st_size
