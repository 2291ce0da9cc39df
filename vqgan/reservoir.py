"""The latents of the last steps, kept for the start of the codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqgan.revival import gather

PER_CODE = 8  # latents kept for each code


class LatentReservoir(nn.Module):
    """A ring of the newest latents of all processes; part of the checkpoint, so that a resumed run starts alike."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(PER_CODE * codes, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # latents seen so far
        self.register_buffer("used", torch.zeros((), dtype=torch.bool))  # the codebook has started

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> None:
        """Take in latents (..., dim)."""
        new = gather(vectors.flatten(0, -2).float().contiguous())[-len(self.vectors) :]
        places = (self.count + torch.arange(len(new), device=new.device)) % len(self.vectors)
        self.vectors[places] = new
        self.count += len(new)

    def newest(self) -> Tensor:
        """What is kept, (N, dim)."""
        return self.vectors[: int(self.count.clamp(max=len(self.vectors)))]
