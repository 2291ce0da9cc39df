"""The smallest video VAE with every part, and clips for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from video_vae.model import TransformerNetwork
from videodata.pixels import denormalize

TINY: dict[str, Any] = {
    "image_size": [16, 16],
    "levels": [{"dim": 8, "heads": 2, "latent_dim": 4}, {"dim": 16, "heads": 2, "latent_dim": 6}],
    "stem_stride": 4,
    "stem_dim": 8,
    "stem_heads": 2,
    "canvas_dim": 8,
    "canvas_heads": 2,
    "head_dim": 4,
    "gen_iterations": 2,
}


def tiny_network(seed: int = 0, checkpointing: bool = False, **changes: Any) -> TransformerNetwork:
    """A network with the same weights for the same seed and settings."""
    torch.manual_seed(seed)
    return TransformerNetwork.from_config({**TINY, **changes}, checkpointing)


def random_clip(batch: int = 2, frames: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Clip (B, 3, T, H, W) in [-1, 1]."""
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Clips(TensorDataset):
    """Clips without the tuple around each."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[0]


def clips(count: int = 8) -> Dataset:
    """`count` clips of 3 frames, uint8 as the loader sends them."""
    return Clips(denormalize(random_clip(count)))
