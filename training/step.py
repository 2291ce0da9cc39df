"""One optimiser step: micro-batches, one phase per optimiser, and a guard that all processes obey."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from training import distributed
from training.cli import NonFiniteAbort
from training.data import Batch
from training.optim import learning_rate_scale
from training.randomness import SampleNoise, derive_seed, seed_everything
from training.recipe import Losses, Step
from training.settings import TrainSettings
from training.state import TrainState

logger = logging.getLogger(__name__)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MINIMUM_SCALE = 1.0  # fp16: below this loss scale the gradients themselves overflow
CLIP_EPSILON = 1e-6  # that of clip_grads_with_norm_
MISSING = object()


@dataclass
class Update:
    """What one optimiser step did. Scalars are this process's, still on the device."""

    applied: bool = True
    scalars: dict[str, Tensor] = field(default_factory=dict)
    keys: list[tuple[int, int]] = field(default_factory=list)  # (index, position) of this process's samples


class Updater:
    """Turns batches into optimiser steps on a TrainState."""

    def __init__(self, state: TrainState, settings: TrainSettings, device: torch.device) -> None:
        self.state = state
        self.settings = settings
        self.device = device
        self.owned = {name: set(parameters_of(optimizer)) for name, optimizer in state.optimizers.items()}
        self.trainable = set().union(*self.owned.values())
        self.batch_shape: tuple[int, ...] | str = "unknown"  # of the last micro-batch, for the report of an error
        self.buffers = persistent_buffers(state.networks.values())

    def step(self, batches: Iterator[Batch]) -> Update:
        """Take the next micro-batches, compute all gradients and apply them if all of them are finite.

        Raises NonFiniteAbort after `max_bad_steps` non-finite steps in a row.
        """
        update = Update()
        before = [buffer.detach().clone() for buffer in self.buffers]
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        active = self.accumulate(batches, update)
        norms = self.gradient_norms(active)
        update.scalars |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
        update.applied = self.accept(update, norms)
        if update.applied:
            self.apply(active, norms)
        else:
            with torch.no_grad():
                for buffer, value in zip(self.buffers, before, strict=True):
                    buffer.copy_(value)
            self.state.skipped_steps += 1
        if self.state.scaler.is_enabled() and active:
            self.state.scaler.update()
        if distributed.world_size() > 1 and self.buffers:
            copy_from_main(self.buffers)
        if update.applied:
            self.state.averaged.update(self.state.networks)
        return update

    def accumulate(self, batches: Iterator[Batch], update: Update) -> list[str]:
        """Gradients of all micro-batches; gives the names of the optimisers that got a loss."""
        active: dict[str, None] = {}
        count = self.settings.accumulation
        for micro in range(count):
            batch = next(batches)
            update.keys += batch.keys
            self.batch_shape = batch.shape
            # After the fetch: starting the loader may draw from the global generators.
            seed_everything(derive_seed(self.settings.seed, "step", self.state.step, distributed.rank(), micro))
            for name, losses in self.phases(batch, last=micro == count - 1):
                if losses is None:
                    continue
                active[name] = None
                terms = {f"loss/{name}": losses.total, **{f"train/{term}": v for term, v in losses.terms.items()}}
                for term, value in terms.items():
                    share = torch.as_tensor(value, device=self.device).detach().float().mean() / count
                    update.scalars[term] = update.scalars[term] + share if term in update.scalars else share
                self.state.scaler.scale(losses.total / count).backward()
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        return list(active)

    def phases(self, batch: Batch, last: bool) -> Iterator[tuple[str, Losses | None]]:
        """(optimiser, losses) in turn; each backward pass belongs between two items."""
        losses = self.state.recipe.losses(batch.data, self.describe(batch), self.state.wrapped)
        for name in self.state.optimizers:
            with self.phase(name, exchange=last):
                with autocast(self.settings, self.device):
                    item = next(losses, MISSING)
                if item is MISSING:
                    raise RuntimeError(f"{type(self.state.recipe).__name__}.losses yields nothing for {name!r}")
                yield name, item
        if next(losses, MISSING) is not MISSING:
            raise RuntimeError(f"{type(self.state.recipe).__name__}.losses yields more often than it has optimisers")

    @contextmanager
    def phase(self, name: str, exchange: bool) -> Iterator[None]:
        """Only this optimiser's parameters require gradients, and only their networks exchange them."""
        if len(self.owned) > 1:
            for parameter in self.trainable:
                parameter.requires_grad_(parameter in self.owned[name])
        with ExitStack() as stack:
            for network in self.state.wrapped.values():
                trained = any(parameter in self.owned[name] for parameter in network.parameters())
                stack.enter_context(distributed.gradient_exchange(network, exchange and trained))
            yield

    def describe(self, batch: Batch) -> Step:
        noise = SampleNoise(self.settings.seed, batch.positions, self.device)
        return Step(self.state.step, self.settings.steps, noise, self.device)

    def gradient_norms(self, active: list[str]) -> dict[str, Tensor]:
        """Norm of each active optimiser's gradients, before clipping and without the fp16 loss scale."""
        norms = {}
        for name in active:
            if self.state.scaler.is_enabled():
                self.state.scaler.unscale_(self.state.optimizers[name])
            gradients = [p.grad for p in parameters_of(self.state.optimizers[name]) if p.grad is not None]
            norm = get_total_norm(gradients)
            norms[name] = norm.full_tensor() if distributed.is_sharded(norm) else norm
        return norms

    def accept(self, update: Update, norms: dict[str, Tensor]) -> bool:
        """Whether to apply the step; the same answer in all processes."""
        bad = []
        if update.scalars:
            finite = torch.stack([value.isfinite() for value in update.scalars.values()]).tolist()  # one device sync
            bad = [name for name, good in zip(update.scalars, finite, strict=True) if not good]
        if not any(name.startswith(("loss/", "grad_norm/")) for name in bad):
            bad = []  # a term that is only logged
        if distributed.any_process(bool(bad)):
            self.refuse(bad, update)
            return False
        self.state.bad_steps = 0
        limit = self.settings.skip_grad_norm
        large = [name for name, norm in norms.items() if limit and norm > limit]
        if distributed.any_process(bool(large)):
            logger.warning("step %d skipped: gradient norm of %s above %g", self.state.step, ", ".join(large), limit)
            return False
        return True

    def refuse(self, bad: list[str], update: Update) -> None:
        """Report a non-finite step, count it, and give up when there are too many in a row."""
        names = ", ".join(bad) or "a value of another process"
        losses_finite = not distributed.any_process(any(not name.startswith("grad_norm/") for name in bad))
        if self.state.scaler.is_enabled() and losses_finite and self.state.scaler.get_scale() > MINIMUM_SCALE:
            logger.info("step %d skipped: fp16 overflow in %s, loss scale is lowered", self.state.step, names)
            return
        samples = ", ".join(f"{index} at {position}" for index, position in update.keys)
        self.state.bad_steps += 1
        logger.warning(
            "step %d skipped: %s not finite (%d in a row); samples (index at position): %s",
            self.state.step, names, self.state.bad_steps, samples,
        )  # fmt: skip
        if self.state.bad_steps >= self.settings.max_bad_steps:
            raise NonFiniteAbort(
                f"{names} not finite in {self.state.bad_steps} steps in a row, the last one step {self.state.step}; "
                "lower the learning rate or look at the samples named in train.log"
            )

    def apply(self, active: list[str], norms: dict[str, Tensor]) -> None:
        """Clip, set the learning rates, and let each active optimiser step."""
        s = self.settings
        for name in active:
            optimizer = self.state.optimizers[name]
            for group, start in zip(optimizer.param_groups, self.state.groups[name], strict=True):
                group["lr"] = start["lr"] * learning_rate_scale(
                    self.state.step, s.steps, s.warmup_steps, s.schedule, warmup=s.warmup, warmup_start=s.warmup_start,
                    milestones=s.milestones, gamma=s.gamma, final_rate=s.final_rate, base=start["lr"] or 1.0,
                )  # fmt: skip
            if s.clip > 0 and self.divides(optimizer):
                divided_step(optimizer, ((norms[name] + CLIP_EPSILON) / s.clip).clamp(min=1.0))
                continue
            if s.clip > 0:
                clip_grads_with_norm_(parameters_of(optimizer), s.clip, norms[name])
            self.state.scaler.step(optimizer)

    def divides(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimiser can clip by itself: all is fused, and neither sharded nor scaled already for fp16."""
        fused = all(group.get("fused") for group in optimizer.param_groups)
        sharded = any(distributed.is_sharded(parameter) for parameter in parameters_of(optimizer))
        return fused and not sharded and not self.state.scaler.is_enabled()


def divided_step(optimizer: torch.optim.Optimizer, divisor: Tensor) -> None:
    """A step of a fused optimiser with gradients divided by a scalar on the way, which saves a pass over them."""
    if divisor.device.type == "cpu" and divisor == 1:
        optimizer.step()  # without even writing them back
        return
    optimizer.grad_scale = divisor  # where torch's own GradScaler puts the scale that is to be taken away
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale


def decided(precision: str, device: torch.device) -> str:
    """The precision, of which `auto` is bf16 where the device multiplies it in hardware, else fp32.

    Those are GPUs that torch calls capable of it, and CPUs with AVX-512 BF16 or AMX, of which torch has no public name.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """The precision of the forward passes, in training and in evaluation."""
    dtype = HALF.get(settings.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def persistent_buffers(networks: Iterable[nn.Module]) -> list[Tensor]:
    """The buffers that are part of the networks' state dicts."""
    buffers = []
    for network in networks:
        saved = set(network.state_dict(keep_vars=True))
        buffers += [buffer for name, buffer in network.named_buffers() if name in saved]
    return buffers


@torch.no_grad()
def copy_from_main(buffers: list[Tensor]) -> None:
    """Give all processes the main process's values: those are the ones that a checkpoint holds."""
    for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
        alike = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.reshape(-1) for buffer in alike])
        dist.broadcast(flat, src=0)
        for buffer, values in zip(alike, flat.split([buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(values.view_as(buffer))
