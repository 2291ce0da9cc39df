"""Subscale slices of a clip of codes: which positions they hold, and what their encoder may see.

Weissenborn et al. 2020 (arXiv 1906.02634, section 3.2). Slice (a, b, c) of stride (st, sh, sw) holds the positions
t = a + i st, h = b + j sh, w = c + k sw. Slices are numbered (a sh + b) sw + c and generated in that order.

Axes: B clips, C codebooks, (T, H, W) clip, (t, h, w) slice, S slices.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from lvt.config import Triple
from videodata.errors import UserError


def slice_offset(index: int, stride: Triple) -> Triple:
    """(a, b, c) of slice number `index`."""
    return index // (stride[1] * stride[2]), index // stride[2] % stride[1], index % stride[2]


def slice_size(clip: Triple, stride: Triple) -> Triple:
    """(t, h, w) of each slice. Raises UserError when the stride does not divide the clip."""
    if any(length % step or not length for length, step in zip(clip, stride, strict=True)):
        raise UserError(f"a clip of {clip} codes cannot be cut with VT.STRIDE {stride}: each length must be a multiple")
    return clip[0] // stride[0], clip[1] // stride[1], clip[2] // stride[2]


@lru_cache(maxsize=64)
def slice_of_position(clip: Triple, stride: Triple) -> Tensor:
    """Number of the slice that holds each position, int64 (T, H, W)."""
    t, h, w = (torch.arange(length) % step for length, step in zip(clip, stride, strict=True))
    return (t[:, None, None] * stride[1] + h[:, None]) * stride[2] + w


@lru_cache(maxsize=64)
def slice_ids(clip: Triple, stride: Triple) -> Tensor:
    """Flat clip index of every position of every slice, int64 (S, t, h, w)."""
    (t, h, w), (st, sh, sw) = slice_size(clip, stride), stride
    ids = torch.arange(prod(clip)).view(t, st, h, sh, w, sw)
    return ids.permute(1, 3, 5, 0, 2, 4).reshape(-1, t, h, w)


@lru_cache(maxsize=64)
def context_ids(clip: Triple, stride: Triple, kernel: Triple) -> Tensor:
    """Flat clip index of every cell of every slice's context, -1 outside the clip or not yet known.

    A convolution with this kernel and stride over the context lands on the centres of the slice:
    int64 (S, T', H', W') with T' = (t - 1) st + kt and so on.
    """
    n_slices = prod(stride)
    slices = torch.arange(n_slices)
    offsets = (slices // (stride[1] * stride[2]), slices // stride[2] % stride[1], slices % stride[2])
    flat, inside = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
    for axis, (length, step, taps) in enumerate(zip(clip, stride, kernel, strict=True)):
        window = torch.arange(length - step + taps) - taps // 2
        place = offsets[axis][:, None] + window  # (S, window)
        shape = [n_slices, 1, 1, 1]
        shape[axis + 1] = len(window)
        place = place.view(shape)
        inside = inside & (place >= 0) & (place < length)
        flat = flat * length + place.clamp(0, length - 1)
    known = slice_of_position(clip, stride).flatten()[flat] < slices.view(-1, 1, 1, 1)
    return torch.where(inside & known, flat, -1)


def take_slices(codes: Tensor, stride: Triple, index: Tensor) -> Tensor:
    """Slice number index[b] of each clip: codes (B, C, T, H, W), index (B,) -> (B, C, t, h, w)."""
    ids = slice_ids(tuple(codes.shape[2:]), stride).to(codes.device)[index]  # (B, t, h, w)
    return gather(codes, ids)


def take_contexts(codes: Tensor, stride: Triple, kernel: Triple, index: Tensor, pad: int = -1) -> Tensor:
    """What the encoder of slice number index[b] sees of each clip: (B, C, T', H', W'), `pad` where nothing."""
    ids = context_ids(tuple(codes.shape[2:]), stride, kernel).to(codes.device)[index]
    values = gather(codes, ids.clamp(min=0))
    return torch.where(ids[:, None] >= 0, values, pad)


def put_slice(codes: Tensor, stride: Triple, index: int, values: Tensor) -> None:
    """Write slice number `index` (B, C, t, h, w) into the codes (B, C, T, H, W), in place."""
    a, b, c = slice_offset(index, stride)
    codes[:, :, a :: stride[0], b :: stride[1], c :: stride[2]] = values


def slice_frames(index: Tensor, clip: Triple, stride: Triple) -> Tensor:
    """Frame of the clip that each position of slice index[b] belongs to: int64 (B, t, h, w)."""
    return slice_ids(clip, stride).to(index.device)[index] // (clip[1] * clip[2])


def gather(codes: Tensor, ids: Tensor) -> Tensor:
    """Values at flat positions: codes (B, C, T, H, W), ids (B, x, y, z) -> (B, C, x, y, z)."""
    batch, channels = codes.shape[:2]
    flat = ids.flatten(1)[:, None].expand(batch, channels, -1)
    return codes.flatten(2).gather(2, flat).view(batch, channels, *ids.shape[1:])
