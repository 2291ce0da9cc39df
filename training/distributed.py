"""Several processes as one run, on plain torch.distributed. Without torchrun there is one process and no group."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.device import resolve_device
from videodata.errors import UserError

logger = logging.getLogger(__name__)
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def join_processes(device: str, timeout: float = 600.0) -> torch.device:
    """Join the run's processes, once; gives this process's device. `training.cli.run` leaves them at the end."""
    setup(device, timeout)
    resolved = resolve_device(device, local_rank())
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    return resolved


def setup(device: str = "auto", timeout: float = 600.0) -> bool:
    """Create the process group that the launcher's variables describe; True if there is a new one.

    `timeout` seconds without a sign of another process are an error. Raises UserError for variables that are only
    half set and for an address that cannot be reached or is in use.
    """
    if dist.is_initialized() or not launched():
        return False
    cuda = resolve_device(device, int(os.environ["LOCAL_RANK"])).type == "cuda"
    try:
        patience = timedelta(seconds=timeout)
        store, number, world = meeting_place(patience)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=patience)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise UserError(f"processes cannot meet at {address} ({reason}); choose another port or address") from error
    if not is_main():
        logging.getLogger().setLevel(logging.WARNING)
    return True


def meeting_place(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The launcher's store, this process's rank and the number of processes.

    torchrun keeps one store over its restarts, with the addresses of the processes that are gone: each restart gets
    keys of its own. Only on one machine, because the agents of several machines may count restarts differently.
    """
    store, number, world = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store, number, world


def launched() -> bool:
    """Whether a launcher started this process. Raises UserError when only some of its variables are set."""
    missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name)]
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(missing):
        return False
    if missing:
        raise UserError(f"{', '.join(missing)} not set, but other launcher variables are: use torchrun, or unset them")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ[name].isdecimal():
            raise UserError(f"{name}={os.environ[name]} is not a number: use torchrun, or unset it")
    return True


def teardown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 .. world_size() - 1; the launcher's while there is no group yet."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files and the log."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        any_process(False)  # an all-reduce on the CPU, because nccl's own barrier guesses a device


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, a new tensor."""
    total = tensor.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def all_mean(tensor: Tensor) -> Tensor:
    """Mean over the processes, a new tensor."""
    return all_sum(tensor) / world_size()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes get the same answer and so take the same branch."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(int(flag))
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def print0(*values: object) -> None:
    """Print on the main process only."""
    if is_main():
        print(*values, flush=True)  # noqa: T201


def launch(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `world` forked processes that form a gloo group; gives what each returned.

    For tests: the processes meet through a file in `folder`, so that nothing collides over a port. Results are
    tensors and plain types. Import torch._dynamo before, or each process spends seconds on it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(
        _join_and_call, (world, folder, function, arguments), nprocs=world, daemon=True, start_method="fork"
    )
    return [torch.load(folder / f"result-{number}.pt", weights_only=True) for number in range(world)]


def _join_and_call(number: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world, number)
    torch.save(function(*arguments), folder / f"result-{number}.pt")
    dist.destroy_process_group()
