"""Solvers of stochastic differential equations dx = drift(x) dt + diffusion(x) * dW (Ito, diagonal noise)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flow_pred.brownian import BrownianPath
from videodata.errors import UserError

Field = Callable[[Tensor], Tensor]
MINIMUM_STEP = 1e-6


def euler_maruyama(drift: Field, diffusion: Field | None, x: Tensor, h: float, dw: Tensor | None) -> Tensor:
    """One step, weak order 1; dw: the Brownian increment, of the shape of x."""
    step = x + h * drift(x)
    return step if diffusion is None else step + diffusion(x) * dw


def heun(drift: Field, diffusion: Field | None, x: Tensor, h: float, dw: Tensor | None) -> Tensor:
    """One step: the drift averaged over both ends of the step, the noise amplitude at its start (Ito)."""
    f = drift(x)
    noise = 0 if diffusion is None else diffusion(x) * dw
    return x + h / 2 * (f + drift(x + h * f + noise)) + noise


METHODS = {"euler": euler_maruyama, "heun": heun}


def method_named(name: str) -> Callable[[Field, Field | None, Tensor, float, Tensor | None], Tensor]:
    """The step function of a fixed-step method. Raises UserError for an unknown one."""
    if name not in METHODS:
        raise UserError(f"unknown solver {name!r}: use one of {', '.join((*METHODS, 'adaptive'))}")
    return METHODS[name]


class AdaptiveEuler:
    """Euler-Maruyama with step doubling: a step and its two halves must agree to `atol` in the root mean square.

    Each sample has its own time and its own steps, so it does not depend on the rest of its batch.
    """

    SAFETY, SHRINK, GROW = 0.9, 0.2, 1.4

    def __init__(self, drift: Callable[[Tensor, Tensor], Tensor], diffusion: Field | None, atol: float) -> None:
        """drift(x, rows): rows are the numbers in the batch of the samples in x."""
        self.drift, self.diffusion, self.atol = drift, diffusion, atol

    def solve(self, x: Tensor, start: float, end: float, step: Tensor, path: BrownianPath | None) -> Tensor:
        """Integrate x (B, ...) from start to end; `step` (B,) is the step to try first and holds the next one after."""
        x, time = x.clone(), torch.full((len(x),), start, dtype=torch.float64)
        while (rows := (time < end - 1e-9).nonzero().flatten()).numel():
            h = torch.minimum(step[rows], end - time[rows])
            new, error = self.trial(x[rows], rows, time[rows], h, path)
            accepted = (error <= 1) | (h <= MINIMUM_STEP)
            x[rows[accepted].to(x.device)] = new[accepted.to(x.device)]
            time[rows] += torch.where(accepted, h, 0)
            step[rows] = self.next_step(h, error, accepted, step[rows])
        return x

    def trial(
        self, x: Tensor, rows: Tensor, time: Tensor, h: Tensor, path: BrownianPath | None
    ) -> tuple[Tensor, Tensor]:
        """The result of two half steps, and its distance from that of one whole step in units of atol, (b,)."""
        shape = (-1, *[1] * (x.ndim - 1))
        half = (h / 2).to(x).view(shape)
        first, second = (None, None) if path is None else path.halves(rows, time, h)
        f = self.drift(x, rows)
        middle, whole = x + half * f, x + 2 * half * f
        if self.diffusion is not None:
            g = self.diffusion(x)
            middle, whole = middle + g * first, whole + g * (first + second)
        new = middle + half * self.drift(middle, rows)
        if self.diffusion is not None:
            new = new + self.diffusion(middle) * second
        error = (new - whole).flatten(1).double().square().mean(1).sqrt() / self.atol
        return new, error.cpu()

    def next_step(self, h: Tensor, error: Tensor, accepted: Tensor, tried: Tensor) -> Tensor:
        """Step sizes to try next: larger after success, smaller after failure.

        A step that was only cut off by the end of the interval does not shrink the following ones.
        """
        order = torch.where(accepted, 1 / 4.5, 1 / 1.5)
        factor = (self.SAFETY / error.clamp_min(1e-12)).pow(order).clamp(self.SHRINK, self.GROW)
        grown = torch.maximum(h * factor.clamp_min(1), tried)
        return torch.where(accepted, grown, (h * factor).clamp_min(MINIMUM_STEP))
