"""Encoder and decoder. Each is in two parts: the levels, which look only at a neighbourhood, and the middle with its
attention, which needs the whole frame at the lowest resolution. Tensors are (B, T, H, W, C), as in blocks.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenizer3d.blocks import (
    CausalConv,
    LinearTimeUp,
    Memory,
    Middle,
    Norm,
    SpaceDown,
    SpaceUp,
    SpatialBlock,
    TimeBlock,
    TimeDown,
    TimeUp,
    conv3d,
    in_strips,
    swish,
)
from tokenizer3d.config import Tokenizer3DConfig


class Level(nn.Module):
    """The blocks of a level, of one kind, and its resampling: a holder of names."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)


class Network(nn.Module):
    """What both have in common."""

    checkpointing = False  # whether blocks are computed again in the backward pass, for memory

    def __init__(self, config: Tokenizer3DConfig) -> None:
        super().__init__()
        self.config = config

    def name_layers(self) -> None:
        """Tell the layers under which name they keep frames in a memory."""
        for name, module in self.named_modules():
            if isinstance(module, CausalConv):
                module.name = name

    def through(self, level: Level, level_in_time: Level, h: Tensor, memory: Memory | None) -> Tensor:
        """The pairs of a level: a block of each frame, then one of each pixel."""
        for pair in zip(level.block, level_in_time.block, strict=True):
            for block in pair:
                if self.checkpointing and torch.is_grad_enabled():
                    h = checkpoint(block, h, use_reentrant=False)
                else:
                    h = in_strips(block, h, memory, block.reach, block.reach)
        return h


def pairs(config: Tokenizer3DConfig, inputs: int, outputs: int, count: int) -> tuple[Level, Level]:
    """`count` pairs of blocks; the first one changes the number of channels."""
    widths = [inputs, *[outputs] * count]
    return (
        Level([SpatialBlock(*widths[number : number + 2]) for number in range(count)]),
        Level([TimeBlock(config, outputs) for _ in range(count)]),
    )


def to_patches(x: Tensor, size: int) -> Tensor:
    """(B, T, H, W, C) -> (B, T, H/size, W/size, C size^2): space to depth."""
    if size == 1:
        return x
    x = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, T, h, size, w, size, C)
    return x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


def from_patches(x: Tensor, size: int) -> Tensor:
    """(B, T, h, w, C size^2) -> (B, T, h size, w size, C), the inverse of `to_patches`."""
    if size == 1:
        return x
    x = x.unflatten(4, (size, size, -1)).permute(0, 1, 2, 4, 3, 5, 6)  # (B, T, h, size, w, size, C)
    return x.flatten(4, 5).flatten(2, 3)


class Encoder(Network):
    """Clip (B, T, H, W, 3) -> moments (B, T/f, H/s, W/s, 2z or z)."""

    def __init__(self, config: Tokenizer3DConfig) -> None:
        super().__init__(config)
        self.conv_in = conv3d(config, config.in_channels * config.patch_size**2, config.ch)
        self.down, self.down_temporal = nn.ModuleList(), nn.ModuleList()
        width = config.ch
        for level in range(len(config.ch_mult)):
            blocks, time_blocks = pairs(config, width, config.width(level), config.num_res_blocks)
            width = config.width(level)
            if level in config.space_down:
                blocks.downsample = SpaceDown(width)
            if level in config.time_down:
                time_blocks.downsample = TimeDown(config, width)
            self.down.append(blocks)
            self.down_temporal.append(time_blocks)
        self.mid = Middle(config, width)
        self.norm_out = Norm(width)
        self.conv_out = conv3d(config, width, config.moments)
        self.name_layers()

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.middle(self.levels(x, memory), memory)

    def levels(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """From the clip to features (B, T/f, H/s, W/s, C)."""
        h = in_strips(self.conv_in, to_patches(x, self.config.patch_size), memory, 1, 1)
        for level, level_in_time in zip(self.down, self.down_temporal, strict=True):
            h = self.through(level, level_in_time, h, memory)
            if hasattr(level, "downsample"):
                h = level.downsample(h, memory)
            if hasattr(level_in_time, "downsample"):
                h = level_in_time.downsample(h, memory)
        return h

    def middle(self, h: Tensor, memory: Memory | None = None) -> Tensor:
        """From the features of whole frames to the moments."""
        return self.conv_out(swish(self.norm_out(self.mid(h, memory))), memory)


class Decoder(Network):
    """Latents (B, T', h, w, z) -> clip (B, f T', s h, s w, 3), with the frames that stand before the first one."""

    def __init__(self, config: Tokenizer3DConfig) -> None:
        super().__init__(config)
        top = len(config.ch_mult) - 1
        width = config.width(top)
        self.conv_in = conv3d(config, config.z_channels, width)
        self.mid = Middle(config, width)
        up, up_temporal, segment = [], [], 1
        for level in range(top, -1, -1):
            blocks, time_blocks = pairs(config, width, config.width(level), config.num_res_blocks + 1)
            width = config.width(level)
            if level in config.space_up:
                blocks.upsample = SpaceUp(width)
            if level in config.time_up:
                linear = config.is_linear
                time_blocks.upsample = LinearTimeUp(config, width, segment) if linear else TimeUp(config, width)
                segment *= 2
            up.insert(0, blocks)
            up_temporal.insert(0, time_blocks)
        self.up, self.up_temporal = nn.ModuleList(up), nn.ModuleList(up_temporal)
        self.norm_out = Norm(width)
        self.conv_out = conv3d(config, width, config.out_channels * config.patch_size**2)
        self.name_layers()

    def forward(self, z: Tensor, memory: Memory | None = None) -> Tensor:
        return self.levels(self.middle(z, memory), memory)

    def middle(self, z: Tensor, memory: Memory | None = None) -> Tensor:
        """From the latents of whole frames to features (B, T', h, w, C)."""
        return self.mid(self.conv_in(z, memory), memory)

    def levels(self, h: Tensor | None, memory: Memory | None = None) -> Tensor | None:
        """From features to the clip. None stands for no frames: at the end, layers with look-ahead still hold some."""
        for level, level_in_time in zip(reversed(self.up), reversed(self.up_temporal), strict=True):
            if h is not None:
                h = self.through(level, level_in_time, h, memory)
                if hasattr(level, "upsample"):
                    h = level.upsample(h, memory)
            if hasattr(level_in_time, "upsample"):
                h = level_in_time.upsample(h, memory)
        return None if h is None else from_patches(in_strips(self.pixels, h, memory, 1, 1), self.config.patch_size)

    def pixels(self, h: Tensor, memory: Memory | None) -> Tensor:
        """From the features of full resolution to pixels."""
        return self.conv_out(swish(self.norm_out(h)), memory)
