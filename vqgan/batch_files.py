"""Batch files: a data set cut into `<name>_batch_<k>.npy`, each uint8 (videos, frames, H, W, 3)."""

from __future__ import annotations

import bisect
import json
import logging
import re
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.files import atomic_path
from videodata.npy_source import FORMAT, VERSION, NpySource, check_layout, map_array
from videodata.resize import Size
from videodata.source import ClipSource

logger = logging.getLogger(__name__)
NAME = re.compile(r".*_batch_(\d+)\.npy")
PREFIX = "ucf101_subset"


def find_batch_files(folder: str | Path) -> dict[int, Path]:
    """Number -> path of the batch files in a folder, in order; empty if there are none."""
    if str(folder).startswith("shapes:") or not Path(folder).is_dir():
        return {}
    found = {int(match[1]): path for path in Path(folder).iterdir() if (match := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


class BatchFiles(ClipSource):
    """The videos of several batch files, numbered through."""

    def __init__(self, paths: list[Path], color: str | None = None) -> None:
        self.path = str(paths[0].parent)
        self._files = [NpySource(path, color) for path in paths]
        self._ends = list(accumulate(len(file) for file in self._files))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[NpySource, int]:
        """The file that holds video `index`, and the video's number in it."""
        file = bisect.bisect_right(self._ends, index)
        return self._files[file], index - (self._ends[file - 1] if file else 0)

    def id(self, index: int) -> str:
        file, local = self._locate(index)
        return file.id(local)

    def label(self, index: int) -> str | None:
        file, local = self._locate(index)
        return file.label(local)

    def group(self, index: int) -> str:
        file, local = self._locate(index)
        return file.group(local)

    def fps(self, index: int) -> Fraction | None:
        file, local = self._locate(index)
        return file.fps(local)

    def length(self, index: int) -> int:
        file, local = self._locate(index)
        return file.length(local)

    def size(self, index: int) -> Size:
        file, local = self._locate(index)
        return file.size(local)

    def stamp(self, index: int) -> str:
        file, local = self._locate(index)
        return file.stamp(local)

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        file, local = self._locate(index)
        return file.read(local, start, count, step)


def write_batch_files(npy_file: str | Path, folder: str | Path, shard_size: int = 812) -> list[Path]:
    """Cut a .npy (N, T, H, W, 3), and its .json if there is one, into batch files of at most `shard_size` sequences.

    Raises UserError for a file of another layout and for a folder that holds batch files already.
    """
    source, folder = Path(npy_file), Path(folder)
    array = map_array(str(source))
    check_layout(source, array)
    if array.ndim != 5:
        raise VideoError(source, "holds one video; batch files need (N, T, H, W, 3)")
    if shard_size < 1:
        raise UserError(f"--shard_size must be at least 1, found {shard_size}")
    if find_batch_files(folder):
        raise UserError(f"{folder}: holds batch files already; remove them or name another folder")
    written = []
    for number, first in enumerate(range(0, len(array), shard_size)):
        path = folder / f"{PREFIX}_batch_{number}.npy"
        with atomic_path(path) as temporary:
            copy_sequences(array, first, min(first + shard_size, len(array)), temporary)
        write_sidecar(source, path, first, min(first + shard_size, len(array)))
        written.append(path)
    return written


def copy_sequences(array: np.ndarray, first: int, last: int, path: Path) -> None:
    """Write array[first:last] as a .npy, one sequence in memory at a time."""
    target = np.lib.format.open_memmap(path, "w+", dtype=array.dtype, shape=(last - first, *array.shape[1:]))
    for index in range(first, last):
        target[index - first] = array[index]
    target.flush()


def write_sidecar(source: Path, path: Path, first: int, last: int) -> None:
    """The part of the source's .json that describes sequences first to last, for the batch file `path`."""
    sidecar = source.with_suffix(".json")
    if not sidecar.is_file():
        return
    content = json.loads(sidecar.read_text())
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise VideoError(sidecar, f"does not describe {source.name}; remove or rename it")
    content["videos"] = [part for video in content["videos"] if (part := clipped(video, first, last))]
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def clipped(video: dict, first: int, last: int) -> dict | None:
    """The entry of a video for sequences first to last alone, renumbered; None if it has none there."""
    start = max(video["first_sequence"], first)
    stop = min(video["first_sequence"] + video["sequences"], last)
    return {**video, "first_sequence": start - first, "sequences": stop - start} if stop > start else None
