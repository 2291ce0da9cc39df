"""From the canvas of the generator to a frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_vae.initial import orthogonal_linear
from video_vae.stem import group_norm

PATCH_GAIN = 0.5  # the first frames are grey rather than noise


class FrameHead(nn.Module):
    """Canvas (B, h, w, in_dim) -> frame (B, 3, h * stride, w * stride) in [-1, 1].

    Sub-pixel output (Shi et al. 2016, arXiv 1609.05158) at the frame's own resolution, then residual convolutions
    beside a linear map from each token to its patch, which has learnt the coarse picture within the first steps.
    """

    def __init__(self, in_dim: int, stride: int, dim: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(in_dim)
        self.expand = nn.Linear(in_dim, dim * stride**2)
        self.patches = orthogonal_linear(in_dim, 3 * stride**2, PATCH_GAIN)
        self.refine = nn.Sequential(
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
        )  # fmt: skip
        self.out = nn.Sequential(group_norm(dim), nn.SiLU(), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, canvas: Tensor) -> Tensor:
        canvas = self.norm(canvas)
        x = self.to_pixels(self.expand(canvas))
        return torch.tanh(self.to_pixels(self.patches(canvas)) + self.out(x + self.refine(x)))

    def to_pixels(self, x: Tensor) -> Tensor:
        """(B, h, w, dim * stride^2) -> (B, dim, h * stride, w * stride)."""
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.stride).contiguous(memory_format=torch.channels_last)
