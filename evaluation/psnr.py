"""Peak signal-to-noise ratio of clips: per frame, then the mean over the frames of a clip."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.clips import unit_pair

CAP = 100.0  # dB; the value of identical frames


def psnr(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
) -> Tensor:
    """Mean over a clip's frames of the PSNR of each frame, in dB: two batches of clips -> float64 (B,).

    Clips are float (B, 3, T, H, W) in `value_range` or uint8 (B, T, H, W, 3); see `evaluation.clips.unit_pair`.
    """
    return psnr_per_frame(a, b, value_range, quantize).mean(dim=1)


def psnr_per_frame(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
) -> Tensor:
    """10 log10(1 / MSE) over all pixels and channels of one frame in [0, 1], at most 100 dB: float64 (B, T)."""
    a, b = unit_pair(a, b, value_range, quantize)
    error = ((a - b) ** 2).mean(dim=(2, 3, 4))
    return (-10 * torch.log10(error)).clamp(max=CAP)
