"""How well the transformer predicts clips of codes, in bits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.convnets import DOWNSAMPLING
from lvt.subscale import slice_frames
from lvt.transformer import VideoTransformer


@torch.no_grad()
def clip_nats(
    model: VideoTransformer, codes: Tensor, n_prime: int, class_index: Tensor | None = None
) -> tuple[Tensor, int]:
    """Negative log-likelihood of the codes after the first `n_prime` frames of each clip, and how many they are.

    codes int64 (B, C, T, H, W) -> nats float64 (B,), codes counted per clip. Slices are looked at one after the other.
    """
    clip = tuple(codes.shape[2:])
    total, count = codes.new_zeros(len(codes), dtype=torch.float64), 0
    for number in range(model.config.n_slices):
        index = codes.new_full((len(codes),), number)
        counted = slice_frames(index[:1], clip, model.config.stride)[0] >= n_prime  # (t, h, w)
        if not counted.any():
            continue
        context, slice_codes = model.slice_inputs(codes, index)
        logits = model(context, slice_codes, index, class_index)  # (B, C, V, t, h, w)
        nats = F.cross_entropy(logits.movedim(2, 1).float(), slice_codes, reduction="none")  # (B, C, t, h, w)
        total += nats[..., counted].double().sum((1, 2))
        count += int(counted.sum()) * codes.shape[1]
    return total, count


def bits_per_code(nats: Tensor, count: int) -> Tensor:
    """Bits per code; a model that knows nothing needs log2(V)."""
    return nats / (math.log(2) * count)


def bits_per_subpixel(bits: Tensor, codebooks: int) -> Tensor:
    """The same rate per red, green or blue value of the frames, so that models with other codes can be compared."""
    return bits * codebooks / (DOWNSAMPLING**2 * 3)
