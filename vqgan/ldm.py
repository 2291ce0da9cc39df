"""The VQGAN of taming-transformers and latent-diffusion, with the keys of the published files.

Esser et al. 2021 (arXiv 2012.09841), Rombach et al. 2022 (arXiv 2112.10752): the first stages vq-f8, vq-f16 and any
other `ddconfig`. Axes: N frames, H W pixels, D latent channels, h w latent positions, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.quantize import Quantized, Revived, kmeans, nearest, zero
from training.attention import attention
from training.checkpoint import read_tensors, strict_load
from training.config import from_dict, unknown_key
from videodata.errors import UserError
from videodata.finite import finite
from vqgan.model import Reconstruction, check_frames, run_part


def _published(resolution: int, ch_mult: tuple[int, ...], attention: int, channels: int) -> dict[str, Any]:
    ddconfig = {"z_channels": channels, "resolution": resolution, "ch": 128, "ch_mult": ch_mult, "num_res_blocks": 2}
    return {"ddconfig": {**ddconfig, "attn_resolutions": (attention,)}, "n_embed": 16384, "embed_dim": channels}


LDM_CONFIGS = {
    "f8_small": _published(64, (1, 2, 2, 4), 16, 4),
    "f8": _published(256, (1, 2, 2, 4), 32, 4),
    "f16": _published(256, (1, 1, 2, 2, 4), 16, 8),
}


class LDMVQModel(nn.Module):
    """First stage of latent diffusion with vector quantisation: frames (N, 3, H, W) in [-1, 1], output not bounded.

    `ddconfig`: the fields of DDConfig. `encode` gives latents that are not quantised; `decode` quantises first.
    Raises UserError for a configuration with unknown, missing or impossible values.
    """

    def __init__(
        self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int, commitment_cost: float = 0.25
    ) -> None:
        super().__init__()
        shape = {key: value for key, value in ddconfig.items() if key not in ("n_embed", "embed_dim")}
        self.ddconfig = from_dict(DDConfig, shape, "ddconfig")
        if self.ddconfig.double_z:
            raise UserError("ddconfig.double_z: a quantised model has no variance; set it to false")
        self.encoder = Encoder(self.ddconfig)
        self.decoder = Decoder(self.ddconfig)
        self.quantize = LDMQuantizer(n_embed, embed_dim, commitment_cost)  # (h) -> (quantised h, indices)
        self.quant_conv = nn.Conv2d(self.ddconfig.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, self.ddconfig.z_channels, 1)

    @classmethod
    def from_name(cls, name: str) -> LDMVQModel:
        """One of the published architectures, a key of LDM_CONFIGS. Raises UserError for another name."""
        if name not in LDM_CONFIGS:
            raise unknown_key(name, LDM_CONFIGS, "LDM configuration")
        return cls(**LDM_CONFIGS[name])

    @property
    def quantizer(self) -> LDMQuantizer:
        """The quantiser, under the name that VQGAN gives it."""
        return self.quantize

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.ddconfig.ch_mult) - 1)

    @property
    def num_embeddings(self) -> int:
        return self.quantize.size

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the two losses of a GAN are balanced."""
        return self.decoder.conv_out.weight

    def forward(self, frames: Tensor, bypass: bool = False) -> Reconstruction:
        """One pass for training; `bypass` decodes the latents themselves."""
        latents = self.encode(frames)
        quantized = self.quantize.bypass(latents) if bypass else self.quantize.with_loss(latents)
        decoded = self.decode(quantized.latents, force_not_quantize=True)
        return Reconstruction(decoded, latents, quantized.indices, quantized.loss)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> latents (N, D, h, w), not quantised."""
        check_frames(frames, self.downsample_factor)
        return self.quant_conv(self.encoder(frames))

    def latents(self, frames: Tensor) -> Tensor:
        """`encode`, under the name that VQGAN gives it."""
        return self.encode(frames)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents (N, D, h, w) -> frames (N, 3, H, W), by way of the nearest codes unless `force_not_quantize`."""
        codes = h if force_not_quantize else self.quantize(h)[0]
        return self.decoder(self.post_quant_conv(codes))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> frames (N, 3, H, W)."""
        return self.decode(self.quantize.lookup(indices.long()), force_not_quantize=True)

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass in place of keeping them: less memory, same values."""
        self.encoder.checkpointing = self.decoder.checkpointing = enabled

    def configuration(self) -> dict[str, Any]:
        """Plain values from which `LDMVQModel(**values)` makes the same network."""
        ddconfig = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.ddconfig).items()}
        quantize = self.quantize
        return {
            "ddconfig": ddconfig,
            "n_embed": quantize.size,
            "embed_dim": quantize.codebook_dim,
            "commitment_cost": quantize.commitment_cost,
        }

    def load_published(self, path: str | Path) -> None:
        """Load a published file: its `state_dict`, without the `loss.*` keys of the training.

        Raises UserError naming missing, unexpected and misshapen keys; then nothing is loaded.
        """
        strict_load(self, state_dict_in(read_tensors(path), path), path)


@dataclass(frozen=True)
class DDConfig:
    """The `ddconfig` of the published configurations: shape of encoder and decoder."""

    z_channels: int
    resolution: int  # of the training frames; selects the levels with attention
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_ch: int = 3
    dropout: float = 0.0
    double_z: bool = False


def group_norm(channels: int) -> nn.GroupNorm:
    if channels % 32:
        raise UserError(f"ddconfig: widths must be multiples of 32, found {channels}; change ch or ch_mult")
    return nn.GroupNorm(32, channels, eps=1e-6)


def has_attention(config: DDConfig, level: int) -> bool:
    """Whether the nominal resolution of a level is one of those with attention."""
    return config.resolution // 2**level in config.attn_resolutions


class ResnetBlock(nn.Module):
    """(N, C_in, H, W) -> (N, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over the positions, with a residual connection: (N, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # (N, 1, HW, C)
        h = attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Half the resolution, padded at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks with attention after each where the level has it, then a change of resolution."""

    def __init__(self, widths: list[int], attention: bool, dropout: float) -> None:
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.block = nn.ModuleList(ResnetBlock(narrow, wide, dropout) for narrow, wide in pairs)
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:] if attention)

    def forward(self, h: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[number](h)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                h = getattr(self, name)(h)
        return h


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """Frames (N, 3, H, W) -> (N, z_channels, h, w)."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        widths = [config.ch, *(config.ch * factor for factor in config.ch_mult)]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level in range(len(config.ch_mult)):
            inner = [widths[level], *[widths[level + 1]] * config.num_res_blocks]
            self.down.append(Level(inner, has_attention(config, level), config.dropout))
            if level < len(config.ch_mult) - 1:
                self.down[level].downsample = Downsample(widths[level + 1])
        self.mid = Middle(widths[-1], config.dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)
        self.checkpointing = False

    def forward(self, frames: Tensor) -> Tensor:
        h = self.conv_in(frames)
        for part in (*self.down, self.mid):
            h = run_part(part, h, self.checkpointing)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """(N, z_channels, h, w) -> frames (N, 3, H, W)."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.dropout)
        levels = []
        for level in range(len(widths)):
            above = widths[min(level + 1, len(widths) - 1)]
            inner = [above, *[widths[level]] * (config.num_res_blocks + 1)]
            levels.append(Level(inner, has_attention(config, level), config.dropout))
            if level > 0:
                levels[level].upsample = Upsample(widths[level])
        self.up = nn.ModuleList(levels)  # up.0 has the highest resolution
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)
        self.checkpointing = False

    def forward(self, latents: Tensor) -> Tensor:
        h = self.conv_in(latents)
        for part in (self.mid, *reversed(self.up)):
            h = run_part(part, h, self.checkpointing)
        return self.conv_out(F.silu(self.norm_out(h)))


class LDMQuantizer(nn.Module):
    """Latents (N, D, h, w) -> (their nearest codes (N, D, h, w), indices (N, h, w)), by squared Euclidean distance."""

    needs_start = True
    num_quantizers = 1

    def __init__(self, size: int, dim: int, commitment_cost: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        self.size, self.codebook_dim, self.commitment_cost = size, dim, commitment_cost
        self.seed = 0  # of the k-means start

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        quantized = self.with_loss(latents)
        return quantized.latents, quantized.indices

    def with_loss(self, latents: Tensor) -> Quantized:
        """Codes, indices and loss. In training mode gradients pass straight through."""
        if not self.training:
            finite(latents, "latents before the codebook")
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().movedim(1, -1)  # (N, h, w, D)
            with torch.no_grad():  # of the distances; only the codes that were chosen learn
                indices = nearest(vectors.flatten(0, 2), self.embedding.weight).unflatten(0, vectors.shape[:3])
            codes = self.embedding(indices)
            loss = self.loss(vectors, codes) if self.training else zero(latents)
            if self.training:
                codes = vectors + (codes - vectors).detach()
        return Quantized(codes.movedim(-1, 1), indices, loss)

    def loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Codebook and commitment terms of VQ-VAE (arXiv 1711.00937, equation 3).

        The published trainings weight them the other way round: 0.25 for the codebook and 1 for the commitment.
        """
        return F.mse_loss(codes, vectors.detach()) + self.commitment_cost * F.mse_loss(vectors, codes.detach())

    def bypass(self, latents: Tensor) -> Quantized:
        """What the decoder would get if each latent had a code of its own."""
        loss = 0 * self.embedding.weight.sum()  # several processes wait for the gradients of all parameters
        return Quantized(latents.float(), torch.zeros_like(latents[:, 0], dtype=torch.long), loss)

    def project(self, latents: Tensor) -> Tensor:
        """Latents (N, D, h, w) as they are compared with the codes: (N, h, w, D)."""
        return latents.float().movedim(1, -1)

    @torch.no_grad()
    def start(self, vectors: Tensor, tokens: int) -> None:
        """Move the codebook to the k-means of vectors (N, D)."""
        self.embedding.weight.copy_(kmeans(vectors.float(), self.size, seed=self.seed)[0])

    @torch.no_grad()
    def replace(self, revived: Revived) -> None:
        """Let dead codes begin anew."""
        self.embedding.weight[revived.dead] = revived.vectors

    def set_decay(self, decay: float) -> None:
        """Nothing: this codebook is no running mean."""

    @property
    def codebook(self) -> Tensor:
        """All codes, float32 (K, D)."""
        return self.embedding.weight.detach()

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> codes (N, D, h, w)."""
        return self.embedding(indices).movedim(-1, 1)


def state_dict_in(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """What is under `state_dict` (or the content itself), without the `loss.*` keys of the training."""
    state = content.get("state_dict", content)
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise UserError(f"{path}: holds no weights (name -> tensor)")
    return {key: value for key, value in state.items() if not key.startswith("loss.")}
