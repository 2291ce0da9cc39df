"""Where a token is in the frame, and where a frame is in the clip: sinusoids of any length and grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoids(position: Tensor, dim: int, longest: float) -> Tensor:
    """Sines and cosines of `position` (N,) with wavelengths from 2 pi to 2 pi `longest`: (N, dim), dim even."""
    exponents = torch.linspace(0, 1, dim // 2, device=position.device)
    angles = position[:, None] * torch.exp(-math.log(longest) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_embedding(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """2-D sinusoidal position of each token: (1, h, w, dim), half of the channels for the row, half for the column."""
    half = dim // 2
    rows = sinusoids(torch.arange(height, device=device, dtype=torch.float32), half, longest=100.0)
    columns = sinusoids(torch.arange(width, device=device, dtype=torch.float32), half, longest=100.0)
    rows = rows[:, None].expand(height, width, half)
    columns = columns[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2)[None]


class TimeModulation(nn.Module):
    """Frame t of T scales and shifts the channels of a map (FiLM, Perez et al. 2018, arXiv 1709.07871).

    The scales differ from frame to frame from the start, so that the frames of a clip are kept apart in one recurrent
    state: what is written under one scale is read best under the same. Any T can follow training on another.
    """

    FEATURES = 32  # sinusoids of t, and as many of t / T

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Linear(2 * self.FEATURES, 2 * dim)
        nn.init.normal_(self.scale_and_shift.weight, std=self.FEATURES**-0.5)
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, x: Tensor, t: int, frames: int) -> Tensor:
        """Map (B, h, w, dim) -> the same shape."""
        times = torch.tensor([float(t), 100.0 * t / frames], device=x.device)
        features = sinusoids(times, self.FEATURES, longest=100.0).flatten()
        scale, shift = self.scale_and_shift(features).chunk(2)
        return x * (1 + scale) + shift
