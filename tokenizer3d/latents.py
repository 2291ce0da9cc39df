"""What the encoder says about a clip: a Gaussian per latent (KL), or codes with their indices (FSQ)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from losses import gaussian_kl

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents; mean and logvar are float32 (B, z, T', h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """From the encoder's output (B, 2z, T', h, w)."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def mode(self) -> Tensor:
        """The latents that say most about the clip: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (B, z, T', h, w); `noise`, standard normal, is drawn from the generator where it is not given."""
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, of each clip (B,)."""
        return gaussian_kl(self.mean, self.logvar)


@dataclass(frozen=True)
class Codes:
    """Latents on the grid of codes: pre and codes float32 (B, d, T', h, w), indices int32 (B, T', h, w)."""

    pre: Tensor  # what the encoder gave, not yet rounded
    codes: Tensor  # with the gradient of `pre`
    indices: Tensor
    loss: Tensor | None = None  # of a learned codebook, in training

    def mode(self) -> Tensor:
        """The latents that the decoder takes: the codes."""
        return self.codes


Latents = Posterior | Codes
