"""Open whatever holds videos; several prepared outputs as one source.

Machines that share a preparation write parts `train-0001-of-0008.npy` (or folders). The index `train.json` lists them;
it is all that a merge writes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from videodata.digits import Digits
from videodata.errors import UserError, VideoError
from videodata.files import Unreadable, files_in_folder, holds_files, is_hidden, write_json
from videodata.frame_folder import IMAGE_SUFFIXES, FrameFolder
from videodata.journal import PARTS_FORMAT, difference, partial_path, read_sidecar, sidecar_path
from videodata.npy import NpySource
from videodata.shapes import Shapes
from videodata.source import HDF5_SUFFIXES, ClipSource, JoinedSource, open_each
from videodata.storage import is_address
from videodata.tars.index import INDEX_NAME
from videodata.tars.names import is_tars, is_wids
from videodata.tars.source import TarSource
from videodata.tars.writer import join_parts
from videodata.video import VIDEO_SUFFIXES
from videodata.video_folder import VideoFolder

GENERATED = {"shapes:": Shapes, "digits:": Digits}  # by the beginning of what is opened


def is_generated(path: str | os.PathLike) -> bool:
    """Whether a source is drawn when it is read, and lies nowhere."""
    return str(path).startswith(tuple(GENERATED))


def is_no_path(path: str | os.PathLike) -> bool:
    """Whether a source is named by something else than a file or folder: drawn videos, an address, tars in braces."""
    return is_generated(path) or is_address(path) or ("{" in str(path) and is_tars(str(path)))


def open_source(path: str | os.PathLike, color: str | None = None) -> ClipSource:
    """Open whatever lies at `path` by looking at it.

    A video file; a folder of videos, of frame images, of .hdf5 shards or of .npy arrays; a csv with columns path,text;
    a .npy array; the .json index of a preparation that several machines shared; tar shards (tars/names.py), here or at
    an address such as s3://bucket/x-{000..099}.tar; "shapes:<n>" or "digits:<n>" for n generated videos.
    color="bgr" says that an array holds BGR pixels. Raises UserError.
    """
    if is_generated(path):
        return GENERATED[str(path).partition(":")[0] + ":"].parse(str(path))
    tars = is_tars(str(path))
    if tars and color is not None:
        raise UserError(f"color={color!r} applies to .npy files, not to {path}")
    if tars:  # before it becomes a Path, in which an address loses a slash
        return TarSource(path)
    path = Path(path)
    suffix = "" if path.is_dir() else path.suffix.lower()
    if color is not None and suffix != ".npy":
        raise UserError(f"color={color!r} applies to .npy files, not to {path}")
    if suffix == ".npy":
        return NpySource(path, color)
    if suffix in HDF5_SUFFIXES:
        return _open_hdf5(path)
    if suffix == ".json":
        return TarSource(path) if is_wids(path) else open_index(path)
    if not path.exists():
        raise VideoError(path, "no such file or folder; scripts/prepare_data.py --help shows how to make a data set")
    if path.is_file():
        return VideoFolder.from_csv(path) if suffix == ".csv" else VideoFolder.from_file(path)
    return _open_folder(path)


def _open_hdf5(path: Path) -> ClipSource:
    from videodata.hdf5 import Hdf5Source  # here: whoever reads no HDF5 starts without its library

    return Hdf5Source(path)


def _open_folder(path: Path) -> ClipSource:
    """A folder of one kind. Images beside videos are thumbnails; nobody can say what arrays beside them are."""
    kinds = {
        "HDF5 shards": (HDF5_SUFFIXES, False, _open_hdf5),
        ".npy arrays": ({".npy"}, False, open_arrays),
        "videos": (VIDEO_SUFFIXES, True, VideoFolder.from_folder),
    }
    found = [kind for kind, (suffixes, deep, _) in kinds.items() if holds_files(path, suffixes, deep=deep)]
    if len(found) > 1:
        raise VideoError(path, f"holds {' and '.join(found)}: name one file, or give each kind a folder of its own")
    if found:
        return kinds[found[0]][2](path)
    if holds_files(path, IMAGE_SUFFIXES):
        return FrameFolder(path)
    if holds_files(path, {".tar"}, deep=False):
        return TarSource(path)  # which says that it needs an index
    hidden = VideoFolder.from_folder(path).broken  # folders that cannot be opened
    if hidden:
        raise hidden[0]
    raise VideoError(path, "holds no videos, frame images or .hdf5 shards")


_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{4})-of-(?P<count>\d{4})(?P<suffix>\.npy)?")


def open_index(path: Path) -> ClipSource:
    """The parts of an index, in its order; those of tars as one source, by the index that merging them made.

    Raises UserError.
    """
    content = read_sidecar(path)
    if content.get("format") != PARTS_FORMAT:
        raise VideoError(path, f"is no index of parts (format {PARTS_FORMAT!r} expected)")
    parts = content.get("parts")
    if not isinstance(parts, list) or not all(isinstance(name, str) and _PART.fullmatch(name) for name in parts):
        raise VideoError(path, "is damaged, its parts are not named; prepare_data.py merge writes it again")
    if not parts:
        raise VideoError(path, "has no parts; prepare_data.py merge writes it again")
    if (shards := path.with_suffix(".index")).is_file():
        return TarSource(shards)
    return JoinedSource(path, [open_source(path.parent / name) for name in parts])


def open_arrays(folder: Path) -> JoinedSource:
    """All arrays of a folder, in natural order; parts of a shared preparation only when all are there."""
    unreadable: Unreadable = {}
    files = files_in_folder(folder, {".npy"}, deep=False, unreadable=unreadable)
    for name, count, present in _groups(files):
        if len(present) < count:
            raise UserError(f"{folder / name}: {len(present)} of {count} parts are there: prepare the others first")
    return JoinedSource(folder, *open_each(files, NpySource, unreadable))


def is_index(path: Path) -> bool:
    """Whether a file is an index of parts."""
    try:
        return path.is_file() and read_sidecar(path).get("format") == PARTS_FORMAT
    except VideoError:
        return False


def merge_parts(folder: Path) -> list[tuple[Path, dict]]:
    """Write an index for each group of parts in a folder; gives (path, content) of each.

    Of tars there is also one index of all shards, `train.index`, which needs no list. Raises UserError, before anything
    is written, when a part is missing or unfinished, or was made with other settings.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    groups = list(_groups(path for path in folder.iterdir() if not is_hidden(path.name)))
    if not groups:
        raise UserError(f"{folder}: holds no parts such as train-0001-of-0008.npy; --shard i/n makes them")
    indices = [(folder / f"{name}.json", _index(folder, name, count, present)) for name, count, present in groups]
    for path, _ in indices:
        if path.exists() and not is_index(path):
            raise UserError(f"{path}: is no index of parts, but one must be written there; move it away")
    for path, content in indices:
        parts = [folder / name for name in content["parts"]]
        if (parts[0] / INDEX_NAME).is_file():
            join_parts(path.with_suffix(".index"), parts)
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
    sidecars = [_description_of(part) for part in parts]
    common = _settings(sidecars[0])
    for part, sidecar in zip(parts, sidecars, strict=True):
        if _settings(sidecar) != common:
            changed = difference(common, _settings(sidecar))
            raise UserError(f"{part}: was made with other settings than {parts[0].name} ({changed})")
    videos = [video for sidecar in sidecars for video in sidecar["videos"]]
    return {
        "format": PARTS_FORMAT,
        "version": 1,
        "content": sidecars[0]["format"],
        **{key: value for key, value in common.items() if key not in ("format", "version", "content")},
        "classes": sorted({video["label"] for video in videos if video.get("label") is not None}),
        "parts": [part.name for part in parts],
        "videos": len(videos),
        "sequences": sum(video.get("sequences", 1) for video in videos),
        "skipped": [entry for sidecar in sidecars for entry in sidecar["skipped"]],
    }


def _description_of(part: Path) -> dict:
    """The side-car of a part, with what an index takes from it. Raises VideoError."""
    path = sidecar_path(part)
    content = read_sidecar(path)
    lists = [content.get(name) for name in ("videos", "skipped")]
    whole = isinstance(content.get("format"), str) and all(isinstance(entries, list) for entries in lists)
    if not whole or not all(isinstance(video, dict) for video in lists[0]):
        raise VideoError(path, "is damaged; prepare this part again")
    return content


def _settings(sidecar: dict) -> dict:
    """What all parts must have in common."""
    return {key: value for key, value in sidecar.items() if key not in ("videos", "skipped", "prepare", "classes")}
