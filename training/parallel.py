"""Networks on several processes: replicated (DDP) or sharded (FSDP2), and whole again for a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training import distributed
from training.muon import Muon
from training.recipe import Recipe
from training.settings import TrainSettings
from videodata.errors import UserError

# The name that torch gave the option in later versions, where it has it.
BUFFER_SYNC = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


def replicate(network: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The network wrapped for all processes; the same object for one process or without trainable parameters."""
    if distributed.world_size() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=recipe.find_unused_parameters,
        **{BUFFER_SYNC: False},  # two forward passes per step would find their buffers changed in place
    )


def shard(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Shard the network in place: each module of a type in `recipe.shard_types` as one unit, the rest as another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with torch.no_grad():
        for value in network.state_dict().values():
            dist.broadcast(value, src=0)
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for module in reversed(list(network.modules())):  # the inner ones first, as FSDP2 wants it
        if module is not network and isinstance(module, recipe.shard_types):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for method in recipe.forward_methods:
        if hasattr(network, method):
            register_fsdp_forward_method(network, method)


def check_sharding(settings: TrainSettings, recipe: Recipe) -> None:
    """Raises UserError for what cannot be sharded."""
    if any(isinstance(optimizer, Muon) for optimizer in recipe.optimizers.values()):
        raise UserError("--fsdp divides the matrices that the optimizer muon needs whole: use another optimizer")
    if not dist.is_initialized():
        raise UserError("--fsdp needs several processes: start with torchrun --nproc-per-node N")
    if settings.precision == "fp16":
        raise UserError("--fsdp with --precision fp16 is not supported: use --precision bf16")


def shard_with_optimizers(
    networks: dict[str, nn.Module], recipe: Recipe, device: torch.device, optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Shard the networks and let the (still stateless) optimisers own the sharded parameters."""
    names = {id(p): (key, name) for key, network in networks.items() for name, p in network.named_parameters()}
    for network in networks.values():
        shard(network, recipe, device)
    sharded = {(key, name): p for key, network in networks.items() for name, p in network.named_parameters()}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]


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


def whole(value: Any) -> Any:
    """Nested state with each tensor complete, detached and on the CPU. All processes must call it when sharded."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(entry) for entry in value)
    return value


def like(value: Tensor, example: Tensor) -> Tensor:
    """A complete tensor, sharded as `example` is when that is sharded and has the same shape."""
    if isinstance(example, DTensor) and value.shape == example.shape:
        return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
    return value
