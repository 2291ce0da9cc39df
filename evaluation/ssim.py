"""Structural similarity (Wang et al. 2004) of clips: per frame and channel, then the mean over a clip.

Definitions: "standard" is the paper's (Gaussian window of 11x11, sigma 1.5, data range 1); "vvae" is what the published
VideoVAE+ numbers use (uniform window of 7x7, sample covariance, the data range of each frame of the first clip, 1
for constant frames). The two are not comparable.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.clips import unit_pair

K1, K2 = 0.01, 0.03
DEFINITIONS = ("standard", "vvae")


def ssim(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    definition: str = "standard",
) -> Tensor:
    """Mean over a clip's frames of the SSIM of each frame, at most 1: two batches of clips -> float64 (B,).

    Clips are float (B, 3, T, H, W) in `value_range` or uint8 (B, T, H, W, 3); see `evaluation.clips.unit_pair`.
    """
    return ssim_per_frame(a, b, value_range, quantize, definition).mean(dim=1)


def ssim_per_frame(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    definition: str = "standard",
) -> Tensor:
    """SSIM of each frame, the mean over the pixels whose window lies inside the frame and over channels: (B, T)."""
    if definition not in DEFINITIONS:
        raise ValueError(f"unknown SSIM definition {definition!r}; choose one of {', '.join(DEFINITIONS)}")
    a, b = unit_pair(a, b, value_range, quantize)
    window = gaussian_window() if definition == "standard" else torch.full((7,), 1 / 7, dtype=torch.float64)
    if min(a.shape[-2:]) < len(window):
        raise ValueError(f"SSIM needs frames of at least {len(window)} pixels, got {a.shape[-1]}x{a.shape[-2]}")
    frame_ssim = _standard if definition == "standard" else _vvae
    window = window.to(a.device)
    values = [frame_ssim(x, y, window) for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
    return torch.stack(values).unflatten(0, a.shape[:2])


def gaussian_window(size: int = 11, sigma: float = 1.5) -> Tensor:
    """One axis of the separable Gaussian window, float64 (size,), of sum 1."""
    position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-(position**2) / (2 * sigma**2))
    return window / window.sum()


def _standard(x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    return _ssim_map(x, y, window, data_range=1.0, covariance_scale=1.0).mean()


def _vvae(x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    data_range = (x.max() - x.min()).item()
    if data_range == 0:
        return x.new_ones(())
    samples = len(window) ** 2
    return _ssim_map(x, y, window, data_range, covariance_scale=samples / (samples - 1)).mean()


def _ssim_map(x: Tensor, y: Tensor, window: Tensor, data_range: float, covariance_scale: float) -> Tensor:
    """SSIM at each window position of one frame (C, H, W)."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    moments = _windowed(torch.stack([x, y, x * x, y * y, x * y]), window)
    mean_x, mean_y = moments[0], moments[1]
    variance_x = covariance_scale * (moments[2] - mean_x**2)
    variance_y = covariance_scale * (moments[3] - mean_y**2)
    covariance = covariance_scale * (moments[4] - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _windowed(images: Tensor, window: Tensor) -> Tensor:
    """Weighted mean in a window around each inner pixel, (..., H, W) -> (..., H - size + 1, W - size + 1)."""
    for axis in (-2, -1):
        length = images.shape[axis] - len(window) + 1
        shifted = [images.narrow(axis, start, length) for start in range(len(window))]
        images = shifted[0] * window[0]
        for piece, factor in zip(shifted[1:], window[1:].tolist(), strict=True):
            images.add_(piece, alpha=factor)  # far faster than conv2d in float64: benchmarks/evaluation.py
    return images
