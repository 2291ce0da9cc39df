"""Blocks of the 2+1D autoencoder: convolutions in space, 3x3x3 residual branches in time, attention within a frame.

Axes: B samples, C channels, t frames of a slice, H and W pixels. All blocks take and give `Slices`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .utils import Conv3d, Normalize, Slices, add, arrange, convolve, each, empty, neighbourhoods

# Which taps of a 3-wide kernel meet which of two neighbouring source pixels, for the even and the odd output pixels
# of a nearest up-sampling by 2.
PHASES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


class SpatialConv(Conv3d):
    """Convolution (1, k, k): each frame alone. A single frame goes through the faster 2D kernel."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__(
            channels, out_channels, (1, kernel, kernel), stride=(1, stride, stride), padding=(0, padding, padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 1:
            return super().forward(x)
        frame = F.conv2d(x[:, :, 0], self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
        return frame.unsqueeze(2)


def pointwise(channels: int, out_channels: int) -> SpatialConv:
    """A 1x1x1 convolution."""
    return SpatialConv(channels, out_channels, kernel=1, padding=0)


class TemporalBranch(nn.Module):
    """x + Conv3d(SiLU(GroupNorm(x))) with a zero-padded 3x3x3 kernel that starts at zero (inflated image model)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Normalize(channels)
        self.conv = Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Slices) -> Slices:
        scaling = self.norm.scaling(x)
        if len(x) == 1:
            return add(x, [self.conv(self.norm.activate(x[0], scaling))])
        last = len(x) - 1
        activated = neighbourhoods(x, lambda frames, out: self.norm.activate(frames, scaling, out))
        for index, frames in enumerate(activated):
            self._add_convolution(x[index], frames, first=index == 0, last=index == last)
        out = x.copy()
        x.clear()
        return out

    def _add_convolution(self, part: Tensor, frames: Tensor, first: bool, last: bool) -> None:
        """Add to slice `part` the convolution of its activated frames and of one frame of each neighbour.

        At the ends of the clip the taps that would meet zero frames are left out.
        """
        weight = self.conv.weight
        if first:
            part[:, :, :1].add_(self._convolve(frames[:, :, :2], weight[:, :, 1:]))
        if last:
            part[:, :, -1:].add_(self._convolve(frames[:, :, -2:], weight[:, :, :2]))
        inner = part[:, :, int(first) : part.shape[2] - int(last)]
        if inner.shape[2]:
            inner.add_(self._convolve(frames, weight))

    def _convolve(self, frames: Tensor, weight: Tensor) -> Tensor:
        return convolve(frames, weight, self.conv.bias, stride=(1, 1, 1), padding=(0, 1, 1))


class ResnetBlock2plus1D(nn.Module):
    """Residual block of two spatial convolutions, each followed by a temporal branch.

    The published checkpoints hold a third branch, `conv3_tmp`, in every block; only blocks that change the width use
    it. `prune_unused` leaves it out elsewhere (20 % of the parameters).
    """

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0, prune_unused: bool = True) -> None:
        super().__init__()
        self.norm1 = Normalize(channels)
        self.conv1 = SpatialConv(channels, out_channels)
        self.conv1_tmp = TemporalBranch(out_channels)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = SpatialConv(out_channels, out_channels)
        self.conv2_tmp = TemporalBranch(out_channels)
        self.nin_shortcut = pointwise(channels, out_channels) if channels != out_channels else None
        self.conv3_tmp = None if prune_unused and channels == out_channels else TemporalBranch(out_channels)

    def forward(self, x: Slices, temporal: bool = True) -> Slices:
        h, x = self._widen(x)
        if temporal:
            h = self.conv1_tmp(h)
        scaling = self.norm2.scaling(h)
        h = each(lambda part: self.conv2(self.dropout(self.norm2.activate_(part, scaling))), h)
        if temporal:
            h = self.conv2_tmp(h)
        if temporal and self.nin_shortcut is not None:
            x = self.conv3_tmp(x)
        return add(x, h)

    def _widen(self, x: Slices) -> tuple[Slices, Slices]:
        """First convolution and shortcut in one pass, so that the (wider) input is freed on the way."""
        scaling = self.norm1.scaling(x)
        h: Slices = []
        shortcut: Slices = []
        scratch = None if scaling is None else torch.empty_like(x[0])
        for index, part in enumerate(x):
            x[index] = None
            out = None if scratch is None else scratch[:, :, : part.shape[2]]
            shortcut.append(part if self.nin_shortcut is None else arrange(self.nin_shortcut(part)))
            h.append(arrange(self.conv1(self.norm1.activate(part, scaling, out))))
            del part
        x.clear()
        return h, shortcut


class Downsample(nn.Module):
    """Halve height and width: one zero row below, one zero column on the right, 3x3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SpatialConv(channels, channels, stride=2, padding=0)

    def forward(self, x: Slices) -> Slices:
        return each(lambda part: self.conv(F.pad(part, (0, 1, 0, 1))), x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution.

    Computed as four 2x2 convolutions of the small frame, one per position of the output pixel in its 2x2 cell: the
    taps of the 3x3 kernel that meet the same source pixel are summed. 4/9 of the multiplications, no large copy.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SpatialConv(channels, channels)

    def forward(self, x: Slices) -> Slices:
        weight = self._phase_weights()
        return each(lambda part: self._upsample(part, weight), x)

    def _phase_weights(self) -> Tensor:
        """(4 * out, in, 2, 2), ordered by row phase, column phase, output channel."""
        taps = torch.tensor(PHASES, dtype=torch.float32, device=self.conv.weight.device)  # (phase, tap, kernel)
        kernel = self.conv.weight[:, :, 0].float()  # (out, in, 3, 3)
        weight = torch.einsum("akp,blq,oipq->aboikl", taps, taps, kernel)
        return weight.flatten(0, 2).to(self.conv.weight.dtype)

    def _upsample(self, x: Tensor, weight: Tensor) -> Tensor:
        batch, channels, frames, height, width = x.shape
        flat = x.transpose(1, 2).flatten(0, 1)  # (B t, C, H, W)
        phases = F.conv2d(flat, weight, self.conv.bias.repeat(4), padding=1)  # (B t, 4 C, H + 1, W + 1)
        phases = phases.unflatten(1, (2, 2, -1)).unflatten(0, (batch, frames))
        out = empty(x, (batch, channels, frames, 2 * height, 2 * width))
        for row in range(2):
            for column in range(2):
                cells = phases[:, :, row, column, :, row : row + height, column : column + width]
                out[..., row::2, column::2] = cells.transpose(1, 2)
        return out


class AttnBlock3D(nn.Module):
    """Self-attention over the pixels of each frame: one head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Normalize(channels)
        self.q = pointwise(channels, channels)
        self.k = pointwise(channels, channels)
        self.v = pointwise(channels, channels)
        self.proj_out = pointwise(channels, channels)

    def forward(self, x: Slices) -> Slices:
        scaling = self.norm.scaling(x)
        return each(lambda part: part + self._attend(self.norm(part, scaling)), x)

    def _attend(self, x: Tensor) -> Tensor:
        batch, _, frames, height, _ = x.shape
        q, k, v = (layer(x).permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1))[:, 0]  # (B t, H W, C)
        out = out.unflatten(0, (batch, frames)).unflatten(2, (height, -1)).permute(0, 4, 1, 2, 3)
        return self.proj_out(arrange(out))
