"""Group normalisation over a whole clip, also when the clip is held in slices."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .slices import Slices


class Statistics(NamedTuple):
    """Mean and biased variance of each sample's groups, float32 (B, groups)."""

    mean: Tensor
    var: Tensor


class Normalize(nn.GroupNorm):
    """GroupNorm with 32 groups, whose statistics run over the channels of a group and all frames and pixels of a clip.

    A clip in slices is normalised in two passes: `statistics` of all slices, then `forward` slice by slice.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(32, channels, eps=eps)

    def statistics(self, x: Slices) -> Statistics | None:
        """Statistics of the clip; None where `forward` finds them itself, because the clip is one slice."""
        return None if len(x) == 1 else self.measure(x)

    def measure(self, x: Slices) -> Statistics:
        """Mean and variance over all slices: sums in float32 per frame, combined in float64."""
        total = square = 0.0
        for part in x:
            total = total + part.sum(dim=(3, 4), dtype=torch.float32).double().sum(dim=2)  # (B, C)
            norm = torch.linalg.vector_norm(part, dim=(3, 4), dtype=torch.float32)  # (B, C, t)
            square = square + norm.double().square().sum(dim=2)
        count = sum(part[0, 0].numel() for part in x) * self.num_channels // self.num_groups
        mean = total.unflatten(1, (self.num_groups, -1)).sum(dim=2) / count  # (B, groups)
        var = square.unflatten(1, (self.num_groups, -1)).sum(dim=2) / count - mean.square()
        return Statistics(mean.float(), var.clamp(min=0.0).float())

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Normalised frames (B, C, t, H, W), with the clip's statistics or with those of `x` itself."""
        if statistics is None:
            return super().forward(x)
        batch, channels = x.shape[:2]
        repeats = channels // self.num_groups
        mean, var = (value.expand(batch, -1).repeat_interleave(repeats, dim=1).flatten() for value in statistics)
        weight, bias = (value.float().repeat(batch) for value in (self.weight, self.bias))
        merged = x.reshape(1, batch * channels, *x.shape[2:])  # each channel of each sample is a channel of its own
        return F.batch_norm(merged, mean, var, weight, bias, training=False, eps=self.eps).reshape(x.shape)

    def activate(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """SiLU of the normalised frames; without gradients computed in place."""
        return F.silu(self(x, statistics), inplace=not torch.is_grad_enabled())
