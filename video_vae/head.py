"""From the canvas of the generator to a frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_vae.stem import group_norm


class FrameHead(nn.Module):
    """Canvas (B, h, w, in_dim) -> frame (B, 3, h * stride, w * stride) in [-1, 1].

    Sub-pixel output (Shi et al. 2016, arXiv 1609.05158) at the frame's own resolution, then a residual convolution.
    """

    def __init__(self, in_dim: int, stride: int, dim: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(in_dim)
        self.expand = nn.Linear(in_dim, dim * stride**2)
        self.refine = nn.Sequential(
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
        )  # fmt: skip
        self.out = nn.Sequential(group_norm(dim), nn.SiLU(), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, canvas: Tensor) -> Tensor:
        x = self.expand(self.norm(canvas)).permute(0, 3, 1, 2)  # (B, dim * stride^2, h, w)
        x = F.pixel_shuffle(x, self.stride)
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.tanh(self.out(x + self.refine(x)))
