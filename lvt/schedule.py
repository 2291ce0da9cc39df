"""Learning-rate schedules of the original, as factors on the base rate per step."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch

from videodata.errors import UserError


def warmup(step: int, steps: int, factor: float, method: str) -> float:
    """Factor during the first `steps` steps: `factor` itself ("constant") or from it to 1 ("linear")."""
    if step >= steps:
        return 1.0
    return factor if method == "constant" else factor * (1 - step / steps) + step / steps


def learning_rate_factor(solver: dict[str, Any], step: int) -> float:
    """Factor on LR_G at optimiser step 0, 1, ... for a SOLVER node. Raises UserError for an unknown schedule."""
    name = solver["LR_SCHEDULER_NAME"]
    if name == "Identity":
        return 1.0
    start = warmup(step, solver["WARMUP_ITERS"], solver["WARMUP_FACTOR"], solver["WARMUP_METHOD"])
    if name == "WarmupMultiStepLR":
        return start * solver["GAMMA"] ** bisect_right(solver["STEPS"], step)
    if name == "WarmupCosineLR":
        return start * 0.5 * (1 + math.cos(math.pi * step / solver["MAX_ITER"]))
    raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: use Identity, WarmupMultiStepLR or WarmupCosineLR")


class ScheduledOptimizers:
    """Applies the schedule right before each step of an optimiser; `step` is set by the recipe."""

    def __init__(self, solver: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        learning_rate_factor(solver, 0)
        self.solver, self.step = solver, 0
        optimizer.register_step_pre_hook(self.scale)

    def scale(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Multiply the rates that the training loop has just set to their base values."""
        factor = learning_rate_factor(self.solver, self.step)
        for group in optimizer.param_groups:
            group["lr"] *= factor
