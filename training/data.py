"""From a dataset to batches on the device.

The order of the samples is a function of seed and position (PositionSampler), a dataset is asked for samples by
(index, position) with errors that name the sample (KeyedDataset), and the loader's workers behave when signals, hangs
and crashes come (batches).
"""

from __future__ import annotations

import bisect
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from training.cli import WORKER_DIED, explain_loader
from training.randomness import derive_seed
from training.settings import TrainSettings
from videodata.errors import UserError

Key = tuple[int, int]  # (index in the dataset, position in the run)
# Blocks whose samples are mixed: more of them mix better, and more must be fetched at a time. A part of the order of a
# run: with another number it would go on with other samples.
BLOCKS_AT_ONCE = 8


@dataclass
class PositionSampler:
    """Micro-batches of (index, position) for one process, from `first_step` to `last_step`.

    Position p = 0, 1, 2, ... counts the samples of the whole run, and its sample is perm[seed, p // n][p % n]. A step
    covers the next `batch_size` positions, whatever the number of processes and micro-batches; micro-batch a of
    process r is the (a * world + r)-th contiguous share of them.

    Where samples lie together in blocks, such as tars that are fetched whole, perm is one of the blocks, and then one
    of the samples of each BLOCKS_AT_ONCE blocks that follow each other: so many are in use at a time.
    """

    length: int  # samples in the dataset
    batch_size: int  # samples per step, over all processes and micro-batches
    seed: int
    first_step: int
    last_step: int
    first_position: int  # position of the first sample of `first_step`
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    blocks: np.ndarray | None = field(default=None, repr=False)  # first sample of each block
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _layouts: dict[int, BlockOrder] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.last_step):
            for micro in range(self.accumulation):
                yield self.keys(step, micro)

    def keys(self, step: int, micro: int) -> list[Key]:
        """The (index, position) pairs of one micro-batch of this process."""
        size = self.batch_size // (self.world * self.accumulation)
        start = self.first_position + (step - self.first_step) * self.batch_size
        start += (micro * self.world + self.rank) * size
        return [(self.index(position), position) for position in range(start, start + size)]

    def index(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if self.blocks is not None:
            return self._layout(epoch).index(offset)
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}  # the last two suffice
            self._orders[epoch] = permutation(self.length, self.seed, "order", epoch)
        return int(self._orders[epoch][offset])

    def _layout(self, epoch: int) -> BlockOrder:
        if epoch not in self._layouts:
            self._layouts = {e: layout for e, layout in self._layouts.items() if e >= epoch - 1}
            self._layouts[epoch] = BlockOrder(self.length, self.blocks, self.seed, epoch)
        return self._layouts[epoch]


class BlockOrder:
    """The order of an epoch where samples lie in blocks: a function of (length, blocks, seed, epoch) alone."""

    def __init__(self, length: int, blocks: np.ndarray, seed: int, epoch: int) -> None:
        """blocks: first sample of each, rising from 0."""
        self._key = seed, "order", epoch
        order = permutation(len(blocks), *self._key, "blocks").numpy()
        sizes = np.diff(blocks, append=length)[order]
        groups = range(0, len(blocks), BLOCKS_AT_ONCE)
        self._groups = [(blocks[order[g : g + BLOCKS_AT_ONCE]], sizes[g : g + BLOCKS_AT_ONCE].cumsum()) for g in groups]
        self._ends = np.cumsum([ends[-1] for _, ends in self._groups])
        self._orders: dict[int, Tensor] = {}  # of the samples of a group

    def index(self, offset: int) -> int:
        """The sample at a position of the epoch."""
        group = int(np.searchsorted(self._ends, offset, side="right"))
        firsts, ends = self._groups[group]
        if group not in self._orders:
            self._orders = {g: order for g, order in self._orders.items() if g == group - 1}  # two suffice
            self._orders[group] = permutation(int(ends[-1]), *self._key, "samples", group)
        place = int(self._orders[group][offset - (int(self._ends[group - 1]) if group else 0)])
        block = int(np.searchsorted(ends, place, side="right"))
        return int(firsts[block]) + place - (int(ends[block - 1]) if block else 0)


def permutation(count: int, *key: int | str) -> Tensor:
    """A random order of `count` things, by the key alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*key)))


def blocks_of(dataset: Dataset) -> np.ndarray | None:
    """First sample of each stretch of a data set that lies together; None where nothing does, or not everything.

    A data set says so by a method `blocks`; a ConcatDataset has those of its parts.
    """
    if type(dataset) is ConcatDataset:
        parts = [blocks_of(part) for part in dataset.datasets]
        starts = [0, *dataset.cumulative_sizes[:-1]]
        known = all(part is not None for part in parts)
        return np.concatenate([part + start for part, start in zip(parts, starts, strict=True)]) if known else None
    return dataset.blocks() if hasattr(dataset, "blocks") else None


@dataclass
class SampleFailure:
    """A sample that cannot be read. It travels from the worker as data, so that its one-line message survives."""

    message: str


class KeyedDataset(Dataset):
    """Gives `dataset[(index, position)]` for any dataset.

    A dataset with the attribute `takes_positions = True` is asked for `dataset[(index, position)]` and draws its
    augmentation from (its seed, position). Any other is asked for `dataset[index]`. Subset and ConcatDataset pass
    the position on to what they contain.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        try:
            return read_sample(self.dataset, *key)
        except UserError as error:
            return SampleFailure(f"sample {self.describe(key[0])}: {error}")
        except Exception as error:  # a bug in the dataset: keep its traceback and add which sample it was
            raise RuntimeError(f"sample {self.describe(key[0])}: {type(error).__name__}: {error}") from error

    def describe(self, index: int) -> str:
        """The index, and the sample's id where the dataset can tell it."""
        describe = getattr(self.dataset, "describe", None)
        if describe is None:
            return str(index)
        described = describe(index)
        return f"{index} ({described.get('id', described) if isinstance(described, dict) else described})"


def read_sample(dataset: Dataset, index: int, position: int) -> Any:
    """One sample, by (index, position) where the dataset knows positions."""
    if getattr(dataset, "takes_positions", False):
        return dataset[(index, position)]
    if type(dataset) is Subset:
        return read_sample(dataset.dataset, dataset.indices[index], position)
    if type(dataset) is ConcatDataset:
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return read_sample(dataset.datasets[part], index - before, position)
    return dataset[index]


def collate(samples: list[Any]) -> Any:
    """Stack samples to a batch, or pass on the first failure among them."""
    failures = [sample for sample in samples if isinstance(sample, SampleFailure)]
    return failures[0] if failures else default_collate(samples)


@dataclass
class Batch:
    """A micro-batch on the device, and where its samples come from."""

    data: Any
    keys: list[Key]

    @property
    def positions(self) -> list[int]:
        return [position for _, position in self.keys]

    @property
    def shape(self) -> tuple[int, ...] | str:
        """Shape of the first tensor in the batch."""
        data = self.data
        while isinstance(data, (dict, list, tuple)) and data:
            data = next(iter(data.values())) if isinstance(data, dict) else data[0]
        return tuple(data.shape) if isinstance(data, Tensor) else "unknown"


@contextmanager
def batches(
    dataset: Dataset, keys: Sequence[list[Key]] | PositionSampler, settings: TrainSettings, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """An iterator of Batch for each list of keys; its workers end with the block, even when they hang."""
    loader = DataLoader(
        KeyedDataset(dataset),
        batch_sampler=keys,
        num_workers=settings.workers,
        timeout=settings.loader_timeout if settings.workers else 0,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=shield_worker if settings.workers else None,
        generator=torch.Generator(),  # the loader draws a seed from it; the global generator stays untouched
    )
    before = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = set(multiprocessing.active_children()) - before
    try:
        try:
            yield (Batch(move(check(data), device), own) for data, own in zip(iterator, keys, strict=True))
        except (OSError, EOFError) as error:
            with without_alarm():  # a worker whose connection just broke gets a moment to be gone
                dead = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1)
            if dead:  # it broke off while it handed over a batch
                raise UserError(WORKER_DIED) from error
            raise
    except RuntimeError as error:  # torch's signal handler may raise it at any line above, the handler's too
        line = explain_loader(error)
        if line is None:
            raise
        raise UserError(line) from error
    finally:
        with without_alarm():
            for worker in workers:  # torch's own shutdown waits in vain for some when an error is on its way
                worker.kill()
                worker.join()


def check(data: Any) -> Any:
    """The batch itself; raises UserError for one with a sample that cannot be read."""
    if isinstance(data, SampleFailure):
        raise UserError(data.message)
    return data


def move(data: Any, device: torch.device) -> Any:
    """All tensors of nested dicts, lists and tuples on the device; anything else as it is."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: move(value, device) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(move(value, device) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(move(value, device) for value in data)
    return data


def shield_worker(worker: int) -> None:
    """Let the main process alone decide on signals that reach the whole process group or job.

    The first SIGTERM is ignored too, because a job manager sends it to all processes and the step that is being
    computed still needs its data; the next one, from the loader that clears up, ends the worker.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def without_alarm() -> Iterator[None]:
    """Keep torch's signal handler from raising when a worker ends, which is known or wanted here."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
