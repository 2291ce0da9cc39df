"""Sinusoidal position signal in three dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from lvt.model_config import Triple


def inverse_timescales(width: int) -> Tensor:
    """10000^(-i/m), i = 0 .. m - 1, with m = width // 6 frequencies per axis."""
    count = width // 6
    return 10000.0 ** (-torch.arange(count, dtype=torch.float32) / max(count, 1))


def position_signal(size: Triple, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Signal (t, h, w, width): per axis a sixth of the channels sine, a sixth cosine; channels left over are 0."""
    rates = inverse_timescales(width).to(device)
    signal = torch.zeros(*size, width, device=device)
    for axis, length in enumerate(size):
        angles = torch.arange(length, device=device)[:, None] * rates  # (length, m)
        waves = torch.cat([angles.sin(), angles.cos()], 1)  # (length, 2 m)
        shape = [1, 1, 1, waves.shape[1]]
        shape[axis] = length
        signal[..., axis * waves.shape[1] : (axis + 1) * waves.shape[1]] = waves.view(shape)
    return signal
