"""Clips held as slices of consecutive frames, so that memory is given back while a layer works through a clip.

Axes: B samples, C channels, t frames of a slice, H and W pixels. A function that takes `Slices` empties the list
given to it: each slice is freed as soon as its last reader is done. With gradients a clip is always one slice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Slices = list[Tensor]  # consecutive frames of one clip, each (B, C, t, H, W)

SLICE_BYTES = 64 << 20  # big enough for fast convolutions, small beside the activations that are kept


def frames_per_slice(frame: Tensor, frames: int | None = None, growth: int = 1) -> int:
    """How many frames like `frame` (B, C, 1, H, W) go in a slice; `growth`: how much the next layer enlarges it."""
    if frames is not None:
        return frames
    return max(1, SLICE_BYTES // (frame.numel() * frame.element_size() * growth))


def regroup(x: Slices, frames: int | None = None, growth: int = 1) -> Slices:
    """The same clip in slices of `frames` frames, or of about SLICE_BYTES. One slice while gradients are recorded."""
    if torch.is_grad_enabled():
        return [join(x)]
    wanted = frames_per_slice(x[0][:, :, :1], frames, growth)
    if all(part.shape[2] == wanted for part in x[:-1]) and x[-1].shape[2] <= wanted:
        return x
    return list(join(x).split(wanted, dim=2))


def join(x: Slices) -> Tensor:
    """Slices -> clip (B, C, T, H, W)."""
    clip = x[0] if len(x) == 1 else torch.cat(x, dim=2)
    x.clear()
    return clip


def each(function: Callable[[Tensor], Tensor], x: Slices) -> Slices:
    """Apply a function that treats every frame alone."""
    out = []
    for index, part in enumerate(x):
        x[index] = None
        out.append(function(part))
        del part
    x.clear()
    return out


def add(x: Slices, y: Slices) -> Slices:
    """x + y; without gradients in the memory of y."""
    out = []
    for index, (a, b) in enumerate(zip(x, y, strict=True)):
        x[index] = y[index] = None
        out.append(a + b if torch.is_grad_enabled() else b.add_(a))
    x.clear()
    y.clear()
    return out
