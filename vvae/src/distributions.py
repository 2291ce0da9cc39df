"""The posterior of the latent: a Gaussian with a diagonal covariance (Kingma and Welling 2014)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Gaussian given by its moments (B, 2z, ...): mean and log-variance, the latter clamped to [-30, 20].

    Unpacks to `(latent, posterior)`, where the latent is what `encode` was asked for: the mean, or a sample.
    With `deterministic`, the standard deviation is 0.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)  # each (B, z, ...)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.deterministic = deterministic
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = torch.zeros_like(self.mean) if deterministic else torch.exp(self.logvar)
        self.latent = self.mean
        self.first: DiagonalGaussianDistribution | None = None  # of the first stage, where there is one behind it

    def mode(self) -> Tensor:
        """The most probable latent (B, z, ...): the mean."""
        return self.mean

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """A latent (B, z, ...): mean + std * noise, with standard normal noise unless it is given."""
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + self.std * noise.to(self.mean)

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL divergence to `other`, or to N(0, 1): (B,) in nats, summed over everything but the batch."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            ratio = (self.mean - other.mean) ** 2 / other.var + self.var / other.var
            terms = ratio - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)

    def nll(self, sample: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
        """Negative log-likelihood of a latent in nats, summed over `dims` (all but the batch): (B,)."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.sum(dim=tuple(range(1, sample.dim())) if dims is None else dims)

    @property
    def latent_dist(self) -> DiagonalGaussianDistribution:
        """The posterior itself, for code that expects the result of another library's `encode`."""
        return self

    def __iter__(self) -> Iterator[Tensor | DiagonalGaussianDistribution]:
        return iter((self.latent, self))

    def __getitem__(self, index: int) -> Tensor | DiagonalGaussianDistribution:
        return (self.latent, self)[index]

    def __len__(self) -> int:
        return 2
