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

from videodata.errors import UserError
from videodata.files import read_json
from videodata.journal import sidecar_path
from videodata.source import ClipSource
from videodata.sources import is_generated, is_index, open_source

SPLITS = ("train", "val", "test")
NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
HELD_OUT = 0.1  # share of the groups in each of val and test, where these are not declared


def declared_splits(path: str | os.PathLike, color: str | None = None) -> tuple[str, ...]:
    """Which of train, val and test the source at `path` declares, in this order; () where it is not divided."""
    places = _places(Path(path))
    if places:
        return tuple(name for name in SPLITS if name in places)
    return _names(_declared(open_source(path, color)))


def evaluation_split(path: str | os.PathLike) -> str:
    """What a model is judged on unless told otherwise: "test" where the data declares one, else "val"."""
    return "test" if "test" in declared_splits(path) else "val"


def open_split(
    path: str | os.PathLike, split: str | None, color: str | None = None, held_out: float = HELD_OUT
) -> tuple[ClipSource, list[int]]:
    """The source at `path` and the indices of its videos that belong to the split; all of them for None.

    Raises UserError for a split that the source does not have, or has too few videos for.
    """
    if split is None:
        source = open_source(path, color)
        return source, list(range(len(source)))
    _check(split, held_out)
    places = _places(Path(path))
    if not places:
        source = open_source(path, color)
        return source, divide(source, split, held_out)
    source = open_source(places[_taken_from(path, split, tuple(places))], color)
    return source, _take(source, list(range(len(source))), split, tuple(places), held_out)


def sidecars(path: str | os.PathLike, split: str | None = None) -> list[dict]:
    """What lies beside the data that a split (None, "all": every one) is taken from, one of each file or folder.

    Prepared data has a JSON file beside it, with the name of the data set; where there is none, the entry is empty.
    """
    if is_generated(path):
        return [{"dataset": "generated videos"}]
    places = _places(Path(path))
    if places and split not in (None, "all"):
        places = {split: places[_taken_from(path, split, tuple(places))]}
    found = []
    for place in places.values() or [Path(path)]:
        described = place if is_index(place) else sidecar_path(place)
        found.append(read_json(described) or {})
    return found


def divide(source: ClipSource, split: str, held_out: float = HELD_OUT) -> list[int]:
    """Indices of the videos of an open source that belong to the split, by the same rules."""
    _check(split, held_out)
    declared = _declared(source)
    if not declared:
        return hashed_split(source, split, held_out)
    names = _names(declared)
    return _take(source, declared[_taken_from(source.path, split, names)], split, names, held_out)


def hashed_split(
    source: ClipSource, split: str, held_out: float = HELD_OUT, videos: list[int] | None = None
) -> list[int]:
    """Indices (of `videos`; default: of all) that fall into the split by the hash of their groups."""
    videos = list(range(len(source))) if videos is None else videos
    ordered = _ordered_groups(source, videos)
    share = _share(ordered, held_out)
    parts = {"val": ordered[:share], "test": ordered[share : 2 * share] if len(ordered) > 2 else []}
    held = {*parts["val"], *parts["test"]}
    parts["train"] = [group for group in ordered if group not in held]
    return _chosen(source, videos, parts[split], split, len(ordered))


def _take(source: ClipSource, videos: list[int], split: str, declared: tuple[str, ...], held_out: float) -> list[int]:
    """Of the videos that are declared `split`, or train where val must come out of it, those that belong to it."""
    if declared == ("train",):
        return hashed_split(source, split, held_out, videos)
    if split == "test" or "val" in declared:
        return videos
    ordered = _ordered_groups(source, videos)
    share = _share(ordered, held_out)
    groups = ordered[:share] if split == "val" else ordered[share:]
    return _chosen(source, videos, groups, split, len(ordered))


def _taken_from(path: object, split: str, declared: tuple[str, ...]) -> str:
    """The declared part that the split comes out of. Raises UserError for none."""
    if split in declared:
        return split
    if "train" in declared and (split == "val" or len(declared) == 1):
        return "train"
    names = ", ".join(name for name in SPLITS if name in declared)
    raise UserError(f"{path} has no split {split!r}: it has {names}")


def _declared(source: ClipSource) -> dict[str, list[int]]:
    """The source's own division, under the names used here. What it calls otherwise belongs to no split."""
    own, found = source.splits() or {}, {}
    for name, names in NAMES.items():
        videos = [video for given in names for video in own.get(given, [])]
        if videos:
            found[name] = sorted(videos)
    return found


def _names(declared: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in SPLITS if name in set(declared))


def _places(path: Path) -> dict[str, Path]:
    """Where the declared parts lie; empty if the path is not divided. One that is a part beside train has itself."""
    found = {name: place for name, names in NAMES.items() if (place := _place(path, names)) is not None}
    if found:
        return {name: found[name] for name in SPLITS if name in found}
    for name, names in NAMES.items():
        siblings = [other for other in NAMES if other != name and _place(path.parent, NAMES[other]) is not None]
        if name != "train" and path.stem in names and "train" in siblings and path.exists():
            return {name: path}
    return {}


def _place(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder, the array, or the index of parts with one of the names."""
    places = [*(root / name for name in names), *(root / f"{name}.npy" for name in names)]
    indices = [root / f"{name}.json" for name in names]
    found = next((place for place in places if place.is_dir() or place.is_file()), None)
    return found or next((index for index in indices if is_index(index)), None)


def _ordered_groups(source: ClipSource, videos: list[int]) -> list[str]:
    groups = {source.group(video) for video in videos}
    return sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())


def _share(ordered: list[str], held_out: float) -> int:
    """How many groups are held out: at least one, never the only one, and less than half of them."""
    count = len(ordered)
    return max(1, min(round(held_out * count), (count - 1) // 2)) if held_out and count > 1 else 0


def _chosen(source: ClipSource, videos: list[int], groups: list[str], split: str, count: int) -> list[int]:
    wanted = set(groups)
    chosen = [video for video in videos if source.group(video) in wanted]
    if not count and source.broken:
        raise source.broken[0]  # which says why there is no video
    if not chosen:
        raise UserError(f"{source.path}: {count} independent video(s) are too few for a {split!r} split")
    return chosen


def _check(split: str, held_out: float) -> None:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not 0 <= held_out < 0.5:
        raise UserError(f"held_out must be at least 0 and less than 0.5, found {held_out}")
