"""VQGAN (Esser et al. 2021, arXiv 2012.09841): frames <-> maps of code indices; and its discriminator.

Axes: N frames, H W pixels, C channels, D latent channels, h w latent positions (h = H / downsample_factor), K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evaluation.codebook import CodebookUsage
from losses.adversarial import PatchGAN2D
from losses.quantize import Quantized
from training.attention import attention
from videodata.errors import UserError
from vqgan.config import VQGANConfig
from vqgan.quantize import build_quantizer

GROUPS = 8  # of the group norms
PATCHES_AT_A_TIME = 16


def normalization(channels: int) -> nn.GroupNorm:
    """Group norm with 8 groups, or one group per channel where there are fewer than 8."""
    return nn.GroupNorm(min(GROUPS, channels), channels)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = normalization(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map, with a residual connection that starts as the identity."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(f"attention over {channels} channels cannot have {heads} heads; use a divisor")
        self.heads = heads
        self.norm = normalization(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)  # the identity at first: attention joins when it has something to say
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3*C)
        tokens = tokens.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, H*W, C/heads)
        q, k, v = tokens.unbind(0)
        mixed = attention(q, k, v)  # scaled by (C/heads)^-1/2
        mixed = mixed.permute(0, 1, 3, 2).flatten(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        return x + self.project(mixed)


def downsample(channels: int) -> nn.Conv2d:
    """Half the resolution, by a strided convolution."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def upsample(channels: int, kind: str) -> nn.Module:
    """Twice the resolution: kind "transpose" (transposed convolution) or "nearest" (repeat, then convolve)."""
    if kind == "transpose":
        return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


class Reconstruction(NamedTuple):
    """What a training step needs of one forward pass."""

    frames: Tensor  # (N, 3, H, W) in [-1, 1]
    latents: Tensor  # (N, D, h, w) before the quantiser
    indices: Tensor  # (N, h, w) int64
    loss: Tensor  # the quantiser's own loss, a scalar


def run_part(part: nn.Module, h: Tensor, checkpointing: bool) -> Tensor:
    """One part of a network, recomputed in the backward pass where checkpointing is on."""
    return checkpoint(part, h, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else part(h)


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
        h = self.input(frames)
        for level in self.levels:
            h = run_part(level, h, self.checkpointing)
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
        h = self.input(latents)
        for level in self.levels:
            h = run_part(level, h, self.checkpointing)
        # The logistic function on [-1, 1]. Without it, the first hundreds of steps reach 1 dB less.
        return torch.tanh(self.output(F.silu(self.norm(h))) / 2)


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
            self.config.num_quantizers,
        )
        self.decoder = Decoder(self.config)

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.config.downsample_factor

    @property
    def num_embeddings(self) -> int:
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
        return codes, indices, {"commitment": F.mse_loss(codes.float(), latents.float()), **stats}

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


@dataclass
class Encoded:
    """Patches of some frames and what the model makes of them, all on the CPU."""

    patches: Tensor  # (N, 3, h, w) in [-1, 1]
    latents: Tensor  # (N, D, h, w) before the quantiser
    indices: Tensor  # (N, h, w)
    reconstruction: Tensor  # (N, 3, h, w), clamped to [-1, 1]


@torch.no_grad()
def encode_patches(model: nn.Module, patches: Tensor) -> Encoded:
    """Run the model over patches (N, 3, h, w), a few at a time."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in patches.split(PATCHES_AT_A_TIME)]
    latents, indices = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("latents", "indices"))
    frames = torch.cat([part.frames.float().clamp(-1, 1).cpu() for part in parts])
    return Encoded(patches, latents.float(), indices, frames)


class Discriminator(PatchGAN2D):
    """Frames (N, 3, H, W) -> a logit for each patch, (N, 1, h, w); real is large.

    `hidden_dims`: the first is the width of the first layer, and there is a halving of the resolution for each step
    to the next one, at which the width doubles. Four give patches of 70x70 pixels: 80x80 frames have 8x8 logits.
    Spectral norm (arXiv 1802.05957) keeps it from winning.
    """

    def __init__(self, hidden_dims: Sequence[int] = VQGANConfig.hidden_dims, in_channels: int = 3) -> None:
        super().__init__(in_channels, width=hidden_dims[0], layers=len(hidden_dims) - 1, norm="spectral")
        self.layers = len(hidden_dims) - 1

    @staticmethod
    def check_side(hidden_dims: Sequence[int], side: int) -> None:
        """Raises UserError for patches that are too small for a single logit."""
        least = 1
        for stride in [1, 1, *[2] * (len(hidden_dims) - 1)]:  # kernels of 4 with a border of 1, from the logit back
            least = (least - 1) * stride + 2
        if side < least:
            raise UserError(
                f"--patch_size {side}: the discriminator of stage 2 needs {least} pixels with {len(hidden_dims)} "
                "--hidden_dims; use larger patches, fewer --hidden_dims, or --gan_steps 0"
            )

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the square that one logit sees."""
        size = 1
        for stride in [1, 1, *[2] * self.layers]:  # from the logit back to the frame
            size = (size - 1) * stride + 4
        return size
