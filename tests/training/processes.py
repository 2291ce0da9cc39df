"""A function in several processes that work as one run, for the tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict  # here once, and not in each forked process
import torch.distributed.fsdp
import torch.utils.tensorboard

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


def launched(function: Callable[..., Any], world: int, *arguments: Any) -> list[int]:
    """Exit statuses of `function(*arguments)` in processes that are started as torchrun starts them."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = torch.multiprocessing.get_context(START)
    started = [context.Process(target=_with_rank, args=(rank, shared, function, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def status_of(function: Callable[..., Any], *arguments: Any) -> int:
    """The exit status of `function(*arguments)` in a process of its own; the negative number of a signal."""
    process = torch.multiprocessing.get_context(START).Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _with_rank(rank: int, shared: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    function(*arguments)


def _join_and_call(number: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world, number)
    torch.save(function(*arguments), folder / f"result-{number}.pt")
    dist.destroy_process_group()
