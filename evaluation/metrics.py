"""Clips in, one value per clip out: PSNR, SSIM, LPIPS, and whether the borders of temporal windows show.

Each is computed per frame (`..._per_frame`), then averaged over the frames of a clip. All clips enter through one door,
`unit_pair`: whatever the layout, float64 frames in [0, 1].

SSIM has two definitions that are not comparable. "standard" is the paper's (Wang et al. 2004: Gaussian window of 11x11,
sigma 1.5, data range 1); "vvae" is what the published VideoVAE+ numbers use (uniform window of 7x7, sample covariance,
the data range of each frame of the first clip, 1 for constant frames); "openstl" is that of published Moving MNIST
tables (the same window, and the data range 2 that scikit-image up to 0.19 took for floats).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.protocol import RANDOM
from losses.perceptual import LPIPS, LPIPSNetwork
from losses.weights import find_lpips_heads, read_state_dict
from videodata.files import sha256_of

RANGE_TOLERANCE = 0.05  # of the range; resizing and lossy files overshoot a little
CAP = 100.0  # dB; the value of identical frames
K1, K2 = 0.01, 0.03  # of SSIM, against division by nearly nothing
SMALLEST_SIDE, SIGMA = 11, 1.5  # pixels, of the Gaussian window of SSIM
SSIM_DEFINITIONS = ("standard", "vvae", "openstl")


def psnr(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
) -> Tensor:
    """Mean over a clip's frames of the PSNR of each frame, in dB: two batches of clips -> float64 (B,).

    Clips are float (B, 3, T, H, W) in `value_range` or uint8 (B, T, H, W, 3); see `unit_pair`.
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


def ssim(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    definition: str = "standard",
) -> Tensor:
    """Mean over a clip's frames of the SSIM of each frame, at most 1: two batches of clips -> float64 (B,).

    Clips are float (B, 3, T, H, W) in `value_range` or uint8 (B, T, H, W, 3); see `unit_pair`.
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
    if definition not in SSIM_DEFINITIONS:
        raise ValueError(f"unknown SSIM definition {definition!r}; choose one of {', '.join(SSIM_DEFINITIONS)}")
    a, b = unit_pair(a, b, value_range, quantize)
    window = gaussian_window() if definition == "standard" else torch.full((7,), 1 / 7, dtype=torch.float64)
    if min(a.shape[-2:]) < len(window):
        raise ValueError(f"SSIM needs frames of at least {len(window)} pixels, got {a.shape[-1]}x{a.shape[-2]}")
    window = window.to(a.device)
    values = [_frame_ssim(x, y, window, definition) for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
    return torch.stack(values).unflatten(0, a.shape[:2])


def gaussian_window() -> Tensor:
    """One axis of the separable Gaussian window of Wang et al. 2004, float64 (SMALLEST_SIDE,), of sum 1."""
    position = torch.arange(SMALLEST_SIDE, dtype=torch.float64) - (SMALLEST_SIDE - 1) / 2
    window = torch.exp(-(position**2) / (2 * SIGMA**2))
    return window / window.sum()


def _frame_ssim(x: Tensor, y: Tensor, window: Tensor, definition: str) -> Tensor:
    if definition == "standard":
        return _ssim_map(x, y, window, data_range=1.0, covariance_scale=1.0).mean()
    data_range = 2.0 if definition == "openstl" else (x.max() - x.min()).item()
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


def lpips_distance(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    net: str = "alex",
    weights: Path | str | None = None,
) -> Tensor:
    """Mean over a clip's frames of LPIPS v0.1, 0 for identical clips: two batches of clips -> float64 (B,).

    `net` is alex (for reporting) or vgg, whose values are not comparable, or RANDOM. Frames are not resized. Clips are
    as for `psnr`. Raises UserError in one line when the weights are missing and cannot be downloaded.
    """
    return lpips_per_frame(a, b, value_range, quantize, net, weights).mean(dim=1)


@torch.no_grad()
def lpips_per_frame(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    net: str = "alex",
    weights: Path | str | None = None,
) -> Tensor:
    """LPIPS of each frame: float64 (B, T)."""
    a, b = unit_pair(a, b, value_range, quantize)
    metric = lpips_metric(net, None if weights is None else str(weights))
    distances = metric((a * 2 - 1).flatten(0, 1).float(), (b * 2 - 1).flatten(0, 1).float())
    return distances.double().unflatten(0, a.shape[:2])


def summed_errors_per_frame(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Squared and absolute error of each frame in [0, 1], summed over its pixels, the mean over channels: (B, T) each.

    As tables of Moving MNIST have them (OpenSTL), so of float clips (B, 3, T, H, W) in [-1, 1] as they are: neither
    clamped nor rounded.
    """
    error = (a.double() - b.double()) / 2
    return {
        "mse-pixels": error.square().mean(dim=1).sum(dim=(2, 3)),
        "mae-pixels": error.abs().mean(dim=1).sum(dim=(2, 3)),
    }


@lru_cache(maxsize=4)
def lpips_metric(net: str, weights: str | None) -> LPIPS:
    """The metric, built once per network and weight file."""
    return RandomLPIPS() if net == RANDOM else LPIPS(net, weights)


def lpips_facts(net: str, weights: Path | str | None) -> dict[str, str | None]:
    """File and hash of the network that computes the metric."""
    if net == RANDOM:
        return {"file": None, "sha256": None}
    file = lpips_metric(net, None if weights is None else str(weights)).weights_file()
    return {"file": file.name, "sha256": sha256_of(file)}


class RandomLPIPS(LPIPS):
    """LPIPS-alex with a backbone of fixed random weights: exercises everything but the meaning of the number."""

    def __init__(self) -> None:
        super().__init__("alex")

    def weights_file(self) -> None:
        """There is none."""

    def _build(self, weights: Path | None) -> nn.Module:
        network, generator = LPIPSNetwork("alex"), torch.Generator().manual_seed(0)
        network.load_state_dict(read_state_dict(find_lpips_heads("alex")), strict=False)
        for parameter in network.net.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        return network


def boundary_ratio(
    original: Tensor | np.ndarray,
    reconstruction: Tensor | np.ndarray,
    window: int,
    quantize: bool = True,
) -> list[float]:
    """Per clip, the ratio for borders after every `window` frames; nan where there is no border or no change.

    Clips are as for `psnr`.
    """
    a, b = unit_pair(original, reconstruction, quantize=quantize)
    jumps = (b - a).diff(dim=1).abs().mean(dim=(2, 3, 4))  # (B, T - 1)
    ratios = (ratio_of_jumps(row, window) for row in jumps.tolist())
    return [math.nan if ratio is None else ratio for ratio in ratios]


def ratio_of_jumps(jumps: Sequence[float], window: int) -> float | None:
    """Mean change of the error at window borders over that elsewhere; jumps[t] is from frame t to frame t + 1.

    None where there is no border, or nothing else.
    """
    if window < 2:
        return None
    borders = [jump for index, jump in enumerate(jumps, start=1) if index % window == 0]
    inside = [jump for index, jump in enumerate(jumps, start=1) if index % window]
    return fmean(borders) / fmean(inside) if borders and inside and fmean(inside) > 0 else None


def mean_frame(clips: Tensor) -> Tensor:
    """The best still picture of each clip (B, C, T, H, W), T times: what a model that sees no motion reaches at most.

    It is the baseline "of the mean frame" of all reconstructions.
    """
    return clips.mean(dim=2, keepdim=True).expand_as(clips)


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
