"""Clips held as slices of consecutive frames, so that memory is given back while a layer works through a clip; and the
group normalisation over a whole clip, also when it is held like that.

Axes: B samples, C channels, t frames of a slice, H and W pixels. A function that takes `Slices` empties the list
given to it, and may write into its tensors: each slice is freed as soon as its last reader is done. With gradients a
clip is always one slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


SMALL_CLIP = 20480  # channels x frames x rows: up to here torch does without oneDNN for a single float32 clip


class Conv3d(nn.Conv3d):
    """A 3D convolution, by oneDNN for small clips, too."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """F.conv3d of a clip (B, C, t, H, W). For one that is small and alone, torch's own choice on a CPU is a kernel that
    takes two to three times as long as oneDNN's, which is named here (`use_mkldnn` in ATen's Convolution.cpp).
    """
    if not small_and_alone(x):
        return F.conv3d(x, weight, bias, stride, padding)
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    clip = x if last else x.contiguous()
    kernel = weight.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    return torch.mkldnn_convolution(clip, kernel, bias, padding, stride, (1, 1, 1), 1)


def small_and_alone(x: Tensor) -> bool:
    """Whether torch would leave the convolution of this clip (B, C, t, H, W) to its own kernel."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    return len(x) == 1 and 0 < x.shape[1] * x.shape[2] * x.shape[3] <= SMALL_CLIP


HALF = (torch.bfloat16, torch.float16)
CACHED = 1 << 20  # values that stay in the cache of a CPU
EPS = 2.0**-10  # of a batch norm of variance 1 - EPS, which must be above 0; their sum is exactly 1


class Scaling(NamedTuple):
    """Normalisation of a clip as x * scale + shift, float32 (B, C)."""

    scale: Tensor
    shift: Tensor


class Normalize(nn.GroupNorm):
    """GroupNorm with 32 groups (fewer for narrow layers), whose statistics run over all frames and pixels of a clip.

    Without gradients a clip is normalised in two passes: `scaling` from all slices, then `forward` slice by slice.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=eps)  # a model may set another number

    def scaling(self, x: Slices) -> Scaling | None:
        """From the statistics of the clip; None while gradients are recorded, where `forward` finds them itself."""
        return None if torch.is_grad_enabled() else self.measure(x)

    def measure(self, x: Slices) -> Scaling:
        """From the mean and variance over all slices: sums in float32 of a part each, combined in float64."""
        sums = [channel_sums(part) for part in x]
        count = sum(part[0, 0].numel() for part in x) * self.num_channels // self.num_groups
        over_slices = (torch.stack(values).sum(dim=0) for values in zip(*sums, strict=True))  # (B, C)
        total, square = (values.unflatten(1, (self.num_groups, -1)).sum(dim=2) / count for values in over_slices)
        var = (square - total.square()).clamp(min=0.0)
        scale = self.weight.double() * self._per_channel((var + self.eps).rsqrt())
        return Scaling(scale.float(), (self.bias.double() - self._per_channel(total) * scale).float())

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.num_channels // self.num_groups, dim=1)  # (B, groups) -> (B, C)

    def forward(self, x: Tensor, scaling: Scaling | None = None, out: Tensor | None = None) -> Tensor:
        """Normalised frames (B, C, t, H, W), with the clip's scaling or with the statistics of `x` itself.

        out: where to write them, which may be `x`; only with a scaling.
        """
        if scaling is None:
            return super().forward(x)
        if torch.compiler.is_compiling():
            result = torch.cat([scaled(*sample) for sample in zip(x.split(1), *scaling, strict=True)])
            return result if out is None else out.copy_(result)
        if x.dtype not in HALF:
            scale, shift = (value.to(x.dtype)[:, :, None, None, None] for value in scaling)
            return torch.addcmul(shift, x, scale, out=out)
        out = torch.empty_like(x) if out is None else out
        for sample, scale, shift, place in zip(x.split(1), *scaling, out.split(1), strict=True):
            scaled(sample, scale, shift, place)
        return out

    def activate(self, x: Tensor, scaling: Scaling | None = None, out: Tensor | None = None) -> Tensor:
        """SiLU of the normalised frames."""
        return F.silu(self(x, scaling, out), inplace=not torch.is_grad_enabled())

    def activate_(self, x: Tensor, scaling: Scaling | None) -> Tensor:
        """SiLU of the normalised frames; without gradients in the memory of `x`."""
        return self.activate(x, scaling, None if scaling is None else x)


def scaled(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """x * scale + shift for one sample (1, C, t, H, W), in float32 whatever the type of x, without a float32 copy."""
    mean, var = torch.zeros_like(scale), torch.full_like(scale, 1 - EPS)
    if out is None or x.is_cuda:
        result = F.batch_norm(x, mean, var, scale, shift, training=False, eps=EPS)
        return result if out is None else out.copy_(result)
    unused = torch.empty(0, device=x.device)
    return torch.native_batch_norm(x, scale, shift, mean, var, False, 0.0, EPS, out=(out, unused, unused))[0]


def channel_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the values and of their squares over frames and pixels, float64 (B, C)."""
    if x.is_cuda or x.stride(1) != 1 or torch.compiler.is_compiling():
        total = x.sum(dim=(3, 4), dtype=torch.float32).double().sum(dim=2)
        norm = torch.linalg.vector_norm(x, dim=(3, 4), dtype=torch.float32)  # (B, C, t)
        return total, norm.double().square().sum(dim=2)
    sums = [row_sums(sample) for sample in x.permute(0, 2, 3, 4, 1).flatten(1, 3)]
    return tuple(map(torch.stack, zip(*sums, strict=True)))


def row_sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the rows (N, C) and over their squares, float64 (C). Some rows at a time stay in the cache of a CPU."""
    count = max(1, CACHED // rows.shape[1])
    memory = torch.empty(min(count, len(rows)), rows.shape[1], dtype=torch.float32, device=rows.device)
    totals, squares = [], []
    for part in rows.split(count):
        values = memory[: len(part)].copy_(part)
        totals.append(values.sum(dim=0))
        squares.append(values.square_().sum(dim=0))
    return torch.stack(totals).double().sum(dim=0), torch.stack(squares).double().sum(dim=0)
