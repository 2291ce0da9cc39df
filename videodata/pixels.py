"""The one place where 8-bit pixels become floats in [-1, 1] and come back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from videodata.finite import finite


def normalize(pixels: Tensor) -> Tensor:
    """uint8 tensor of any shape -> float32 in [-1, 1] of the same shape, on the same device."""
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8, found {pixels.dtype}")
    return pixels.to(torch.float32) / 127.5 - 1


def as_float(pixels: Tensor) -> Tensor:
    """uint8 as `normalize` gives it; floats, such as pixels whose colours were changed, are in [-1, 1] already."""
    return pixels if pixels.is_floating_point() else normalize(pixels)


def denormalize(values: Tensor) -> Tensor:
    """Float tensor in [-1, 1] of any shape -> uint8 of the same shape: rounded to the nearest level, then clamped.

    Raises UserError for values that are not finite, which would become black or white.
    """
    if not values.is_floating_point():
        raise TypeError(f"values must be floating point in [-1, 1], found {values.dtype}")
    finite(values, "pixels")
    return ((values.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def channels_first(frames: np.ndarray | Tensor) -> Tensor:
    """Frames (..., T, H, W, 3) -> contiguous clip (..., 3, T, H, W); the values stay as they are."""
    if frames.ndim < 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3), found {tuple(frames.shape)}")
    if not isinstance(frames, Tensor):
        frames = torch.from_numpy(np.ascontiguousarray(frames))
    return frames.movedim(-1, -4).contiguous()


def to_float(frames: np.ndarray | Tensor) -> Tensor:
    """Frames uint8 (..., T, H, W, 3) -> clip float32 (..., 3, T, H, W) in [-1, 1]."""
    return normalize(channels_first(frames))


def to_uint8(clip: Tensor) -> np.ndarray:
    """Clip float (..., 3, T, H, W) in [-1, 1] -> frames uint8 (..., T, H, W, 3); values outside are clamped."""
    if clip.ndim < 4 or clip.shape[-4] != 3:
        raise ValueError(f"clip must be (3, T, H, W), found {tuple(clip.shape)}")
    return denormalize(clip).movedim(-4, -1).contiguous().cpu().numpy()


def pad_sides(frames: Tensor, multiple: int) -> Tensor:
    """Frames (..., H, W) with the last row and column repeated until both sides are multiples: what a network that
    halves the resolution needs of frames of any size.
    """
    for axis in (-2, -1):
        if missing := -frames.shape[axis] % multiple:
            border = frames.narrow(axis, frames.shape[axis] - 1, 1)
            frames = torch.cat([frames, border.repeat_interleave(missing, axis)], dim=axis)
    return frames
