"""Checkpoints in parts, of networks that are sharded: each process writes its own shards, and reads what it needs.

step-0001000/shard-00003.safetensors   what process 3 held, keys as in index.json
step-0001000/index.json                each divided tensor: its type, its shape, and which file holds which part of it
step-0001000/state.pt                  the rest of the state, nested as in the single file, in which a tensor of the
                                       meta device stands for each divided one
step-0001000/manifest.json             as that of the single file, with size and SHA-256 of each of these, written last

Who writes what, what each process of another number of them reads, and the writing in the background are
`torch.distributed.checkpoint`'s. The storage is our own: its own keeps a pickle (`.metadata`, and all that is no
tensor), which runs the code of whoever made the file; this one has JSON, safetensors and `weights_only=True`.
"""

from __future__ import annotations

import errno
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from training.tensors import DAMAGE, DTYPES, read_tensors, write_tensors
from videodata.errors import UserError, said_by
from videodata.files import parse_json, sha256_of, write_file, write_json

INDEX, STATE, MANIFEST = "index.json", "state.pt", "manifest.json"
SHARD = re.compile(r"shard-\d{5,}\.safetensors")
TYPES = {name: dtype for dtype, name in DTYPES.items()}
# How long processes wait for each other in the background, while one of them writes the weights of all.
PATIENCE = timedelta(minutes=30)

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
End = Callable[[Index, Files], None]


def name_of(key: Key) -> str:
    return "/".join(map(str, key))


def divide(value: Any, shards: dict[str, DTensor], key: Key = ()) -> Any:
    """The nested state with a meta tensor in place of each sharded one, which `shards` takes under its name; all
    other tensors are copied, because the training goes on while they are written.
    """
    if isinstance(value, DTensor):
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


def save(shards: dict[str, DTensor], folder: Path, group: dist.ProcessGroup, end: End) -> Any:
    """Copy the shards of this process and write them in the background; gives the future, for `result_of`.

    All processes call it. When all shards are on the disk, `end` gets the index and the files in the main one.
    """
    return dcp.async_save(shards, storage_writer=ShardWriter(folder, end), process_group=group)


def result_of(future: Any, folder: Path) -> None:
    """Wait for a save; the same in all processes. Raises OSError when the disk of any of them refused; then the folder
    that it wrote to is removed.
    """
    try:
        future.result()
    except dcp.CheckpointException as error:
        shutil.rmtree(folder, ignore_errors=True)  # no process writes there any more
        causes = [failure[0] for failure in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from error


class ShardWriter(dcp.StorageWriter):
    """Writes the shards of a process into one .safetensors of a folder that is new."""

    def __init__(self, folder: Path, end: End) -> None:
        self.folder, self.end = folder, end

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: dcp.SavePlan) -> dcp.SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.SavePlan]) -> list[dcp.SavePlan]:
        """Make the folder, in the main process, before the others hear of their plans."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return plans

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        """Write, and see that the disk gives back what was written. Raises OSError."""
        tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        results = []
        if tensors:
            path = self.folder / f"shard-{dist.get_rank():05d}.safetensors"
            if not self.folder.is_dir():
                raise FileNotFoundError(
                    errno.ENOENT, "not seen by all processes; use a run folder that all share", path
                )
            facts = written(path, lambda file: write_tensors(file, tensors, {}))
            sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
            results = [WriteResult(item.index, sizes[item.index.fqn], (path.name, facts)) for item in plan.items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: dcp.Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, in the main process, when all shards are there."""
        stored = {result.index: result.storage_data for own in results for result in own}
        files = {name: facts for name, facts in stored.values()}
        names = {(index.fqn, tuple(index.offset)): name for index, (name, _) in stored.items()}
        index = {}
        for name, entry in metadata.state_dict_metadata.items():
            chunks = {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks if math.prod(chunk.sizes)}
            parts = [Part(offsets, shape, names[name, offsets]) for offsets, shape in sorted(chunks)]
            index[name] = Divided(entry.properties.dtype, tuple(entry.size), parts)
        files[INDEX] = write_index(self.folder / INDEX, index)
        self.end(index, files)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class ShardReader(dcp.StorageReader):
    """Reads from a folder the parts of tensors that a process needs."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        entries = {}
        for name, entry in self.index.items():
            chunks = [
                dcp.ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.shape)) for part in entry.parts
            ]
            properties = TensorProperties(dtype=entry.dtype)
            entries[name] = dcp.TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
        return dcp.Metadata(entries)

    def set_up_storage_reader(
        self, metadata: dcp.Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None: ...

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        """Read each wanted region, and no more than that, from the file that holds it."""
        parts = {MetadataIndex(name, part.offsets): part for name, entry in self.index.items() for part in entry.parts}
        for item in plan.items:
            part = parts[MetadataIndex(item.storage_index.fqn, item.storage_index.offset)]
            region = tuple(
                slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True)
            )
            target = planner.resolve_tensor(item).detach()
            target.copy_(read_part(self.folder, item.storage_index.fqn, part, region))
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


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


def read_sharded(folder: Path, example: Callable[[Key], Tensor | None]) -> dict[str, Any]:
    """The state of a checkpoint, in which those tensors for which there is an example of the same shape are sharded
    like it: each process reads its own part. All processes call it. Raises UserError.
    """
    index, targets = read_index(folder), {}

    def target(key: Key) -> Tensor:
        name, like = name_of(key), example(key)
        entry = index.get(name)
        if entry is None or not isinstance(like, DTensor) or tuple(like.shape) != entry.shape:
            return whole_tensor(folder, name, index)
        targets[name] = torch.zeros_like(like, dtype=entry.dtype, requires_grad=False)
        return targets[name]

    state = united(read_tensors(folder / STATE), target)
    if targets:
        try:
            dcp.load(targets, storage_reader=ShardReader(folder, {name: index[name] for name in targets}))
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
    return state


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
