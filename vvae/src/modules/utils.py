"""Group normalisation over a whole clip, also when the clip is held in slices."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .slices import Slices

HALF = (torch.bfloat16, torch.float16)
ROWS = 1 << 20  # values of which a CPU takes the sums at a time: few enough to stay in its cache


class Scaling(NamedTuple):
    """Normalisation of a clip as x * scale + shift, float32 (B, C)."""

    scale: Tensor
    shift: Tensor


class Normalize(nn.GroupNorm):
    """GroupNorm with 32 groups, whose statistics run over the channels of a group and all frames and pixels of a clip.

    Without gradients a clip is normalised in two passes: `scaling` from all slices, then `forward` slice by slice.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(32, channels, eps=eps)

    def scaling(self, x: Slices) -> Scaling | None:
        """From the statistics of the clip; None while gradients are recorded, where `forward` finds them itself."""
        return None if torch.is_grad_enabled() else self.measure(x)

    def measure(self, x: Slices) -> Scaling:
        """From the mean and variance over all slices: sums in float32 of a part each, combined in float64."""
        sums = [channel_sums(part) for part in x]
        count = sum(part[0, 0].numel() for part in x) * self.num_channels // self.num_groups
        total, square = (
            self._over_groups(torch.stack(values).sum(dim=0)) / count for values in zip(*sums, strict=True)
        )
        var = (square - total.square()).clamp(min=0.0)
        scale = self.weight.double() * self._per_channel((var + self.eps).rsqrt())
        return Scaling(scale.float(), (self.bias.double() - self._per_channel(total) * scale).float())

    def _over_groups(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (self.num_groups, -1)).sum(dim=2)  # (B, C) -> (B, groups)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.num_channels // self.num_groups, dim=1)  # (B, groups) -> (B, C)

    def forward(self, x: Tensor, scaling: Scaling | None = None, out: Tensor | None = None) -> Tensor:
        """Normalised frames (B, C, t, H, W), with the clip's scaling or with the statistics of `x` itself.

        out: where to write them, which may be `x`; only with a scaling.
        """
        if scaling is None:
            return super().forward(x)
        if x.dtype not in HALF and not torch.compiler.is_compiling():
            scale, shift = (value.to(x.dtype)[:, :, None, None, None] for value in scaling)
            return torch.addcmul(shift, x, scale, out=out)
        result = torch.cat([scaled(*sample) for sample in zip(x.split(1), *scaling, strict=True)])
        return result if out is None else out.copy_(result)

    def activate(self, x: Tensor, scaling: Scaling | None = None, out: Tensor | None = None) -> Tensor:
        """SiLU of the normalised frames."""
        return F.silu(self(x, scaling, out), inplace=not torch.is_grad_enabled())

    def activate_(self, x: Tensor, scaling: Scaling | None) -> Tensor:
        """SiLU of the normalised frames; without gradients in the memory of `x`."""
        return self.activate(x, scaling, None if scaling is None else x)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift for one sample (1, C, t, H, W), in float32 whatever the type of x, without a float32 copy."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return F.batch_norm(x, zeros, ones, scale, shift, training=False, eps=0.0)


def channel_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the values and of their squares over frames and pixels, float64 (B, C)."""
    if x.is_cuda or x.stride(1) != 1 or torch.compiler.is_compiling():
        total = x.sum(dim=(3, 4), dtype=torch.float32).double().sum(dim=2)
        norm = torch.linalg.vector_norm(x, dim=(3, 4), dtype=torch.float32)  # (B, C, t)
        return total, norm.double().square().sum(dim=2)
    totals, squares = [], []  # of (rows, C) at a time: reductions over the outer axis of a long tensor are slow
    for sample in x.permute(0, 2, 3, 4, 1).flatten(1, 3):
        parts = [part.float() for part in sample.split(max(1, ROWS // x.shape[1]))]
        totals.append(torch.stack([part.sum(dim=0) for part in parts]).double().sum(dim=0))
        squares.append(torch.stack([part.square().sum(dim=0) for part in parts]).double().sum(dim=0))
    return torch.stack(totals), torch.stack(squares)
