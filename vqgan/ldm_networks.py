"""Encoder and decoder of taming-transformers and latent-diffusion; attribute names are the published keys.

Axes: N frames, H W pixels, C channels, h w latent positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videodata.errors import UserError


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
    """Group norm with 32 groups."""
    if channels % 32:
        raise UserError(f"ddconfig: widths must be multiples of 32, found {channels}; change ch or ch_mult")
    return nn.GroupNorm(32, channels, eps=1e-6)


def has_attention(config: DDConfig, level: int) -> bool:
    """Whether the nominal resolution of a level is one of those with attention."""
    return config.resolution // 2**level in config.attn_resolutions


def run(part: nn.Module, h: Tensor, checkpointing: bool) -> Tensor:
    """One part of a network, recomputed in the backward pass where checkpointing is on."""
    return checkpoint(part, h, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else part(h)


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
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
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
            h = run(part, h, self.checkpointing)
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
            h = run(part, h, self.checkpointing)
        return self.conv_out(F.silu(self.norm_out(h)))
