"""The learning rate as a function of the step alone, so that a checkpoint holds no scheduler."""

from __future__ import annotations

import math

import torch


def learning_rate_scale(step: int, total: int, warmup: int = 0, kind: str = "constant") -> float:
    """Factor on the base learning rate for optimiser step 0 .. total - 1.

    Linear warm-up over `warmup` steps, then constant, cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, one
    cycle to 0) or linear to 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return 1 - progress
    raise ValueError(f"unknown schedule {kind!r}")


def set_learning_rates(optimizer: torch.optim.Optimizer, base: list[float], scale: float) -> None:
    """Set each parameter group's learning rate to its base value times `scale`."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * scale
