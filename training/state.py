"""Everything that a run carries from step to step, its averaged weights among it, and its form in a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import distributed
from training.checkpoint import strict_load
from training.optim import Muon
from training.recipe import Recipe
from training.settings import TrainSettings
from videodata.errors import UserError


@dataclass
class TrainState:
    """The networks (bare, wrapped and averaged), the optimisers and the counters of a run."""

    recipe: Recipe
    networks: dict[str, nn.Module]  # bare
    wrapped: dict[str, nn.Module]  # as the recipe's losses call them
    averaged: AveragedWeights
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    groups: dict[str, list[dict[str, Any]]]  # the optimisers' hyper-parameters as the recipe set them
    sharded: bool
    step: int = 0  # optimiser steps taken, skipped ones included
    samples_seen: int = 0
    bad_steps: int = 0  # non-finite steps in a row
    skipped_steps: int = 0  # in the whole run
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    metrics_step: int = -1  # when that was

    def collect(self, whole: bool = True) -> dict[str, Any]:
        """The state as plain types and tensors: complete ones on the CPU, or, of sharded networks, this process's own.

        All processes must call it when the networks are sharded; the main one alone gets the complete tensors.
        """
        form = distributed.whole if whole else (lambda value: value)
        return {
            "recipe": self.recipe.name,
            "step": self.step,
            "samples_seen": self.samples_seen,
            "bad_steps": self.bad_steps,
            "skipped_steps": self.skipped_steps,
            "optimizers": {name: form(opt.state_dict()) for name, opt in self.optimizers.items()},
            "ema_updates": self.averaged.updates,
            "scaler": self.scaler.state_dict(),
            "metrics": dict(self.metrics),
            "metrics_step": self.metrics_step,
            **form(self.weights()),
        }

    def weights(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """The trained and the averaged weights, as they are in this process."""
        return {
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "ema": {name: net.state_dict() for name, net in self.averaged.networks.items()},
        }

    def examples(self) -> Callable[[tuple[Any, ...]], Tensor | None]:
        """A function of the place of an entry in a checkpoint: the tensor of this run that it becomes, or is like."""
        networks = self.weights()
        parameters = {
            name: [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for name, optimizer in self.optimizers.items()
        }

        def example(key: tuple[Any, ...]) -> Tensor | None:
            match key:
                case "optimizers", name, "state", number, _ if number in range(len(parameters.get(name, ()))):
                    return parameters[name][number]
                case kind, name, entry:
                    return networks.get(kind, {}).get(name, {}).get(entry)
            return None

        return example

    def load(self, checkpoint: dict[str, Any], source: object) -> None:
        """Take over a checkpoint. Raises UserError for one that does not fit."""
        for kind, networks in (("networks", self.networks), ("ema", self.averaged.networks)):
            stored = checkpoint[kind]
            if kind == "ema" and not stored:
                stored = {name: checkpoint["networks"][name] for name in networks}  # averaging starts from here
            for name, network in networks.items():
                if name not in stored:
                    raise UserError(f"{source}: holds no network {name!r}, only {', '.join(stored)}")
                strict_load(network, stored[name], f"{source} ({kind}.{name})")
        for name, optimizer in self.optimizers.items():
            self.load_optimizer(name, optimizer, checkpoint["optimizers"].get(name), source)
        self.averaged.updates = checkpoint["ema_updates"]
        if checkpoint["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint["scaler"])
        for counter in ("step", "samples_seen", "bad_steps", "skipped_steps", "metrics", "metrics_step"):
            setattr(self, counter, checkpoint[counter])

    def load_optimizer(self, name: str, optimizer: torch.optim.Optimizer, stored: Any, source: object) -> None:
        """Take over an optimiser's moments; its hyper-parameters stay those of the recipe."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if stored is None or [len(group["params"]) for group in stored["param_groups"]] != sizes:
            raise UserError(f"{source}: its state of optimiser {name!r} belongs to other parameters; start a new run")
        state = {
            number: {
                key: distributed.like(value, parameters[number]) if isinstance(value, Tensor) else value
                for key, value in entries.items()
            }
            for number, entries in stored["state"].items()
        }
        # with the recipe's already: where `fused` says so, torch brings the counts of steps to the device
        groups = [{**old, **own} for old, own in zip(stored["param_groups"], self.groups[name], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the trained and the averaged weights, of which sharded ones
        are gathered one by one: all processes must call it then.
        """
        return weights_digest(self.weights())


class AveragedWeights:
    """The averages of the networks that the recipe names in `ema_networks`; nothing at decay 0."""

    def __init__(self, recipe: Recipe, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"--ema {decay}: the decay must be at least 0 and below 1")
        if decay and not recipe.ema_networks:
            raise UserError(f"--ema {decay}: recipe {recipe.name} has no network to average; use --ema 0")
        names = recipe.ema_networks if decay else ()
        self.models = {
            name: AveragedModel(recipe.networks[name], multi_avg_fn=get_ema_multi_avg_fn(decay)) for name in names
        }
        for model in self.models.values():
            model.requires_grad_(False).eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: model.module for name, model in self.models.items()}

    @torch.no_grad()
    def update(self, networks: dict[str, nn.Module]) -> None:
        """Take in the networks' weights after an applied step."""
        for name, model in self.models.items():
            model.update_parameters(networks[name])

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return max((int(model.n_averaged) for model in self.models.values()), default=0)

    @updates.setter
    def updates(self, number: int) -> None:
        for model in self.models.values():
            model.n_averaged.fill_(number)


def build_state(recipe: Recipe, settings: TrainSettings, device: torch.device) -> TrainState:
    """Move the recipe to the device and prepare its networks for all processes."""
    for module in recipe.frozen:
        module.to(device).eval().requires_grad_(False)
    for network in recipe.networks.values():
        network.train()
        if not settings.fsdp:  # which brings one unit after the other to the device
            network.to(device)
    owned = {id(p) for optimizer in recipe.optimizers.values() for g in optimizer.param_groups for p in g["params"]}
    for network in recipe.networks.values():
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in owned)  # processes would wait for the gradients of the others
    for optimizer in recipe.optimizers.values():
        if isinstance(optimizer, Muon) and optimizer.half is None:
            optimizer.half = settings.precision == "bf16"
    # What the optimisers took over from a file waits until their parameters are in place.
    moments = {name: optimizer.state_dict() for name, optimizer in recipe.optimizers.items() if optimizer.state}
    for name in moments:
        recipe.optimizers[name].state.clear()
    averaged = AveragedWeights(recipe, settings.ema)
    if settings.fsdp:
        distributed.check_sharding(settings, recipe)
        mesh = distributed.mesh_of(settings.replicas, device)
        distributed.shard_with_optimizers(recipe.networks, recipe, mesh, recipe.optimizers)
        distributed.shard_with_optimizers(averaged.networks, recipe, mesh, {})
    bare = dict(recipe.networks)
    wrapped = (
        bare if settings.fsdp else {name: distributed.replicate(net, recipe, device) for name, net in bare.items()}
    )
    if settings.compile:
        for network in wrapped.values():
            network.compile()
    state = TrainState(
        recipe=recipe,
        networks=bare,
        wrapped=wrapped,
        averaged=averaged,
        optimizers=recipe.optimizers,
        scaler=torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16"),
        groups={
            name: [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            for name, optimizer in recipe.optimizers.items()
        },
        sharded=settings.fsdp and distributed.world_size() > 1,
    )
    for name, stored in moments.items():
        state.load_optimizer(name, recipe.optimizers[name], stored, "the model to start from")
    return state


def weights_digest(state: dict[str, Any]) -> str:
    """SHA-256 over the sorted names, types, shapes and bytes of nested tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten(state), key=lambda entry: entry[0]):
        value = value.full_tensor() if distributed.is_sharded(value) else value
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def flatten(state: dict[str, Any], prefix: str = "") -> list[tuple[str, Tensor]]:
    """(dotted name, tensor) of nested dictionaries."""
    entries = []
    for key, value in state.items():
        if isinstance(value, dict):
            entries += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            entries.append((f"{prefix}{key}", value))
    return entries
