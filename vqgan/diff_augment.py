"""Differentiable augmentation for discriminators (Zhao et al. 2020, arXiv 2006.10738)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.randomness import SampleNoise

LARGEST_SHIFT = 1 / 8  # of a side


def diff_augment(frames: Tensor, noise: SampleNoise) -> Tensor:
    """Frames (N, 3, H, W) with random brightness, saturation, contrast and translation; gradients pass through."""
    return translate(change_color(frames, noise.uniform(3)), noise.uniform(2))


def change_color(frames: Tensor, draws: Tensor) -> Tensor:
    """Brightness +- 0.5, saturation times [0, 2], contrast times [0.5, 1.5]; draws (N, 3) in [0, 1)."""
    brightness, saturation, contrast = (draws[:, column, None, None, None].to(frames) for column in range(3))
    frames = frames + brightness - 0.5
    gray = frames.mean(dim=1, keepdim=True)
    frames = gray + 2 * saturation * (frames - gray)
    mean = frames.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (frames - mean)


def translate(frames: Tensor, draws: Tensor) -> Tensor:
    """Move each frame by up to an eighth of its sides, zeros coming in; draws (N, 2) in [0, 1)."""
    sides = torch.tensor(frames.shape[-2:], device=frames.device)
    reach = (sides * LARGEST_SHIFT).round().long()
    shifts = (draws.to(frames.device) * (2 * reach + 1)).long()  # (N, 2) in 0 .. 2 * reach
    padded = F.pad(frames, (int(reach[1]), int(reach[1]), int(reach[0]), int(reach[0])))
    height, width = frames.shape[-2:]
    rows = shifts[:, 0, None] + torch.arange(height, device=frames.device)  # (N, H)
    columns = shifts[:, 1, None] + torch.arange(width, device=frames.device)  # (N, W)
    number = torch.arange(len(frames), device=frames.device)[:, None, None]
    return padded.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
