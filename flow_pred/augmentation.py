"""Colour augmentation of whole clips, each sample by draws of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from training.randomness import SampleNoise

STRENGTH = 0.1  # of brightness, contrast and saturation
HUE = 0.25


def jitter_colors(clips: Tensor, noise: SampleNoise) -> Tensor:
    """Clips (B, T, 3, H, W) in [-1, 1], all frames of a clip alike: brightness, contrast, saturation, then hue."""
    draws = 2 * noise.uniform(4) - 1  # (B, 4) in [-1, 1)
    return torch.stack([jittered(clip, *row.tolist()) for clip, row in zip(clips, draws, strict=True)])


def jittered(clip: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """One clip (T, 3, H, W) with draws in [-1, 1)."""
    pixels = (clip + 1) / 2
    pixels = functional.adjust_brightness(pixels, 1 + STRENGTH * brightness)
    pixels = functional.adjust_contrast(pixels, 1 + STRENGTH * contrast)
    pixels = functional.adjust_saturation(pixels, 1 + STRENGTH * saturation)
    return functional.adjust_hue(pixels, HUE * hue) * 2 - 1
