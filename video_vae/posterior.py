"""Posterior and prior of the latents: diagonal Gaussians per level."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.kl import gaussian_kl
from video_vae.config import VideoVAEConfig
from video_vae.initial import orthogonal_

LOG_VAR_RANGE = (-10.0, 4.0)
FIRST_LOG_VAR = -4.0  # so that the first reconstructions get signal through the noise
PRIOR_WIDTH = 64


class Noise(Protocol):
    """Anything that draws standard normal noise (B, *shape): `training.SampleNoise`, or `GeneratorNoise`."""

    def normal(self, *shape: int) -> Tensor: ...


class GeneratorNoise:
    """Noise for n samples of which each has its own stream, so that a sample does not depend on the others."""

    def __init__(self, n: int, generator: torch.Generator | None, device: torch.device) -> None:
        source = {} if generator is None else {"generator": generator, "device": generator.device}
        seeds = torch.randint(2**62, (n,), **source)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise (n, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)


class LatentHierarchy(nn.Module):
    """q(z_l | states) and p(z_l), or p(z_l | z of the coarser levels) when the prior is hierarchical.

    The hierarchical posterior is relative to the prior, as in NVAE (Vahdat and Kautz 2020, arXiv 2007.03898).
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.latent_dims = [level.latent_dim for level in config.levels]
        self.posteriors = nn.ModuleList(nn.Linear(level.dim, 2 * level.latent_dim) for level in config.levels)
        for layer, dim in zip(self.posteriors, self.latent_dims, strict=True):
            orthogonal_(layer.weight[:dim])
            nn.init.zeros_(layer.weight[dim:])
            nn.init.zeros_(layer.bias[:dim])
            nn.init.constant_(layer.bias[dim:], FIRST_LOG_VAR)
        self.prior = TopDownPrior(self.latent_dims) if config.prior == "hierarchical" else None

    def infer(self, states: list[Tensor], noise: Noise | None) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder states (B, h_l, w_l, dim_l) -> latents (B, latent_dim_l, h_l, w_l) and KL in nats (B,), per level.

        Without noise the latents are the posterior's means.
        """
        levels, divergences = self._empty(), self._empty()
        context = None
        for index in reversed(range(len(states))):
            parameters = self.posteriors[index](states[index]).float().permute(0, 3, 1, 2)
            mean, log_var = parameters.chunk(2, dim=1)
            prior_mean, prior_log_var, hidden = self._prior(index, context, like=mean)
            mean, log_var = mean + prior_mean, (log_var + prior_log_var).clamp(*LOG_VAR_RANGE)
            z = mean if noise is None else mean + (0.5 * log_var).exp() * noise.normal(*mean.shape[1:])
            levels[index] = z
            divergences[index] = gaussian_kl(mean, log_var, prior_mean, prior_log_var)
            context = (hidden, z)
        return levels, divergences

    def sample(self, noise: Noise, grids: list[tuple[int, int]], like: Tensor, temperature: float) -> list[Tensor]:
        """Latents drawn from the prior, its standard deviations multiplied by `temperature`."""
        levels = self._empty()
        context = None
        for index in reversed(range(len(grids))):
            epsilon = noise.normal(self.latent_dims[index], *grids[index]).to(like)
            prior_mean, prior_log_var, hidden = self._prior(index, context, like=epsilon)
            levels[index] = prior_mean + (0.5 * prior_log_var).exp() * temperature * epsilon
            context = (hidden, levels[index])
        return levels

    def _prior(self, index: int, context: tuple | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.prior is None or context is None:
            return torch.zeros_like(like), torch.zeros_like(like), None
        return self.prior(index, *context)

    def _empty(self) -> list:
        return [None] * len(self.latent_dims)


class TopDownPrior(nn.Module):
    """p(z_l | coarser levels): small convolutions on the level above, upsampled, and on what that level knew."""

    def __init__(self, latent_dims: list[int]) -> None:
        super().__init__()
        width = PRIOR_WIDTH
        self.hidden = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(above + (width if index + 2 < len(latent_dims) else 0), width, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
            )
            for index, above in enumerate(latent_dims[1:])
        )
        self.parameters_of = nn.ModuleList(nn.Conv2d(width, 2 * dim, 1) for dim in latent_dims[:-1])
        for layer in self.parameters_of:  # starts as N(0, 1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, index: int, hidden: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of level `index` (from 0), and features for the next finer level."""
        above = z if hidden is None else torch.cat([hidden, z], dim=1)
        hidden = self.hidden[index](F.interpolate(above, scale_factor=2.0, mode="nearest"))
        mean, log_var = self.parameters_of[index](hidden).float().chunk(2, dim=1)
        return mean, log_var.clamp(*LOG_VAR_RANGE), hidden
