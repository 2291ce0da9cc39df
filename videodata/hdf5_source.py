"""Videos in HDF5: one file or a folder of shards, in any of the layouts of hdf5_layouts.py."""

from __future__ import annotations

import bisect
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import h5py
import numpy as np

from videodata.errors import VideoError
from videodata.geometry import Size
from videodata.handles import PerProcess
from videodata.hdf5_layouts import Chunked, Contents, Layout, layout_of
from videodata.natural_order import is_hidden
from videodata.sources import ClipSource, frame_range

HDF5_SUFFIXES = (".hdf5", ".h5")


class Hdf5Source(ClipSource):
    """Videos of all shards, numbered through in the order of the shards' names. Shards without videos are allowed."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._shards = _shards(Path(path))
        self._files = [PerProcess(open_hdf5, shard) for shard in self._shards]
        self._layouts: list[Layout] = []
        self._contents: list[Contents] = []
        for shard in self._shards:
            with open_hdf5(shard) as file:
                self._layouts.append(layout_of(file))
                self._contents.append(self._layouts[-1].contents(file))
        self._ends = list(accumulate(len(contents.lengths) for contents in self._contents))
        if self._ends[-1] == 0:
            raise VideoError(path, "holds no videos")
        if not all(isinstance(layout, Chunked) for layout in self._layouts):
            self.interpolation = "bilinear"  # as the programs do that these layouts come from

    def __len__(self) -> int:
        return self._ends[-1]

    def id(self, index: int) -> str:
        shard, local = self.locate(index)
        return self._fact("id", index) or f"{self._shards[shard].stem}/{local}"

    def label(self, index: int) -> str | None:
        return self._fact("label", index)

    def group(self, index: int) -> str:
        return self._fact("group", index) or self.id(index)

    def fps(self, index: int) -> Fraction | None:
        fps = self._fact("fps", index)
        return Fraction(fps) if fps else None

    def length(self, index: int) -> int:
        shard, local = self.locate(index)
        return self._contents[shard].lengths[local]

    def size(self, index: int) -> Size:
        shard, local = self.locate(index)
        return self._layouts[shard].size(self._files[shard].get(), local)

    def splits(self) -> dict[str, list[int]] | None:
        names = [name for contents in self._contents for name in contents.splits or []]
        if not names:
            return None
        return {split: [k for k, name in enumerate(names) if name == split] for split in dict.fromkeys(names)}

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        shard, local = self.locate(index)
        where = f"{self._shards[shard]}, video {local}"
        frames = frame_range(where, self._contents[shard].lengths[local], start, count, step)
        try:
            pixels = self._layouts[shard].read(self._files[shard].get(), local, frames)
        except (OSError, KeyError, ValueError) as error:
            raise VideoError(where, f"cannot be read ({error}); prepare the data again") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise VideoError(where, f"expected frames uint8 (H, W, 3), found {pixels.dtype} {pixels.shape[1:]}")
        return pixels

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, number of the video in it)."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _fact(self, name: str, index: int) -> str | None:
        shard, local = self.locate(index)
        values = self._contents[shard].facts.get(name)
        return values[local] if values else None


def open_hdf5(path: str | Path) -> h5py.File:
    """Open for reading. Raises VideoError if the file is missing, truncated or no HDF5."""
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise VideoError(path, "no such file") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        reason = "truncated: the file is shorter than it should be" if "truncated" in reason else reason
        raise VideoError(path, f"is not a readable HDF5 file ({reason}); prepare it again") from error


def _shards(path: Path) -> list[Path]:
    if not path.exists():
        raise VideoError(path, "no such file or folder")
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in HDF5_SUFFIXES and not is_hidden(file.name))
