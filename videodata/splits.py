"""Dividing videos into train, val and test: what a source declares wins, and only what it leaves open is divided here.

A declared division is a sub-folder, a .npy or an index of parts with the name of a split, or what the source itself
says about its videos (side-cars of prepared data, VideoGPT's files). Then

    test   is what is declared test, and nothing else
    val    is what is declared val; where nothing is, a share of what is declared train
    train  is the rest of what is declared train

so that nothing that is declared val or test can be trained on. Where nothing is declared, or train alone, the groups
are ordered by a hash of their names: the first share is val, the next is test, the rest is train. All videos of a
group fall on one side, and nothing but the names decides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from videodata.errors import UserError
from videodata.files import read_json
from videodata.journal import sidecar_path
from videodata.source import ClipSource, Videos, as_array
from videodata.sources import is_generated, is_index, open_source
from videodata.storage import divided, is_address, open_storage
from videodata.tars.index import INDEX_NAME

SPLITS = ("train", "val", "test")
NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
HELD_OUT = 0.1  # share of the groups in each of val and test, where these are not declared


def declared_splits(path: str | os.PathLike, color: str | None = None) -> tuple[str, ...]:
    """Which of train, val and test the source at `path` declares, in this order; () where it is not divided."""
    places = _places(path)
    if places:
        return tuple(name for name in SPLITS if name in places)
    return _names(_declared(open_source(path, color)))


def evaluation_split(path: str | os.PathLike) -> str:
    """What a model is judged on unless told otherwise: "test" where the data declares one, else "val"."""
    return "test" if "test" in declared_splits(path) else "val"


def open_split(
    path: str | os.PathLike, split: str | None, color: str | None = None, held_out: float = HELD_OUT
) -> tuple[ClipSource, Videos]:
    """The source at `path` and the indices of its videos that belong to the split; all of them for None.

    Raises UserError for a split that the source does not have, or has too few videos for.
    """
    if split is None:
        source = open_source(path, color)
        return source, range(len(source))
    _check(split, held_out)
    places = _places(path)
    if not places:
        source = open_source(path, color)
        return source, divide(source, split, held_out)
    source = open_source(places[_taken_from(path, split, tuple(places))], color)
    return source, _take(source, range(len(source)), split, tuple(places), held_out)


def sidecars(path: str | os.PathLike, split: str | None = None) -> list[dict]:
    """What lies beside the data that a split (None, "all": every one) is taken from, one of each file or folder.

    Prepared data has a JSON file beside it, with the name of the data set; where there is none, the entry is empty.
    """
    if is_generated(path):
        return [{"dataset": "generated videos"}]
    places = _places(path)
    if places and split not in (None, "all"):
        places = {split: places[_taken_from(path, split, tuple(places))]}
    found = []
    for place in places.values() or [path]:
        if is_address(place):  # what lies there says nothing but its index
            found.append({})
            continue
        place = Path(place)
        described = place if is_index(place) else sidecar_path(place)
        found.append(read_json(described) or {})
    return found


def divide(source: ClipSource, split: str, held_out: float = HELD_OUT) -> Videos:
    """Indices of the videos of an open source that belong to the split, by the same rules."""
    _check(split, held_out)
    declared = _declared(source)
    if not declared:
        return hashed_split(source, split, held_out)
    names = _names(declared)
    return _take(source, declared[_taken_from(source.path, split, names)], split, names, held_out)


def hashed_split(source: ClipSource, split: str, held_out: float = HELD_OUT, videos: Videos | None = None) -> Videos:
    """Indices (of `videos`; default: of all) that fall into the split by the hash of their groups."""
    return _by_hash(source, range(len(source)) if videos is None else videos, split, held_out, with_test=True)


def _take(source: ClipSource, videos: Videos, split: str, declared: tuple[str, ...], held_out: float) -> Videos:
    """Of the videos that are declared `split`, or train where val must come out of it, those that belong to it."""
    if declared == ("train",):
        return hashed_split(source, split, held_out, videos)
    if split == "test" or "val" in declared:
        return videos
    return _by_hash(source, videos, split, held_out, with_test=False)


def _by_hash(source: ClipSource, videos: Videos, split: str, held_out: float, with_test: bool) -> Videos:
    """Of the groups in the order of their hashes the first share is val, the next is test, if any, the rest train."""
    hashes = source.group_hashes(videos)
    ordered = _ordered_groups(source, videos) if hashes is None else _distinct(hashes)
    count = len(ordered)
    share = _share(count, held_out)
    held = 2 * share if with_test and count > 2 else share
    first, last = {"val": (0, share), "test": (share, held), "train": (held, count)}[split]
    chosen: Videos = []
    if hashes is not None and first < last:
        low, high = ordered[first], ordered[last - 1]
        del ordered  # of ten million videos it takes 80 MB
        chosen = np.flatnonzero((hashes >= low) & (hashes <= high))
        chosen = chosen if isinstance(videos, range) else as_array(videos)[chosen]  # a range here is of all
    elif hashes is None:
        wanted = set(ordered[first:last])
        chosen = [video for video in videos if source.group(video) in wanted]
    if not count and source.broken:
        raise source.broken[0]  # which says why there is no video
    if not len(chosen):
        raise UserError(f"{source.path}: {count} independent video(s) are too few for a {split!r} split")
    return chosen


def _taken_from(path: object, split: str, declared: tuple[str, ...]) -> str:
    """The declared part that the split comes out of. Raises UserError for none."""
    if split in declared:
        return split
    if "train" in declared and (split == "val" or len(declared) == 1):
        return "train"
    names = ", ".join(name for name in SPLITS if name in declared)
    raise UserError(f"{path} has no split {split!r}: it has {names}")


def _declared(source: ClipSource) -> dict[str, Videos]:
    """The source's own division, under the names used here. What it calls otherwise belongs to no split."""
    own, found = source.splits() or {}, {}
    for name, names in NAMES.items():
        given = [own[name] for name in names if name in own]
        if any(isinstance(videos, np.ndarray) for videos in given):
            found[name] = np.sort(np.concatenate(given))
        elif any(given):
            found[name] = sorted(video for videos in given for video in videos)
    return found


def _names(declared: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in SPLITS if name in set(declared))


def _places(path: str | os.PathLike) -> dict[str, str | Path]:
    """Where the declared parts lie; empty if the path is not divided. One that is a part beside train has itself."""
    if is_address(path):
        return _places_of_address(str(path))
    path = Path(path)
    found = {name: place for name, names in NAMES.items() if (place := _place(path, names)) is not None}
    if found:
        return {name: found[name] for name in SPLITS if name in found}
    for name, names in NAMES.items():
        siblings = [other for other in NAMES if other != name and _place(path.parent, NAMES[other]) is not None]
        if name != "train" and path.stem in names and "train" in siblings and path.exists():
            return {name: path}
    return {}


def _places_of_address(path: str) -> dict[str, str | Path]:
    """The parts with an index of their own below an address that has none."""
    root, found = open_storage(path), {}
    if "." in divided(path)[1] or root.status(INDEX_NAME) is not None:
        return found
    for name, names in NAMES.items():
        place = next((given for given in names if root.status(f"{given}/{INDEX_NAME}") is not None), None)
        if place is not None:
            found[name] = root.path(place)
    return found


def _place(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder, the array, or the index of parts with one of the names."""
    places = [*(root / name for name in names), *(root / f"{name}.npy" for name in names)]
    indices = [root / f"{name}.json" for name in names]
    found = next((place for place in places if place.is_dir() or place.is_file()), None)
    return found or next((index for index in indices if is_index(index)), None)


def _ordered_groups(source: ClipSource, videos: Videos) -> list[str]:
    groups = {source.group(video) for video in videos}
    return sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """Each of the hashes once, in order. np.unique takes twice the memory, of which there is little for millions."""
    ordered = np.array(hashes)
    ordered.sort()
    differs = ordered[1:] != ordered[:-1]
    return ordered if differs.all() else ordered[np.concatenate([[True], differs])]


def _share(count: int, held_out: float) -> int:
    """How many groups are held out: at least one, never the only one, and less than half of them."""
    return max(1, min(round(held_out * count), (count - 1) // 2)) if held_out and count > 1 else 0


def _check(split: str, held_out: float) -> None:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not 0 <= held_out < 0.5:
        raise UserError(f"held_out must be at least 0 and less than 0.5, found {held_out}")
