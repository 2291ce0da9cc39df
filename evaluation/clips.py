"""The one door through which clips enter the metrics: whatever the layout, float64 frames in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RANGE_TOLERANCE = 0.05  # of the range; resizing and lossy files overshoot a little


def unit_pair(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
) -> tuple[Tensor, Tensor]:
    """Two batches of clips of one size as float64 (B, T, 3, H, W) in [0, 1].

    Each is uint8 (B, T, H, W, 3), or (T, H, W, 3) for one clip, or float (B, 3, T, H, W) in `value_range`. Floats are
    clamped to the range and, with `quantize`, rounded to 8 bit: that is what a file would hold. Raises ValueError for
    another layout, for sizes that differ, and when neither clip fits the range (a wrong range changes every score).
    """
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    if not _fits(b, value_range):
        check_range(a, value_range)
    a, b = unit_frames(a, value_range, quantize), unit_frames(b, value_range, quantize)
    if a.shape != b.shape:
        raise ValueError(f"clips of different size: {_size(a)} and {_size(b)}")
    return a, b


def unit_frames(clip: Tensor, value_range: tuple[float, float], quantize: bool) -> Tensor:
    """One batch of clips, in any layout that `unit_pair` accepts, as float64 (B, T, 3, H, W) in [0, 1]."""
    if clip.dtype == torch.uint8:
        clip = clip[None] if clip.dim() == 4 else clip
        if clip.dim() != 5 or clip.shape[-1] != 3:
            raise ValueError(f"uint8 clips are (B, T, H, W, 3), got {tuple(clip.shape)}")
        return clip.movedim(-1, 2).double() / 255
    if not clip.is_floating_point() or clip.dim() != 5 or clip.shape[1] != 3:
        raise ValueError(
            f"clips are float (B, 3, T, H, W) or uint8 (B, T, H, W, 3), got {clip.dtype} {tuple(clip.shape)}"
        )
    low, high = value_range
    unit = ((clip.double() - low) / (high - low)).clamp(0, 1)
    if quantize:
        unit = (unit * 255).round() / 255
    return unit.transpose(1, 2)


def check_range(clip: Tensor, value_range: tuple[float, float]) -> None:
    """Raises ValueError for a clip of floats that leaves the range."""
    if not _fits(clip, value_range):
        low, high = clip.min(), clip.max()
        raise ValueError(f"values from {low:.4g} to {high:.4g} do not fit the declared range {value_range}")


def _fits(clip: Tensor, value_range: tuple[float, float]) -> bool:
    if not clip.is_floating_point():
        return True
    low, high = value_range
    margin = RANGE_TOLERANCE * (high - low)
    return bool(clip.min() >= low - margin and clip.max() <= high + margin)


def _size(clip: Tensor) -> str:
    count, frames, _, height, width = clip.shape
    return f"{count} clips of {frames} frames {width}x{height}"
