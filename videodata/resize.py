"""Resize arrays of frames, antialiased; the video decoder's own scaler does the same for files (see color.py)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.nn import functional

from videodata.color import cut
from videodata.errors import UserError
from videodata.geometry import Size, place

INTERPOLATIONS = ("area", "bilinear")


def resize_frames(
    frames: np.ndarray,
    size: Size | None,
    resize: str = "crop",
    interpolation: str = "area",
    short_side: int | None = None,
) -> np.ndarray:
    """uint8 (T, h, w, 3) -> uint8 (T, H, W, 3) by the rule of `geometry.place`; a copy only where pixels change.

    interpolation: "area" averages the pixels that a new pixel covers (bicubic when enlarging), which keeps most
    detail; "bilinear" is the antialiased bilinear filter of torchvision's Resize.
    """
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"unknown interpolation {interpolation!r}: use one of {', '.join(INTERPOLATIONS)}")
    native = frames.shape[1:3]
    placement = place(native, size, resize, short_side)
    if placement.scaled != native:
        shrinks = placement.scaled[0] < native[0] or placement.scaled[1] < native[1]
        if interpolation == "area" and shrinks:
            frames = _area(frames, placement.scaled)
        else:
            frames = _filtered(frames, placement.scaled, "bicubic" if interpolation == "area" else "bilinear")
    return cut(frames, placement)


def _filtered(frames: np.ndarray, size: Size, mode: str) -> np.ndarray:
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)  # (T, 3, h, w)
    pictures = functional.interpolate(pictures, size, mode=mode, antialias=True)
    return pictures.movedim(1, -1).numpy()


def _area(frames: np.ndarray, size: Size) -> np.ndarray:
    count, height, width, channels = frames.shape
    rows, columns = area_weights(height, size[0]), area_weights(width, size[1])
    resized = np.empty((count, *size, channels), np.uint8)
    for frame, target in zip(frames, resized, strict=True):
        tall = rows @ frame.reshape(height, width * channels).astype(np.float32)  # (H, w * 3)
        wide = columns @ tall.reshape(size[0], width, channels)  # (H, W, 3)
        np.rint(wide.clip(0, 255), out=wide)
        target[...] = wide
    return resized


@functools.lru_cache(maxsize=64)
def area_weights(source: int, target: int) -> np.ndarray:
    """float32 (target, source): how much of target cell i lies over source cell j; each row sums to one."""
    edges = np.arange(target + 1) * (source / target)
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (overlap.clip(0) * (target / source)).astype(np.float32)
