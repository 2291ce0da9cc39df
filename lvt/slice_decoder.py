"""Causal decoder of a slice: features that depend on the codes before a position, and on the encoder.

Axes: B slices, C codebooks, (t, h, w) slice, E embedding width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.attention import BlockLocalAttention, run_layers
from lvt.model_config import TransformerConfig
from lvt.position_signal import position_signal

TAPS = 25  # live taps of the causal kernel: all before the position itself, in raster order of 3 x 3 x 3
TAPS_OF_ONE_FRAME = 7  # those in the last of the three frames


class CausalConv3d(nn.Module):
    """3 x 3 x 3 convolution that sees two frames back, two rows up, one column to either side, and not the position.

    The weights of the position itself and of its right neighbour may hold anything; they are masked on use.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3)
        live = (torch.arange(27) < TAPS).view(3, 3, 3)
        self.register_buffer("live", live, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, h, w, E) -> (B, t, h, w, D)."""
        weight = self.conv.weight * self.live
        padded = F.pad(x.movedim(-1, 1), (1, 1, 2, 0, 2, 0))
        return F.conv3d(padded, weight, self.conv.bias).movedim(1, -1)

    def matrix(self, one_frame: bool) -> Tensor:
        """The live taps as a matrix (taps * E, D); only those of the last frame for slices of one frame."""
        taps = self.conv.weight.flatten(2)[:, :, (TAPS - TAPS_OF_ONE_FRAME if one_frame else 0) : TAPS]
        return taps.permute(2, 1, 0).flatten(0, 1)


class SliceDecoder(nn.Module):
    """Codes of a slice and the encoder's features -> features (B, t, h, w, D).

    A position's features depend on the codes of earlier positions alone.
    """

    def __init__(self, config: TransformerConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.ch_embedder = nn.ModuleList(nn.Embedding(config.nv, config.de) for _ in range(config.nc))
        self.conv = CausalConv3d(config.de, config.d)
        self.linear_projector = nn.Conv3d(config.d, config.d, 1, bias=False)
        self.block_local_attention = nn.ModuleList(
            BlockLocalAttention(
                config.d, heads, config.da, block, causal=True, dropout=config.dropout, qkv_init=config.qkv_init,
                attention=config.attention,
            )
            for heads, block in zip(config.n_head_d, config.blocks_d, strict=True)
        )  # fmt: skip

    def forward(self, codes: Tensor, encoded: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """Codes int64 (B, C, t, h, w), encoded (B, t, h, w, D); `keep` collects each layer's keys and values."""
        x = self.conv(self.embed(codes)) + self.conditions(encoded)
        return run_layers(self.block_local_attention, x, self.gradient_checkpointing and self.training, keep)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the embeddings of all codebooks: (B, C, ...) -> (B, ..., E)."""
        embedded = self.ch_embedder[0](codes[:, 0])
        for channel, table in enumerate(self.ch_embedder[1:], start=1):
            embedded = embedded + table(codes[:, channel])
        return embedded

    def conditions(self, encoded: Tensor) -> Tensor:
        """What is known before any code of the slice: position signal and the encoder's features (B, t, h, w, D)."""
        signal = position_signal(tuple(encoded.shape[1:4]), encoded.shape[-1], encoded.device)
        return signal + F.linear(encoded, self.linear_projector.weight.flatten(1))
