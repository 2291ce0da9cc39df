"""How sharded processes write a checkpoint in parts together, in the background, and read what each of them needs.

Who writes what, what each process of another number of them reads, and the writing in the background are
`torch.distributed.checkpoint`'s. The storage is our own: its own keeps a pickle (`.metadata`, and all that is no
tensor), which runs the code of whoever made the file; this one has JSON, safetensors and `weights_only=True`
(sharded.py). Only sharded trainings import this file: torch takes a second for what it imports.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from training.sharded import (
    INDEX,
    STATE,
    Divided,
    Files,
    Index,
    Key,
    Part,
    name_of,
    read_index,
    read_part,
    united,
    whole_tensor,
    write_index,
    written,
)
from training.tensors import read_tensors, write_tensors

# How long processes wait for each other in the background, while one of them writes the weights of all.
PATIENCE = timedelta(minutes=30)

End = Callable[[Index, Files], None]


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
