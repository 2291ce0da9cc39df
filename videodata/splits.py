"""Train, validation and test parts of a source that does not bring its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from videodata.errors import UserError
from videodata.source import ClipSource
from videodata.sources import is_index, open_source

SPLITS = ("train", "val", "test")
FOLDER_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
HELD_OUT = 0.1  # share of the groups in each of val and test


def open_split(path: str | os.PathLike, split: str | None, color: str | None = None) -> tuple[ClipSource, list[int]]:
    """The source at `path` and the indices of its videos that belong to the split (all of them for None).

    A sub-folder, a .npy or an index named after the split is the split. Else the source's own division counts. Else
    the groups are ordered by a hash of their names: the first tenth is val, the next tenth is test, the rest is train.
    All videos of a group fall on one side, and nothing but the names decides.
    """
    if split is None:
        source = open_source(path, color)
        return source, list(range(len(source)))
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    folder = _split_folder(Path(path), split)
    if folder is not None:
        source = open_source(folder, color)
        return source, list(range(len(source)))
    source = open_source(path, color)
    own = source.splits()
    if own is None:
        return source, hashed_split(source, split)
    if split not in own:
        raise UserError(f"{path} has no split {split!r}: it has {', '.join(own)}")
    return source, own[split]


def hashed_split(source: ClipSource, split: str) -> list[int]:
    """Indices of the videos whose group falls into the split. Raises UserError if there are too few groups."""
    groups = [source.group(index) for index in range(len(source))]
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    held_out = max(1, round(HELD_OUT * len(ordered)))
    parts = {"val": set(ordered[:held_out]), "test": set(ordered[held_out : 2 * held_out])}
    if len(ordered) == 1:
        parts["val"] = set()
    if len(ordered) <= 2:
        parts["test"] = set()
    parts["train"] = set(ordered) - parts["val"] - parts["test"]
    chosen = [index for index, group in enumerate(groups) if group in parts[split]]
    if not chosen:
        raise UserError(f"{source.path}: {len(ordered)} independent video(s) are too few for a {split!r} split")
    return chosen


def _split_folder(root: Path, split: str) -> Path | None:
    """Where the split lies; None if the folder is not divided. Raises UserError if only this split is missing."""
    present = {name: place for name, folders in FOLDER_NAMES.items() if (place := _place(root, folders)) is not None}
    if split not in present and "train" in present:
        raise UserError(f"{root} has no split {split!r}: it has {', '.join(sorted(present))}")
    return present.get(split)


def _place(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder, the array, or the index of parts with one of the names."""
    folders = [root / name for name in names]
    places = [*folders, *(root / f"{name}.npy" for name in names)]
    indices = [root / f"{name}.json" for name in names]
    found = next((place for place in places if place.is_dir() or place.is_file()), None)
    return found or next((index for index in indices if is_index(index)), None)
