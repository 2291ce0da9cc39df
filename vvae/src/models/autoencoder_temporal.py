"""The second stage: a small 3D convolutional autoencoder that divides the number of frames by 4.

Convolutions repeat the border (replicate padding). Axes: B samples, C channels, T frames, h and w latent pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.attention_temporal_videoae import Text, TextAttention
from ..modules.utils import Conv3d, Normalize


class ReplicateConv(nn.Module):
    """3x3x3 convolution with replicate padding. With stride 2 in time, output t covers the frames 2t-1, 2t, 2t+1."""

    def __init__(self, channels: int, out_channels: int, time_stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv3d(channels, out_channels, 3, stride=(time_stride, 1, 1))
        self.padding = (1, 1, 1, 1, 1, 1 if time_stride == 1 else 0)  # left, right, top, bottom, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding, mode="replicate"))


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), width unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = Normalize(channels)
        self.conv1 = ReplicateConv(channels, channels)
        self.norm2 = Normalize(channels)
        self.conv2 = ReplicateConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1.activate(x))
        return x + self.conv2(self.norm2.activate(h))


class Output(nn.Sequential):
    """GroupNorm, SiLU, convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(Normalize(channels), nn.SiLU(), ReplicateConv(channels, out_channels))


class DownBlock(nn.Module):
    """Half the frames, twice the channels."""

    def __init__(self, channels: int, text: bool) -> None:
        super().__init__()
        self.down = ReplicateConv(channels, 2 * channels, time_stride=2)
        self.res = ResBlock(2 * channels)
        self.attn = nn.ModuleList([TextAttention(2 * channels, patch=1)] if text else [])

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        return attend(self.attn, self.res(self.down(x)), text)


class UpBlock(nn.Module):
    """Twice the frames."""

    def __init__(self, channels: int, out_channels: int, text: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(
            channels, out_channels, 3, stride=(2, 1, 1), padding=(1, 1, 1), output_padding=(1, 0, 0)
        )
        self.res1 = ResBlock(out_channels)
        self.attn1 = nn.ModuleList([TextAttention(out_channels, patch=1)] if text else [])
        self.res2 = ResBlock(out_channels)
        self.attn2 = nn.ModuleList([TextAttention(out_channels, patch=1)] if text else [])

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        x = attend(self.attn1, self.res1(self.up(x)), text)
        return attend(self.attn2, self.res2(x), text)


def attend(layers: nn.ModuleList, x: Tensor, text: Text | None) -> Tensor:
    """Apply the text attentions of a level, of which there is one or none."""
    for layer in layers:
        (x,) = layer([x], text)
    return x


class EncoderTemporal1DCNN(nn.Module):
    """Spatial latent (B, z, T, h, w) -> moments of the latent (B, 2z, T/4, h, w)."""

    def __init__(self, channels: int, hidden: int, text_factors: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv_in = ReplicateConv(channels, hidden)
        self.mid_blocks = nn.ModuleList(
            [DownBlock(hidden, text=2 in text_factors), DownBlock(2 * hidden, text=4 in text_factors)]
        )
        self.final_block = Output(4 * hidden, 2 * channels)
        self.apply(initialise)

    def forward(self, x: Tensor, text: Text | None = None) -> Tensor:
        h = self.conv_in(x)
        for block in self.mid_blocks:
            h = block(h, text)
        return self.final_block(h)


class DecoderTemporal1DCNN(nn.Module):
    """Latent (B, z, T/4, h, w) -> spatial latent (B, z, T, h, w)."""

    def __init__(self, channels: int, hidden: int, text_factors: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv_in = ReplicateConv(channels, 4 * hidden)
        self.mid_blocks = nn.ModuleList(
            [
                UpBlock(4 * hidden, 4 * hidden, text=4 in text_factors),
                UpBlock(4 * hidden, 2 * hidden, text=2 in text_factors),
            ]
        )
        self.conv_last = ReplicateConv(2 * hidden, channels)
        self.apply(initialise)

    def forward(self, x: Tensor, text: Text | None = None) -> Tensor:
        h = self.conv_in(x)
        for block in self.mid_blocks:
            h = block(h, text)
        return self.conv_last(h)


def initialise(module: nn.Module) -> None:
    """Start values of this stage: Xavier-uniform weights, zero biases."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
