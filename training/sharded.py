"""Checkpoints in parts, of networks that are sharded: each process writes its own shards, and reads what it needs.

step-0001000/shard-00003.safetensors   what process 3 held, keys as in index.json
step-0001000/index.json                each divided tensor: its type, its shape, and which file holds which part of it
step-0001000/state.pt                  the rest of the state, nested as in the single file, in which a tensor of the
                                       meta device stands for each divided one
step-0001000/manifest.json             as that of the single file, with size and SHA-256 of each of these, written last

This file is about the folder, which any process reads; how sharded processes write and read it together is in
shard_storage.py.
"""

from __future__ import annotations

import errno
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from training import distributed
from training.tensors import DAMAGE, DTYPES, read_tensors
from videodata.errors import UserError, said_by
from videodata.files import parse_json, sha256_of, write_file, write_json

INDEX, STATE, MANIFEST = "index.json", "state.pt", "manifest.json"
SHARD = re.compile(r"shard-\d{5,}\.safetensors")
TYPES = {name: dtype for dtype, name in DTYPES.items()}

Key = tuple[Any, ...]  # of a nested state, such as ("networks", "autoencoder", "encoder.weight")
Files = dict[str, dict[str, Any]]  # name in the folder -> size, sha256


@dataclass
class Part:
    """A part of a tensor: where it begins, its shape, and the file that holds it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str

    @property
    def place(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(self.offsets, self.shape, strict=True))


@dataclass
class Divided:
    """A tensor that is divided among files."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: list[Part]


Index = dict[str, Divided]


def name_of(key: Key) -> str:
    return "/".join(map(str, key))


def divide(value: Any, shards: dict[str, Tensor], key: Key = ()) -> Any:
    """The nested state with a meta tensor in place of each sharded one, which `shards` takes under its name; all
    other tensors are copied, because the training goes on while they are written.
    """
    if distributed.is_sharded(value):
        shards[name_of(key)] = value.detach()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {own: divide(entry, shards, (*key, own)) for own, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(divide(entry, shards, (*key, number)) for number, entry in enumerate(value))
    return value


def united(value: Any, found: Callable[[Key], Tensor], key: Key = ()) -> Any:
    """The nested state with what is found in place of each meta tensor."""
    if isinstance(value, Tensor):
        return found(key) if value.is_meta else value
    if isinstance(value, dict):
        return {own: united(entry, found, (*key, own)) for own, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(united(entry, found, (*key, number)) for number, entry in enumerate(value))
    return value


def written(path: Path, content: Any) -> dict[str, Any]:
    """Write a file; gives its size and SHA-256. Raises OSError, also when the disk returns other bytes."""
    digest = write_file(path, content)
    if sha256_of(path) != digest:
        raise OSError(errno.EIO, "the disk returns other bytes than were written", str(path))
    return {"size": path.stat().st_size, "sha256": digest}


def write_index(path: Path, index: Index) -> dict[str, Any]:
    """Write the index; gives the size and SHA-256 of its file."""
    entries = {
        name: {
            "dtype": DTYPES[entry.dtype],
            "shape": entry.shape,
            "parts": [{"file": part.file, "offsets": part.offsets, "shape": part.shape} for part in entry.parts],
        }
        for name, entry in index.items()
    }
    write_json(path, entries)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def read_index(folder: Path) -> Index:
    """The divided tensors of a checkpoint. Raises UserError for an index that is missing, or is none."""
    path = folder / INDEX
    try:
        index = {
            name: Divided(
                TYPES[entry["dtype"]],
                sizes_of(entry["shape"]),
                [Part(sizes_of(part["offsets"]), sizes_of(part["shape"]), part["file"]) for part in entry["parts"]],
            )
            for name, entry in parse_json(path.read_text(encoding="utf-8")).items()
        }
        for entry in index.values():
            check_parts(entry)
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or missing ({said_by(error)}); use another checkpoint") from error
    return index


def sizes_of(numbers: Any) -> tuple[int, ...]:
    """Raises ValueError for what are no sizes."""
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError(f"{numbers!r} are no sizes")
    return tuple(numbers)


def check_parts(entry: Divided) -> None:
    """Raises ValueError unless the parts lie in the tensor, fill it, and are in files of the folder."""
    count = 0
    for part in entry.parts:
        inside = all(end.stop <= size for end, size in zip(part.place, entry.shape, strict=True))
        if not inside or not isinstance(part.file, str) or not SHARD.fullmatch(part.file):
            raise ValueError("a part lies outside")
        count += math.prod(part.shape)
    if count != math.prod(entry.shape):
        raise ValueError("parts are missing")


def read_part(folder: Path, name: str, part: Part, region: tuple[slice, ...] | None = None) -> Tensor:
    """A part of a tensor, or a region of the part. Raises UserError."""
    path = folder / part.file
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = file.get_slice(name)
            if tuple(stored.get_shape()) != part.shape:
                raise ValueError(f"{name} has shape {tuple(stored.get_shape())}, not {part.shape}")
            return stored[region] if region else file.get_tensor(name)
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or missing ({said_by(error)}); use another checkpoint") from error


def whole_tensor(folder: Path, name: str, index: Index) -> Tensor:
    """A divided tensor, from all its parts. Raises UserError."""
    if name not in index:
        raise UserError(f"{folder / INDEX}: does not name {name}; use another checkpoint")
    entry = index[name]
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    for part in entry.parts:
        tensor[part.place] = read_part(folder, name, part)
    return tensor


def read_whole(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint with every tensor whole, on the CPU. Raises UserError."""
    index = read_index(folder)
    return united(read_tensors(folder / STATE), lambda key: whole_tensor(folder, name_of(key), index))


def is_sharded(path: Path) -> bool:
    """Whether a path is the folder of a checkpoint in parts."""
    return path.is_dir() and (path / STATE).is_file() and (path / INDEX).is_file()


def unfinished(folder: Path, name: str) -> Path:
    """Where a checkpoint is while it is written or removed."""
    return folder / f".{name}.tmp"


def remove_unfinished(folder: Path) -> Iterator[str]:
    """Remove what killed processes left; gives the names."""
    for path in folder.glob(".step-*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            yield path.name
