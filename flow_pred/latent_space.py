"""Latents with mean 0 and variance 1 per channel, so that noise levels mean the same for every autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class LatentSpace(nn.Module):
    """An autoencoder whose latents are normalised per channel. mean, std: C numbers each; None: 0 and 1."""

    def __init__(
        self, autoencoder: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("mean", column(mean or [0.0]), persistent=False)
        self.register_buffer("std", column(std or [1.0]), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> normalised latents (N, C, h, w), float32."""
        return self.normalize(self.autoencoder.encode(images).float())

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (N, C, h, w) -> images (N, 3, H, W)."""
        return self.autoencoder.decode(latents * self.std + self.mean)

    def normalize(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents (..., C, h, w) -> normalised ones."""
        return (latents - self.mean) / self.std


def column(values: Sequence[float]) -> Tensor:
    """C numbers as (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


class Moments:
    """Running mean and standard deviation per channel, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, latents: Tensor) -> None:
        """Take in latents (N, C, h, w)."""
        values = latents.detach().double().movedim(1, 0).flatten(1).cpu()  # (C, N * h * w)
        self.count += values.shape[1]
        self.sum = self.sum + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def mean(self) -> list[float]:
        """C numbers, to 6 digits."""
        return rounded(self.sum / self.count)

    def std(self) -> list[float]:
        """C numbers, to 6 digits; a channel that never changes counts as 1."""
        variance = (self.squares / self.count - (self.sum / self.count).square()).clamp_min(0)
        return rounded(torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance)))


def rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


@torch.no_grad()
def moments_of(autoencoder: nn.Module, clips: Iterable[Tensor]) -> Moments:
    """Moments of the latents of clips (3, T, H, W) in [-1, 1]."""
    moments = Moments()
    for clip in clips:
        moments.add(autoencoder.encode(clip.transpose(0, 1)))
    return moments
