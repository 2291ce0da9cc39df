"""Building blocks of the encoder and the decoder. Axes: B batch, C channels, H W pixels of the feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from videodata.errors import UserError

GROUPS = 8  # of the group norms


def normalization(channels: int) -> nn.GroupNorm:
    """Group norm with 8 groups, or one group per channel where there are fewer than 8."""
    return nn.GroupNorm(min(GROUPS, channels), channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = normalization(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map, with a residual connection that starts as the identity."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"attention over {channels} channels cannot have {heads} heads; use a divisor")
        self.heads = heads
        self.norm = normalization(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3*C)
        tokens = tokens.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, H*W, C/heads)
        q, k, v = tokens.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scaled by (C/heads)^-1/2
        mixed = mixed.permute(0, 1, 3, 2).flatten(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        return x + self.project(mixed)


def downsample(channels: int) -> nn.Conv2d:
    """Half the resolution, by a strided convolution."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def upsample(channels: int, kind: str) -> nn.Module:
    """Twice the resolution: kind "transpose" (transposed convolution) or "nearest" (repeat, then convolve)."""
    if kind == "transpose":
        return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))
