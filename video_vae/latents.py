"""The latents of a clip: one map per level, for the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Latents:
    """What a clip is encoded to, and what is needed to decode it."""

    levels: list[Tensor]  # z_l (B, latent_dim_l, h_l, w_l), level 1 (the finest) first
    frames: int  # of the clip
    size: tuple[int, int]  # (H, W) of the clip, before padding

    def map(self, function: Callable[[Tensor], Tensor]) -> Latents:
        """The same clip format with `function` applied to each level."""
        return replace(self, levels=[function(level) for level in self.levels])

    def mix(self, other: Latents, weight: float) -> Latents:
        """Linear interpolation: self at weight 0, other at weight 1."""
        levels = [torch.lerp(a, b, weight) for a, b in zip(self.levels, other.levels, strict=True)]
        return replace(self, levels=levels)
