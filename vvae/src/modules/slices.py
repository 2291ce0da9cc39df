"""Clips held as slices of consecutive frames, so that memory is given back while a layer works through a clip.

Axes: B samples, C channels, t frames of a slice, H and W pixels. A function that takes `Slices` empties the list
given to it, and may write into its tensors: each slice is freed as soon as its last reader is done. With gradients a
clip is always one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Slices = list[Tensor]  # consecutive frames of one clip, each (B, C, t, H, W)

SLICE_BYTES = 128 << 20  # big enough for fast convolutions, small beside the activations that are kept

# Most channels, by device, that clips without gradients hold last in memory: consecutive frames then are one block,
# which is cut without copies. Convolutions of CPUs are faster so up to this width, and slower beyond.
CHANNELS_LAST = {"cpu": 256}


def layout(device: torch.device, channels: int) -> torch.memory_format:
    """The memory layout in which clips are fastest without gradients."""
    return torch.channels_last_3d if channels <= CHANNELS_LAST.get(device.type, 0) else torch.contiguous_format


def arrange(clip: Tensor) -> Tensor:
    """The clip in that layout; unchanged while gradients are recorded."""
    if torch.is_grad_enabled():
        return clip
    return clip.contiguous(memory_format=layout(clip.device, clip.shape[1]))


def empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A clip of this shape, not initialised, in that layout."""
    memory_format = torch.contiguous_format if torch.is_grad_enabled() else layout(like.device, shape[1])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def regroup(x: Slices, frames: int | None = None, growth: int = 1) -> Slices:
    """The same clip in slices of `frames` frames, or of about SLICE_BYTES. One slice while gradients are recorded.

    growth: how much the next layer enlarges a slice.
    """
    if torch.is_grad_enabled():
        return [join(x)]
    frame = x[0][:, :, :1]
    wanted = frames or max(1, SLICE_BYTES // (frame.numel() * frame.element_size() * growth))
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


def neighbourhoods(x: Slices, write: Callable[[Tensor, Tensor], object]) -> Iterator[Tensor]:
    """For each of several slices, what `write(frames, out)` makes of its frames and of one frame on either side.

    At the ends of the clip there is no such frame. All are written into one buffer: each result is valid until the
    next is asked for. A slice may be changed once its own result has been given.
    """
    longest = max(part.shape[2] for part in x)
    batch, channels, _, height, width = x[0].shape
    buffer = empty(x[0], (batch, channels, longest + 2, height, width))
    ready = 0  # frames of the slice that are in the buffer already
    for index, part in enumerate(x):
        start = min(index, 1)
        end = start + part.shape[2]
        if ready < part.shape[2]:
            write(part[:, :, ready:], buffer[:, :, start + ready : end])
        if index + 1 == len(x):
            yield buffer[:, :, :end]
            return
        write(x[index + 1][:, :, :1], buffer[:, :, end : end + 1])
        yield buffer[:, :, : end + 1]
        for frame in range(2):  # one by one: with slices of one frame, both together would overlap their new place
            buffer[:, :, frame].copy_(buffer[:, :, end - 1 + frame])
        ready = 1
