"""Batches on the device: the DataLoader with workers that behave when signals, hangs and crashes come."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.explain import WORKER_DIED, explain_loader
from training.sampler import Key, PositionSampler
from training.samples import KeyedDataset, SampleFailure, collate
from training.settings import TrainSettings
from videodata.errors import UserError


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
            if any_dead(workers):  # it broke off while it handed over a batch
                raise UserError(WORKER_DIED) from error
            raise
    except RuntimeError as error:  # torch's signal handler may raise it at any line above, the handler's too
        line = explain_loader(error)
        if line is None:
            raise
        raise UserError(line) from error
    finally:
        kill(workers)  # torch's own shutdown waits in vain for some workers when an error is on its way


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
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def any_dead(workers: Iterable[multiprocessing.Process]) -> bool:
    """Whether a worker has ended; one whose connection just broke gets a moment to be gone."""
    with without_alarm():
        # the sentinel is ready a moment before the system lists the process as dead
        return bool(multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1))


def kill(workers: Iterable[multiprocessing.Process]) -> None:
    """End workers; they hold nothing of value."""
    with without_alarm():
        for worker in workers:
            worker.kill()
            worker.join()


@contextmanager
def without_alarm() -> Iterator[None]:
    """Keep torch's signal handler from raising when a worker ends, which is known or wanted here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
