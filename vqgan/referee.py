"""Keeps the discriminator from winning: it rests while it is right too often."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqgan.revival import all_sum_, world_size

MEMORY = 0.9  # decay of the running accuracy, per batch


class Referee(nn.Module):
    """Running accuracy of the discriminator over the batches of all processes; part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("accuracy", torch.tensor(0.5))  # chance

    @torch.no_grad()
    def forward(self, on_real: Tensor, on_fake: Tensor) -> None:
        """Take in the shares of real and of reconstructed patches that were told right in a batch, two scalars."""
        share = all_sum_(((on_real + on_fake) / 2).float().clone()) / world_size()
        self.accuracy.lerp_(share, 1 - MEMORY)
