"""VQGAN (Esser et al. 2021, arXiv 2012.09841): frames <-> maps of code indices.

Axes: N frames, H W pixels, D latent channels, h w latent positions (h = H / downsample_factor), K codes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evaluation.codebook import CodebookUsage
from videodata.errors import UserError
from vqgan.blocks import AttentionBlock, ResidualBlock, downsample, normalization, upsample
from vqgan.config import VQGANConfig
from vqgan.quantize import Quantized, build_quantizer, commitment


class Reconstruction(NamedTuple):
    """What a training step needs of one forward pass."""

    frames: Tensor  # (N, 3, H, W) in [-1, 1]
    latents: Tensor  # (N, D, h, w) before the quantiser
    indices: Tensor  # (N, h, w) int64
    loss: Tensor  # the quantiser's own loss, a scalar


class Encoder(nn.Module):
    """Frames (N, 3, H, W) -> latents (N, D, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        dims = config.hidden_dims
        self.input = nn.Conv2d(3, dims[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for level, (narrow, wide) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            layers = [downsample(narrow)] if level < config.halvings else []
            layers.append(ResidualBlock(narrow, wide, config.dropout))
            if config.attends(level):
                layers.append(AttentionBlock(wide, config.attention_heads))
            layers.append(ResidualBlock(wide, wide, config.dropout))
            self.levels.append(nn.Sequential(*layers))
        self.norm = normalization(dims[-1])
        self.output = nn.Conv2d(dims[-1], config.latent_dim, 3, padding=1)
        self.checkpointing = False

    def forward(self, frames: Tensor) -> Tensor:
        h = run_levels(self, self.input(frames))
        return self.output(F.silu(self.norm(h)))


class Decoder(nn.Module):
    """Latents (N, D, h, w) -> frames (N, 3, H, W) in [-1, 1]: the encoder's mirror image."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        dims = config.hidden_dims
        self.input = nn.Conv2d(config.latent_dim, dims[-1], 3, padding=1)
        self.levels = nn.ModuleList()
        for level in reversed(range(len(dims) - 1)):
            wide, narrow = dims[level + 1], dims[level]
            layers: list[nn.Module] = [ResidualBlock(wide, wide, config.dropout)]
            if config.attends(level):
                layers.append(AttentionBlock(wide, config.attention_heads))
            layers += [upsample(wide, config.upsample)] if level < config.halvings else []
            layers.append(ResidualBlock(wide, narrow, config.dropout))
            self.levels.append(nn.Sequential(*layers))
        self.norm = normalization(dims[0])
        self.output = nn.Conv2d(dims[0], 3, 3, padding=1)
        self.checkpointing = False

    def forward(self, latents: Tensor) -> Tensor:
        h = run_levels(self, self.input(latents))
        # The logistic function on [-1, 1]. Without it, the first hundreds of steps reach 1 dB less.
        return torch.tanh(self.output(F.silu(self.norm(h))) / 2)


def run_levels(network: Encoder | Decoder, h: Tensor) -> Tensor:
    """The levels one after another, recomputed in the backward pass where checkpointing is on."""
    for level in network.levels:
        recompute = network.checkpointing and torch.is_grad_enabled()
        h = checkpoint(level, h, use_reentrant=False) if recompute else level(h)
    return h


class VQGAN(nn.Module):
    """Encoder, quantiser and decoder of frames in [-1, 1]; `options` are the other fields of VQGANConfig.

    Raises UserError for a configuration that cannot be built and for frames whose sides the factor does not divide.
    """

    def __init__(
        self,
        hidden_dims: tuple[int, ...] | list[int] = VQGANConfig.hidden_dims,
        latent_dim: int = VQGANConfig.latent_dim,
        num_embeddings: int = VQGANConfig.num_embeddings,
        downsample_factor: int = VQGANConfig.downsample_factor,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = VQGANConfig(tuple(hidden_dims), latent_dim, num_embeddings, downsample_factor, **options)
        self.encoder = Encoder(self.config)
        self.quantizer = build_quantizer(
            self.config.quantizer,
            latent_dim,
            num_embeddings,
            self.config.commitment_cost,
            self.config.decay,
            self.config.dead_code_fraction,
            self.config.fsq_levels,
        )
        self.decoder = Decoder(self.config)

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.config.downsample_factor

    @property
    def num_embeddings(self) -> int:
        """Number of codes."""
        return self.config.num_embeddings

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the two losses of a GAN are balanced."""
        return self.decoder.output.weight

    def forward(self, frames: Tensor, bypass: bool = False) -> Reconstruction:
        """One pass for training; `bypass` decodes the latents themselves. In training mode it moves the codebook."""
        latents = self.latents(frames)
        quantized: Quantized = self.quantizer.bypass(latents) if bypass else self.quantizer(latents)
        return Reconstruction(self.decode(quantized.latents), latents, quantized.indices, quantized.loss)

    def latents(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] -> latents (N, D, h, w), not quantised."""
        check_frames(frames, self.downsample_factor)
        return self.encoder(frames)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, D, h, w) -> (the nearest codes (N, D, h, w), their indices (N, h, w)); moves nothing."""
        quantized = self.quantizer(latents, update=False)
        return quantized.latents, quantized.indices

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Frames (N, 3, H, W) in [-1, 1] -> (quantised latents (N, D, h, w), indices (N, h, w), stats).

        stats: commitment (mean squared distance of latents and codes), codes_used and perplexity of this batch.
        """
        latents = self.latents(frames)
        codes, indices = self.quantize(latents)
        usage = CodebookUsage(self.num_embeddings).update(indices)
        stats = {"codes_used": torch.tensor(usage.used), "perplexity": torch.tensor(usage.perplexity)}
        return codes, indices, {"commitment": commitment(latents, codes), **stats}

    def decode(self, latents: Tensor) -> Tensor:
        """Quantised latents (N, D, h, w) -> frames (N, 3, H, W) in [-1, 1]."""
        return self.decoder(latents)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> frames (N, 3, H, W) in [-1, 1]."""
        return self.decode(self.quantizer.lookup(indices.long()))

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass in place of keeping them: less memory, same values."""
        self.encoder.checkpointing = self.decoder.checkpointing = enabled

    def configuration(self) -> dict[str, Any]:
        """Plain values from which `VQGAN(**values)` makes the same network."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.config).items()}


def check_frames(frames: Tensor, factor: int) -> None:
    """Raises UserError for a size that the downsampling factor does not divide."""
    height, width = frames.shape[-2:]
    if height % factor or width % factor:
        raise UserError(f"frames of {width}x{height} cannot be encoded: both sides must be multiples of {factor}")
