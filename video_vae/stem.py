"""From a frame to the tokens of level 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from video_vae.initial import orthogonal_

PATCH_GAIN = 3.0  # pixels in [-1, 1] have small variance; the embedding should count beside the convolutions
NARROWEST = 16  # channels at full resolution, where they are most expensive


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of about 16 channels, per sample: nothing depends on the rest of the batch."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class FrameStem(nn.Module):
    """Frame (B, 3, H, W) in [-1, 1] -> map (B, H / stride, W / stride, dim).

    A linear embedding of each patch beside the convolutions keeps absolute colour, which their norms take away.
    """

    def __init__(self, stride: int, dim: int) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [min(dim, NARROWEST * 2**i) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [group_norm(narrow), nn.GELU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        layers += [group_norm(widths[-1]), nn.GELU(), nn.Conv2d(widths[-1], dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.patches = nn.Conv2d(3, dim, stride, stride=stride)
        orthogonal_(self.patches.weight.flatten(1), PATCH_GAIN)
        self.norm = nn.LayerNorm(dim)

    def forward(self, frame: Tensor) -> Tensor:
        frame = frame.contiguous(memory_format=torch.channels_last)
        x = self.layers(frame) + self.patches(frame)
        return self.norm(x.permute(0, 2, 3, 1))
