"""A function in several processes that work as one run, for the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

START = "fork" if hasattr(os, "fork") else "spawn"  # of the processes of tests; forked ones need not import again


def launch(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `world` processes that form a gloo group; gives what each returned.

    The processes meet through a file in `folder`, so that nothing collides over a port. Results are tensors and plain
    types. Import torch._dynamo before, or each process spends seconds on it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(
        _join_and_call, (world, folder, function, arguments), nprocs=world, daemon=True, start_method=START
    )
    return [torch.load(folder / f"result-{number}.pt", weights_only=True) for number in range(world)]


def _join_and_call(number: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world, number)
    torch.save(function(*arguments), folder / f"result-{number}.pt")
    dist.destroy_process_group()
