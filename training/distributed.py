"""Several processes as one run, on plain torch.distributed: devices, votes and sums over the processes, networks that
are replicated (DDP) or sharded (FSDP2) and whole again for a checkpoint. Without torchrun there is one process.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.optim import Muon, fusible
from training.recipe import Recipe
from training.settings import TrainSettings
from videodata.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")
ABSENT = object()
MEMORY, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The name that torch gave the option in later versions, where it has it.
BUFFER_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


def join_processes(device: str, timeout: float = 600.0) -> torch.device:
    """Join the run's processes, once; gives this process's device. `training.cli.run` leaves them at the end."""
    setup(device, timeout)
    resolved = resolve_device(device, local_rank())
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    return resolved


def announced(device: torch.device) -> torch.device:
    """The device, of which a command that trains nothing says in its first line that it computes there."""
    if is_main():
        logger.info("%s", described(device))
    return device


def described(device: torch.device) -> str:
    """Where this run computes: the device of this process, and how many processes there are."""
    return f"{device}, {'1 process' if world_size() == 1 else f'{world_size()} processes'}"


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """auto (cuda if there is one, else cpu), cpu, cuda or cuda:N as a torch.device.

    With several processes per machine, `auto` and `cuda` give each its own GPU, number `local_rank`.
    Raises UserError for a GPU that is not there and for an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"--device {name}: only cpu and cuda are supported; use --device cpu")
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no usable GPU on this machine; use --device cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: GPU {index} asked for, but there are {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def free_memory(device: torch.device) -> int | None:
    """Bytes of memory that this process can still take for tensors there; None where the system does not say (only
    Linux does, of a CPU's). Processes of one machine share what it has.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = number_after("MemAvailable:", MEMORY) * 1024
    except (OSError, ValueError):
        return None
    with suppress(OSError, ValueError):  # a container has less, and counts files that it has read as its own
        cached = number_after("inactive_file", CONTAINER / "memory.stat")
        limit, used = (int((CONTAINER / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used + cached))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def number_after(word: str, path: Path) -> int:
    """The number behind a word at the start of a line. Raises ValueError where there is none."""
    for line in path.read_text(encoding="ascii").splitlines():
        first, _, rest = line.partition(" ")
        if first == word:
            return int(rest.split()[0])
    raise ValueError(f"{path}: no {word}")


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


def rank() -> int:
    """Number of this process, 0 .. world_size() - 1; the launcher's while there is no group yet."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files and the log."""
    return rank() == 0


def barrier() -> None:
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


def mean_of_processes(tensor: Tensor) -> Tensor:
    """Mean over the processes through which gradients flow, where that of `all_mean` stops them."""
    if world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor) / world_size()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes get the same answer and so take the same branch."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(int(flag))
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def first_found(own: Entry | None) -> Entry | None:
    """What the first process that has something has; the same in all processes."""
    found: list[Entry | None] = [None] * world_size()
    dist.all_gather_object(found, own)
    return next((entry for entry in found if entry is not None), None)


def all_agree(own: Any) -> bool:
    """Whether all processes have an equal value."""
    if world_size() == 1:
        return True
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, own)
    return all(value == own for value in values)


def gather_batches(own: list[Entry]) -> list[Entry]:
    """The entries of all batches in their order: number b is entry b // processes of process b % processes."""
    if world_size() == 1:
        return list(own)
    parts: list[list[Entry]] = [[]] * world_size()
    dist.all_gather_object(parts, own)
    rounds = zip_longest(*parts, fillvalue=ABSENT)
    return [entry for entry in chain.from_iterable(rounds) if entry is not ABSENT]


def print0(*values: object) -> None:
    """Print on the main process only."""
    if is_main():
        print(*values, flush=True)  # noqa: T201


def replicate(network: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The network wrapped for all processes; the same object for one process or without trainable parameters."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=recipe.find_unused_parameters,
        **{BUFFER_SYNC: False},  # two forward passes per step would find their buffers changed in place
    )


def shard(network: nn.Module, recipe: Recipe, mesh: DeviceMesh) -> None:
    """Shard the network in place: each module of a type in `recipe.shard_types` as one unit, the rest as another.

    The values are those of the main process, of which the others get their shards; their own networks may be on the
    meta device. No device ever holds the whole network.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    values = network.state_dict() if is_main() else {}
    for module in reversed(list(network.modules())):  # the inner ones first, as FSDP2 wants it
        if module is not network and isinstance(module, recipe.shard_types):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else "cpu"
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        network.to_empty(device=device)
    network.to(device)
    set_model_state_dict(network, values, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    with torch.no_grad():
        for buffer in network.buffers():  # also those that no state dict has
            dist.broadcast(buffer, src=0)
    for method in recipe.forward_methods:
        if hasattr(network, method):
            register_fsdp_forward_method(network, method)


def mesh_of(replicas: int, device: torch.device) -> DeviceMesh:
    """All processes in a row, which divide the networks; or `replicas` rows, each of which divides a copy (HSDP)."""
    from torch.distributed.device_mesh import init_device_mesh

    if replicas == 1:
        return init_device_mesh(device.type, (world_size(),))
    return init_device_mesh(device.type, (replicas, world_size() // replicas), mesh_dim_names=("replicate", "shard"))


@contextmanager
def made_on_main(sharded: bool) -> Iterator[None]:
    """Networks that are made in the block have values in the main process alone, if they will be sharded: the others
    make them on the meta device, without memory, and get their shards from it. For code that looks at no values.
    """
    with torch.device("meta") if sharded and not is_main() else nullcontext():
        yield


def check_sharding(settings: TrainSettings, recipe: Recipe) -> None:
    """Raises UserError for what cannot be sharded."""
    if any(isinstance(optimizer, Muon) for optimizer in recipe.optimizers.values()):
        raise UserError("--fsdp divides the matrices that the optimizer muon needs whole: use another optimizer")
    if not dist.is_initialized():
        raise UserError("--fsdp needs several processes: start with torchrun --nproc-per-node N")
    if settings.precision == "fp16":
        raise UserError("--fsdp with --precision fp16 is not supported: use --precision bf16")
    if world_size() % settings.replicas:
        raise UserError(
            f"--replicas {settings.replicas}: {world_size()} processes cannot be divided into so many groups"
        )


def shard_with_optimizers(
    networks: dict[str, nn.Module], recipe: Recipe, mesh: DeviceMesh, optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Shard the networks and let the (still stateless) optimisers own the sharded parameters."""
    names = {id(p): (key, name) for key, network in networks.items() for name, p in network.named_parameters()}
    for network in networks.values():
        shard(network, recipe, mesh)
    sharded = {(key, name): p for key, network in networks.items() for name, p in network.named_parameters()}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
            if group.get("fused") is not None:  # it was False of parameters on the meta device: all must step alike
                group["fused"] = fusible([group])


@contextmanager
def gradient_exchange(network: nn.Module, exchange: bool) -> Iterator[None]:
    """Exchange the gradients of backward passes in the block over the processes, or only add them up locally."""
    if isinstance(network, DistributedDataParallel) and not exchange:
        with network.no_sync():
            yield
        return
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2 mixes this method into the class
        network.set_requires_gradient_sync(exchange)
    yield


def is_sharded(value: Any) -> bool:
    """Whether this is one process's part of a sharded tensor, a DTensor.

    Asked by a method that only these have: their module takes seconds to import, and one process shards nothing.
    """
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(value: Any) -> Any:
    """Nested state with each tensor complete, detached and on the CPU.

    All processes must call it when some are sharded; then only the main one keeps those, the others get meta tensors.
    """
    if is_sharded(value):
        value = value.detach().full_tensor()
        return value.cpu() if is_main() else value.to("meta")
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(entry) for entry in value)
    return value


def like(value: Tensor, example: Tensor) -> Tensor:
    """A complete tensor, sharded as `example` is when that is sharded and has the same shape."""
    if is_sharded(example) and not is_sharded(value) and value.shape == example.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
    return value


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite, in any process; all must ask of a sharded tensor."""
    own = value.to_local() if is_sharded(value) else value
    bad = own.is_floating_point() and not bool(own.isfinite().all())
    return not (any_process(bad) if is_sharded(value) else bad)
