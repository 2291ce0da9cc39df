"""Adaptive sampling of the neural SDE as the original does it: the side that benchmarks/flow_pred.py measures against.

One step size for the whole batch, a whole step against two halves, three evaluations of drift and of diffusion per
trial and one more per frame to set up, linear interpolation where an output time lies within a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flow_pred.latents import at_rest
from flow_pred.neural_sde import BrownianPath, NeuralSDE
from training.randomness import SampleNoise

SAFETY, SHRINK, GROW, SMALLEST = 0.9, 0.2, 1.4, 1e-10


@torch.no_grad()
def sample_as_the_original(
    sde: NeuralSDE, context: Tensor, frames: int, outputs: int = 1, atol: float = 1e-2, seed: int = 0
) -> Tensor:
    """Latents (B, n, C, H, W), n >= K -> (B, n + frames * outputs, C, H, W)."""
    known, latents, noise = context[:, -sde.num_input_frames :], [context], SampleNoise(seed, range(len(context)))
    with at_rest(sde.flow, sde.denoiser, sde.log_amplitude):
        for _ in range(frames):
            newest = torch.stack(interval(sde, known, outputs, atol, noise), dim=1)
            latents.append(newest)
            known = torch.cat([known[:, 1:], newest[:, -1:]], dim=1)
    return torch.cat(latents, dim=1)


def interval(sde: NeuralSDE, known: Tensor, outputs: int, atol: float, noise: SampleNoise) -> list[Tensor]:
    """The newest frame (B, C, H, W) at each output time of one frame interval."""
    path = None if sde.log_amplitude is None else BrownianPath(noise, known.shape[1:])
    evaluate(sde, known, known)  # the set-up call, whose result is only looked at for its shape
    before, time_before, state, time, step, last_ratio, found = known, 0.0, known, 0.0, 1.0, None, []
    for number in range(1, outputs + 1):
        while time < number / outputs - 1e-12:
            end = min(time + step, 1.0)
            new, error = trial(sde, state, known, time, end - time, atol, path)
            accepted = error <= 1 or end - time <= SMALLEST
            step, last_ratio = next_step(end - time, error, accepted, last_ratio)
            if accepted:
                before, time_before, state, time = state, time, new, end
        share = (number / outputs - time_before) / (time - time_before)
        found.append(torch.lerp(before[:, -1], state[:, -1], share))
    return found


def evaluate(sde: NeuralSDE, state: Tensor, known: Tensor) -> tuple[Tensor, Tensor | None]:
    """Drift and diffusion of a state (B, K, C, H, W)."""
    return sde.drift(state, known), None if sde.log_amplitude is None else sde.diffusion(state)


def trial(
    sde: NeuralSDE, state: Tensor, known: Tensor, time: float, h: float, atol: float, path: BrownianPath | None
) -> tuple[Tensor, float]:
    """Two half steps, and how far one whole step is from them over the whole batch, in units of atol."""

    def euler(x: Tensor, length: float, dw: Tensor | None) -> Tensor:
        drift, diffusion = evaluate(sde, x, known)
        return x + length * drift if diffusion is None else x + length * drift + diffusion * dw

    first = second = together = None
    if path is not None:
        rows = torch.arange(len(state))
        first, second = path.halves(rows, torch.full((len(state),), time).double(), torch.full((len(state),), h))
        together = first + second
    whole = euler(state, h, together)
    new = euler(euler(state, h / 2, first), h / 2, second)
    return new, float((new - whole).square().mean().sqrt() / atol)


def next_step(h: float, error: float, accepted: bool, last_ratio: float | None) -> tuple[float, float]:
    """The step to try next, and the ratio that the step after it looks back at."""
    ratio = SAFETY / max(error, 1e-12)
    order, memory = (1 / 4.5, 0.13) if accepted else (1 / 1.5, 0.0)
    last_ratio = last_ratio or ratio
    factor = ratio**order * (ratio / last_ratio) ** memory
    return h * min(GROW, max(1.0 if accepted else SHRINK, factor)), ratio if accepted else last_ratio
