"""Encoder of a slice: what is known of the clip, as features at the positions of the slice.

Axes: B slices, C codebooks, V codes per codebook, (T', H', W') context, (t, h, w) slice, E embedding width, D width.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.attention import BlockLocalAttention, run_layers
from lvt.model_config import TransformerConfig, Triple
from lvt.subscale import context_ids
from videodata.errors import UserError


class TableConv3d(nn.Module):
    """The strided convolution over one-hot codes, computed as a sum of rows of its weight.

    Weight (E, C * V, kt, kh, kw) as in the published checkpoints; input channel of code v of codebook c is c * V + v.
    Cells below 0 add nothing.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.nc, self.nv, self.kernel, self.stride = config.nc, config.nv, config.kernel, config.stride
        self.weight = nn.Parameter(torch.empty(config.de, config.nc * config.nv, *config.kernel))
        self.bias = nn.Parameter(torch.zeros(config.de))

    def table(self, taps: Tensor) -> Tensor:
        """Rows of the weight for some flat kernel taps, and one row of zeros: (len(taps) * C * V + 1, E)."""
        rows = self.weight.flatten(2)[:, :, taps].permute(2, 1, 0).flatten(0, 1)
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])

    def forward(self, context: Tensor, table: Tensor | None = None) -> Tensor:
        """Context int64 (B, C, T', H', W') -> (B, t, h, w, E). `table` is what `table(taps)` gave, to reuse it."""
        windows = context
        for axis, (size, step) in enumerate(zip(self.kernel, self.stride, strict=True)):
            windows = windows.unfold(axis + 2, size, step)  # (B, C, t, h, w, kt, kh, kw)
        size = tuple(windows.shape[2:5])
        taps = visible_taps(size, self.stride, self.kernel).to(context.device)
        table = self.table(taps) if table is None else table
        codes = windows.flatten(5)[..., taps].permute(0, 2, 3, 4, 5, 1)  # (B, t, h, w, taps, C)
        offsets = torch.arange(len(taps) * self.nc, device=codes.device).view(-1, self.nc) * self.nv
        rows = torch.where(codes >= 0, codes + offsets, len(table) - 1).flatten(4).flatten(0, 3)
        sums = F.embedding_bag(rows, table, mode="sum", padding_idx=len(table) - 1)
        return sums.view(-1, *size, sums.shape[-1]) + self.bias


@lru_cache(maxsize=64)
def visible_taps(size: Triple, stride: Triple, kernel: Triple) -> Tensor:
    """Flat kernel taps that meet a known cell in some slice of `size`; the others can never add anything."""
    clip = (size[0] * stride[0], size[1] * stride[1], size[2] * stride[2])
    windows = context_ids(clip, stride, kernel)
    for axis, (taps, step) in enumerate(zip(kernel, stride, strict=True)):
        windows = windows.unfold(axis + 1, taps, step)
    seen = (windows.reshape(-1, prod(kernel)) >= 0).any(0)
    return seen.nonzero().flatten()


class SliceEncoder(nn.Module):
    """Context and slice number (and class) -> features (B, t, h, w, D)."""

    def __init__(self, config: TransformerConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.class_num, self.gradient_checkpointing = config.class_num, gradient_checkpointing
        self.conv = TableConv3d(config)
        self.slice_embedding = nn.Embedding(config.n_slices, config.de)
        if config.class_num:
            self.class_embedding = nn.Embedding(config.class_num, config.de)
        inputs = config.de * (2 if config.class_num else 1)
        self.linear_projector = nn.Conv3d(inputs, config.d, 1, bias=False)
        self.block_local_attention = nn.ModuleList(
            BlockLocalAttention(
                config.d, heads, config.da, block, causal=False, dropout=config.dropout, qkv_init=config.qkv_init,
                attention=config.attention,
            )
            for heads, block in zip(config.n_head_e, config.blocks_e, strict=True)
        )  # fmt: skip

    def forward(
        self, context: Tensor, slice_index: Tensor, class_index: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """Context (B, C, T', H', W'), slice_index and class_index int64 (B,) -> (B, t, h, w, D)."""
        x = self.project(self.conv(context, table), slice_index, class_index)
        return run_layers(self.block_local_attention, x, self.gradient_checkpointing and self.training)

    def project(self, x: Tensor, slice_index: Tensor, class_index: Tensor | None) -> Tensor:
        """Add slice and class to the convolution's output (B, t, h, w, E) and widen it to D."""
        x = x + self.slice_embedding(slice_index)[:, None, None, None]
        if self.class_num:
            self.check_classes(class_index, len(x))
            label = self.class_embedding(class_index)[:, None, None, None]
            x = torch.cat([x, label.expand_as(x)], -1)
        elif class_index is not None:
            raise UserError("a class is given, but the transformer has CLASS_NUM 0")
        return F.linear(x, self.linear_projector.weight.flatten(1))

    def check_classes(self, class_index: Tensor | None, batch: int) -> None:
        """Raises UserError unless there is one known class per slice."""
        if class_index is None or class_index.shape != (batch,):
            raise UserError(f"the transformer has CLASS_NUM {self.class_num}: give one class index per clip")
