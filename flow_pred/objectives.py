"""What RIVER and the flow, denoiser and diffusion of the neural SDE learn: the draws of frames, times and noise, the
targets there, and the losses, one value per sample (B,); the training loss is their mean.

Axes: B batch, N frames of a clip, K frames of a state, C H W one latent frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flow_pred.latents import below
from training.randomness import SampleNoise

DESINGULARISATION = 1e-3  # delta of the flow's log loss
FLOOR = 1e-6  # keeps the logarithm of a residual finite


class RiverDraw(NamedTuple):
    """Which frames a RIVER step trains on, and where on the path."""

    target: Tensor  # (B,) frame to generate, in 2 .. N - 1
    condition: Tensor  # (B,) frame to look back at, in 0 .. target - 2
    noise: Tensor  # (B, C, H, W)
    time: Tensor  # (B,) in [0, 1)

    @property
    def frames(self) -> Tensor:
        """Indices (B, 3) of target, reference and condition."""
        return torch.stack([self.target, self.target - 1, self.condition], dim=1)

    @property
    def distance(self) -> Tensor:
        """Frames (B,) between reference and condition, at least 1."""
        return self.target - 1 - self.condition


class StateDraw(NamedTuple):
    """Which interval a step of the neural SDE trains on, where in it, and the perturbation in units of noise_std; and
    the same of a RIVER that sees the last K frames.
    """

    target: Tensor  # (B,) frame at the end of the interval, in K .. N - 1
    time: Tensor  # (B,) in [0, 1)
    noise: Tensor  # (B, K * C, H, W), standard normal; for RIVER (B, C, H, W), where its path starts

    def frames(self, count: int, ahead: int = 1) -> Tensor:
        """Indices (B, K + ahead) of the K frames before the target, of the target itself, and of those after it."""
        return self.target[:, None] + torch.arange(-count, ahead, device=self.target.device)


class StateTarget(NamedTuple):
    """A perturbed state and what can be learned there."""

    state: Tensor  # (B, K * C, H, W), perturbed
    velocity: Tensor  # (B, C, H, W) of the newest frame
    perturbation: Tensor  # (B, K * C, H, W)


def draw_river(noise: SampleNoise, frames: int, shape: tuple[int, ...], start_share: float = 0.0) -> RiverDraw:
    """Draw for clips of `frames` frames with latents of `shape` (C, H, W)."""
    target = 2 + noise.integers(frames - 2)
    condition = below(noise.uniform(), target - 1)
    return RiverDraw(target, condition, noise.normal(*shape), times_of(noise.uniform(), start_share))


def draw_state(
    noise: SampleNoise,
    frames: int,
    count: int,
    shape: tuple[int, ...],
    start_share: float = 0.0,
    noisy: int | None = None,
    ahead: int = 1,
) -> StateDraw:
    """Draw for clips of `frames` frames, states of `count` of them, with latents of `shape` (C, H, W).

    noisy: how many frames get noise; default: those of the state. ahead: frames from the target on that are there.
    """
    channels, height, width = shape
    target = count + noise.integers(frames - count - ahead + 1)
    time = times_of(noise.uniform(), start_share)
    return StateDraw(target, time, noise.normal((noisy or count) * channels, height, width))


def times_of(uniform: Tensor, start_share: float) -> Tensor:
    """Times (B,) in [0, 1) from uniform numbers: uniform too, but for a share of them that is exactly 0.

    A sample starts at time 0 and, with few steps, ends on what is answered there.
    """
    if start_share == 0:
        return uniform
    return ((uniform - start_share) / max(1 - start_share, 1e-6)).clamp_min(0)


def state_target(latents: Tensor, draw: StateDraw, sigma: float, noise_std: float) -> StateTarget:
    """From the latents (B, K + 1, C, H, W) of an interval: the perturbed state between its ends, and its velocity.

    Neural SDE, arXiv 2501.18871: linear interpolation of the state, Gaussian noise on top, one frame per unit time.
    """
    start, end = latents[:, :-1].flatten(1, 2), latents[:, 1:].flatten(1, 2)  # (B, K * C, H, W)
    t = draw.time.view(-1, 1, 1, 1)
    perturbation = noise_std * draw.noise
    state = (1 - (1 - sigma) * t) * start + t * end + perturbation
    return StateTarget(state, latents[:, -1] - (1 - sigma) * latents[:, -2], perturbation)


def mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


def flow_nll(prediction: Tensor, velocity: Tensor, delta: float = DESINGULARISATION) -> Tensor:
    """Negative log-likelihood of the flow with the noise minimised out (arXiv 2501.18871), 0 for a perfect one.

    Up to a constant that of a Cauchy distribution of scale sqrt(delta): robust, and it picks one of several branches
    where the squared error would take their mean.
    """
    residual = (prediction - velocity).square()
    return ((residual + delta).log() - math.log(delta)).flatten(1).mean(1)


def diffusion_nll(log_amplitude: Tensor, residual: Tensor) -> Tensor:
    """Negative log-likelihood of the residual of the flow under N(0, amplitude^2), without its constant."""
    return (log_amplitude + 0.5 * residual.square() * (-2 * log_amplitude).exp()).flatten(1).mean(1)


def diffusion_reference(
    log_amplitude: Tensor, residual: Tensor, interval: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """The original's two terms: amplitude and log-amplitude against those of the residual over a time `interval`.

    Their minimiser is about 0.55 of the true amplitude, because |r| and log|r| are smaller than sigma and log sigma
    on average; `diffusion_nll` has no such bias.
    """
    interval = torch.as_tensor(interval, device=residual.device)
    amplitude_error = (log_amplitude.exp() - residual.abs() * interval.sqrt()).square()
    log_error = (log_amplitude - 0.5 * torch.log(residual.square() + FLOOR) - 0.5 * interval.log()).square()
    return amplitude_error.flatten(1).mean(1), log_error.flatten(1).mean(1)
