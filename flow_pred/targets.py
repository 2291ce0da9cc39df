"""What the networks see and should answer in training, for given draws of frames, times and noise.

Velocities are in closed form: the quotient of differences that defines them is inaccurate near the end of the path
and overflows in bfloat16. Axes: B batch, N frames of a clip, K frames of a state, C H W one latent frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training.randomness import SampleNoise


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
    """Which interval a neural-SDE step trains on, where in it, and the perturbation in units of noise_std."""

    target: Tensor  # (B,) frame at the end of the interval, in K .. N - 1
    time: Tensor  # (B,) in [0, 1)
    noise: Tensor  # (B, K * C, H, W), standard normal

    def frames(self, count: int) -> Tensor:
        """Indices (B, K + 1) of the K frames before the target and of the target itself."""
        return self.target[:, None] + torch.arange(-count, 1, device=self.target.device)


class StateTarget(NamedTuple):
    """A perturbed state and what can be learned there."""

    state: Tensor  # (B, K * C, H, W), perturbed
    velocity: Tensor  # (B, C, H, W) of the newest frame
    perturbation: Tensor  # (B, K * C, H, W)


def draw_river(noise: SampleNoise, frames: int, shape: tuple[int, ...]) -> RiverDraw:
    """Draw for clips of `frames` frames with latents of `shape` (C, H, W)."""
    target = 2 + noise.integers(frames - 2)
    condition = below(noise.uniform(), target - 1)
    return RiverDraw(target, condition, noise.normal(*shape), noise.uniform())


def draw_state(noise: SampleNoise, frames: int, count: int, shape: tuple[int, ...]) -> StateDraw:
    """Draw for clips of `frames` frames, states of `count` of them, with latents of `shape` (C, H, W)."""
    channels, height, width = shape
    target = count + noise.integers(frames - count)
    return StateDraw(target, noise.uniform(), noise.normal(count * channels, height, width))


def below(uniform: Tensor, limit: Tensor) -> Tensor:
    """Uniform integers in [0, limit) from uniform numbers in [0, 1)."""
    return (uniform * limit).long().minimum(limit - 1)


def river_path(latents: Tensor, noise: Tensor, time: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Point on the straight path from noise to latents at path time (B,), and its velocity, both (B, C, H, W).

    Conditional flow matching with the optimal-transport path (Lipman et al., arXiv 2210.02747, eq. 22).
    """
    s = time.view(-1, 1, 1, 1)
    return (1 - (1 - sigma) * s) * noise + s * latents, latents - (1 - sigma) * noise


def state_target(latents: Tensor, draw: StateDraw, sigma: float, noise_std: float) -> StateTarget:
    """From the latents (B, K + 1, C, H, W) of an interval: the perturbed state between its ends, and its velocity.

    Neural SDE, arXiv 2501.18871: linear interpolation of the state, Gaussian noise on top, one frame per unit time.
    """
    start, end = latents[:, :-1].flatten(1, 2), latents[:, 1:].flatten(1, 2)  # (B, K * C, H, W)
    t = draw.time.view(-1, 1, 1, 1)
    perturbation = noise_std * draw.noise
    state = (1 - (1 - sigma) * t) * start + t * end + perturbation
    return StateTarget(state, latents[:, -1] - (1 - sigma) * latents[:, -2], perturbation)


def pick_frames(clips: Tensor, indices: Tensor) -> Tensor:
    """Frames (B, M, ...) of clips (B, N, ...) at indices (B, M)."""
    return clips[torch.arange(len(clips), device=clips.device)[:, None], indices]
