"""Open whatever holds videos; several prepared outputs as one source.

Machines that share a preparation write parts `train-0001-of-0008.npy` (or folders). The index `train.json` lists them;
it is all that a merge writes.
"""

from __future__ import annotations

import bisect
import json
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.files import files_in_folder, holds_files, write_json
from videodata.frame_folder import IMAGE_SUFFIXES, FrameFolder
from videodata.hdf5 import HDF5_SUFFIXES, Hdf5Source
from videodata.npy_source import NpySource
from videodata.npy_writer import difference, partial_path, sidecar_path
from videodata.resize import Size
from videodata.shapes import Shapes
from videodata.source import ClipSource, by_split
from videodata.video import VIDEO_SUFFIXES
from videodata.video_folder import VideoFolder


def open_source(path: str | os.PathLike, color: str | None = None) -> ClipSource:
    """Open whatever lies at `path` by looking at it.

    A video file; a folder of videos, of frame images, of .hdf5 shards or of .npy arrays; a csv with columns path,text;
    a .npy array; the .json index of a preparation that several machines shared; "shapes:<n>" for n generated
    videos. color="bgr" says that an array holds BGR pixels. Raises UserError.
    """
    if str(path).startswith("shapes:"):
        return Shapes.parse(str(path))
    path = Path(path)
    suffix = path.suffix.lower()
    if color is not None and suffix != ".npy":
        raise UserError(f"color={color!r} applies to .npy files, not to {path}")
    if suffix == ".npy":
        return NpySource(path, color)
    if suffix in HDF5_SUFFIXES:
        return Hdf5Source(path)
    if suffix == ".json":
        return PartsSource.from_index(path)
    if not path.exists():
        raise VideoError(path, "no such file or folder; scripts/prepare_data.py --help shows how to make a data set")
    if path.is_file():
        return VideoFolder.from_csv(path) if suffix == ".csv" else VideoFolder.from_file(path)
    if holds_files(path, HDF5_SUFFIXES, deep=False):
        return Hdf5Source(path)
    if holds_files(path, {".npy"}, deep=False):
        return PartsSource.from_folder(path)
    if holds_files(path, VIDEO_SUFFIXES):
        return VideoFolder.from_folder(path)
    if holds_files(path, IMAGE_SUFFIXES):
        return FrameFolder(path)
    raise VideoError(path, "holds no videos, frame images or .hdf5 shards")


FORMAT = "videodata-parts"
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{4})-of-(?P<count>\d{4})(?P<suffix>\.npy)?")


class PartsSource(ClipSource):
    """The videos of several sources, numbered through."""

    def __init__(self, path: Path, parts: Sequence[ClipSource]) -> None:
        self.path, self._parts = str(path), list(parts)
        self._ends = list(accumulate(map(len, self._parts)))
        self.interpolation = self._parts[0].interpolation
        self.broken = [error for part in self._parts for error in part.broken]

    @classmethod
    def from_index(cls, path: Path) -> PartsSource:
        """The parts of an index, in its order. Raises UserError."""
        content = read_sidecar(path)
        if content.get("format") != FORMAT:
            raise VideoError(path, f"is no index of parts (format {FORMAT!r} expected)")
        return cls(path, [open_source(path.parent / name) for name in content["parts"]])

    @classmethod
    def from_folder(cls, folder: Path) -> PartsSource:
        """All arrays of a folder, in natural order; parts of a shared preparation only when all are there."""
        files = files_in_folder(folder, {".npy"}, deep=False)
        for name, count, present in _groups(files):
            if len(present) < count:
                raise UserError(f"{folder / name}: {len(present)} of {count} parts are there: prepare the others first")
        return cls(folder, [open_source(file) for file in files])

    def __len__(self) -> int:
        return self._ends[-1]

    def id(self, index: int) -> str:
        part, local = self._locate(index)
        return part.id(local)

    def label(self, index: int) -> str | None:
        part, local = self._locate(index)
        return part.label(local)

    def group(self, index: int) -> str:
        part, local = self._locate(index)
        return part.group(local)

    def fps(self, index: int) -> Fraction | None:
        part, local = self._locate(index)
        return part.fps(local)

    def length(self, index: int) -> int:
        part, local = self._locate(index)
        return part.length(local)

    def size(self, index: int) -> Size:
        part, local = self._locate(index)
        return part.size(local)

    def stamp(self, index: int) -> str:
        part, local = self._locate(index)
        return part.stamp(local)

    def splits(self) -> dict[str, list[int]] | None:
        names: list[str | None] = [None] * len(self)
        for part, end in zip(self._parts, self._ends, strict=True):
            for name, indices in (part.splits() or {}).items():
                for index in indices:
                    names[end - len(part) + index] = name
        return by_split(names)

    def place(self, index: int) -> str | None:
        part, local = self._locate(index)
        return part.place(local)

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        part, local = self._locate(index)
        return part.read(local, start, count, step)

    def read_clip(self, index: int, *arguments: object, **options: object) -> np.ndarray:
        part, local = self._locate(index)
        return part.read_clip(local, *arguments, **options)

    def _locate(self, index: int) -> tuple[ClipSource, int]:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)


def is_index(path: Path) -> bool:
    """Whether a file is an index of parts."""
    try:
        return path.is_file() and read_sidecar(path).get("format") == FORMAT
    except VideoError:
        return False


def merge_parts(folder: Path) -> list[tuple[Path, dict]]:
    """Write an index for each group of parts in a folder; gives (path, content) of each.

    Raises UserError, before anything is written, when a part is missing or unfinished, or was made with other settings.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    groups = list(_groups(folder.iterdir()))
    if not groups:
        raise UserError(f"{folder}: holds no parts such as train-0001-of-0008.npy; --shard i/n makes them")
    indices = [(folder / f"{name}.json", _index(folder, name, count, present)) for name, count, present in groups]
    for path, content in indices:
        write_json(path, content, sort_keys=False)
    return indices


def _groups(paths) -> list[tuple[str, int, dict[int, Path]]]:
    """(name, number of parts, parts that are there by number) of each group."""
    found: dict[tuple[str, int], dict[int, Path]] = {}
    for path in paths:
        match = _PART.fullmatch(path.name)
        if match and (match["suffix"] or path.is_dir()):
            found.setdefault((match["name"], int(match["count"])), {})[int(match["number"])] = path
    return [(name, count, present) for (name, count), present in sorted(found.items())]


def _index(folder: Path, name: str, count: int, present: dict[int, Path]) -> dict:
    lacking = [
        number
        for number in range(1, count + 1)
        if number not in present or partial_path(present[number]).exists() or not sidecar_path(present[number]).exists()
    ]
    if lacking:
        shares = ", ".join(f"{number}/{count}" for number in lacking[:10])
        raise UserError(f"{folder / name}: {len(lacking)} of {count} parts are not finished: run --shard {shares}")
    parts = [present[number] for number in range(1, count + 1)]
    sidecars = [read_sidecar(sidecar_path(part)) for part in parts]
    common = _settings(sidecars[0])
    for part, sidecar in zip(parts, sidecars, strict=True):
        if _settings(sidecar) != common:
            changed = difference(common, _settings(sidecar))
            raise UserError(f"{part}: was made with other settings than {parts[0].name} ({changed})")
    videos = [video for sidecar in sidecars for video in sidecar["videos"]]
    return {
        "format": FORMAT,
        "version": 1,
        "content": sidecars[0]["format"],
        **{key: value for key, value in common.items() if key not in ("format", "version", "content")},
        "classes": sorted({video["label"] for video in videos if video.get("label") is not None}),
        "parts": [part.name for part in parts],
        "videos": len(videos),
        "sequences": sum(video.get("sequences", 1) for video in videos),
        "skipped": [entry for sidecar in sidecars for entry in sidecar["skipped"]],
    }


def _settings(sidecar: dict) -> dict:
    """What all parts must have in common."""
    return {key: value for key, value in sidecar.items() if key not in ("videos", "skipped", "prepare", "classes")}


def read_sidecar(path: Path) -> dict:
    """Content of a side-car or an index. Raises VideoError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be read ({error}); prepare the data again") from error
    if not isinstance(content, dict):
        raise VideoError(path, "describes no videos")
    return content
