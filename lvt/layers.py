"""What the networks are made of: fresh weights, the position signal, and self-attention inside blocks of a slice.

Names of parameters are those of the published checkpoints. Axes: B slices, (t, h, w) slice, (bt, bh, bw) block,
n = bt bh bw tokens of a block in raster order, N blocks of all slices, M heads, D width, A width of a head.
"""

from __future__ import annotations

import math
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from lvt.config import Triple
from training.attention import attention
from videodata.errors import UserError

LARGE_BLOCK = 1024  # tokens from which a bias of (M, n, n) numbers costs more than computing it on the fly


def initialize_convolutions(module: nn.Module, kind: str = "xavier_uniform") -> None:
    """Random weights and zero biases for every convolution and linear layer, as INIT_TYPE says.

    "normal" has the standard deviation (1.04 times all dimensions of the weight but the last)^(-1/2), the original's.
    Raises UserError for another kind.
    """
    if kind not in ("xavier_uniform", "normal"):
        raise UserError(f"MODEL.INIT_TYPE {kind!r}: use xavier_uniform or normal")
    for layer in module.modules():
        name, weight = type(layer).__name__, getattr(layer, "weight", None)
        if weight is None or not ("Conv" in name or "Linear" in name):
            continue
        if kind == "normal":
            nn.init.normal_(weight, std=1 / math.sqrt((1 + 0.2**2) * math.prod(weight.shape[:-1])))
        else:
            nn.init.xavier_uniform_(weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialize_heads(weight: torch.Tensor, kind: str) -> None:
    """Normal weights (heads, D, head width) of a query, key or value projection.

    "matrix": the Xavier standard deviation of the D -> heads * head width matrix that they are. "tensor": that of the
    original, which counts the fans on the three-dimensional tensor and so starts several times smaller.
    """
    heads, width, head_width = weight.shape
    fans = width + heads * head_width if kind == "matrix" else (width + heads) * head_width
    weight.normal_(std=math.sqrt(2 / fans))


def inverse_timescales(width: int) -> Tensor:
    """10000^(-i/m), i = 0 .. m - 1, with m = width // 6 frequencies per axis."""
    count = width // 6
    return 10000.0 ** (-torch.arange(count, dtype=torch.float32) / max(count, 1))


def position_signal(size: Triple, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Signal (t, h, w, width): per axis a sixth of the channels sine, a sixth cosine; channels left over are 0."""
    rates = inverse_timescales(width).to(device)
    signal = torch.zeros(*size, width, device=device)
    for axis, length in enumerate(size):
        angles = torch.arange(length, device=device)[:, None] * rates  # (length, m)
        waves = torch.cat([angles.sin(), angles.cos()], 1)  # (length, 2 m)
        shape = [1, 1, 1, waves.shape[1]]
        shape[axis] = length
        signal[..., axis * waves.shape[1] : (axis + 1) * waves.shape[1]] = waves.view(shape)
    return signal


class HeadProjections(nn.Module):
    """Layer norm, the projections to queries, keys and values, and the one back."""

    def __init__(self, width: int, heads: int, head_width: int, qkv_init: str) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.layer_norm = nn.LayerNorm(width)
        for name in ("w_q", "w_k", "w_v"):
            weight = nn.Parameter(torch.empty(heads, width, head_width))
            initialize_heads(weight.data, qkv_init)
            setattr(self, name, weight)
        self.proj = nn.Linear(heads * head_width, width, bias=False)

    def fused_weight(self) -> Tensor:
        """The three projections as the weight (3 M A, D) of one linear layer."""
        return torch.cat([self.w_q, self.w_k, self.w_v]).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n, D) -> queries, keys and values (3, N, M, n, A)."""
        together = F.linear(self.layer_norm(x), self.fused_weight())
        return together.view(*x.shape[:2], 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)


class BlockLocalAttention(nn.Module):
    """One transformer layer whose attention stays inside blocks: x + attention, then + feed-forward.

    causal: a position sees itself and those before it in raster order. attention: "sdpa" adds a bias matrix to fused
    attention, "flex" computes the bias inside the kernel, "auto" takes flex for large blocks on a GPU.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, block: Triple, causal: bool, dropout: float = 0.0,
        qkv_init: str = "matrix", attention: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        self.block, self.causal, self.dropout, self.attention = tuple(block), causal, dropout, attention
        for name, length in zip(("dt_bank", "dh_bank", "dw_bank"), block, strict=True):
            setattr(self, name, nn.Parameter(torch.zeros(heads, 2 * length - 1)))
        self.mha = HeadProjections(width, heads, head_width, qkv_init)
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def bias(self) -> Tensor:
        """What is added to the score of query i and key j: (M, n, n); -inf where a causal query must not look."""
        parts = []
        for axis, bank in enumerate((self.dt_bank, self.dh_bank, self.dw_bank)):
            places = torch.arange(self.block[axis], device=bank.device)
            part = bank[:, places[:, None] - places + self.block[axis] - 1]  # (M, b, b)
            shape = [len(bank), 1, 1, 1, 1, 1, 1]
            shape[axis + 1] = shape[axis + 4] = self.block[axis]
            parts.append(part.view(shape))
        tokens = prod(self.block)
        total = (parts[0] + parts[1] + parts[2]).reshape(-1, tokens, tokens)
        if not self.causal:
            return total
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=total.device).triu(1)
        return total.masked_fill(later, float("-inf"))

    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """(B, t, h, w, D) -> the same shape. Keys and values (2, B, blocks, M, n, A) are appended to `keep`."""
        size, batch = tuple(x.shape[1:4]), len(x)
        tokens = into_blocks(x, self.block)  # (N, n, D)
        query, key, value = self.mha(tokens)
        if keep is not None:
            keep.append(torch.stack([key, value]).unflatten(1, (batch, -1)))
        seen = self.attend(query, key, value).transpose(1, 2).flatten(2)  # (N, n, M A)
        tokens = tokens + F.dropout(self.mha.proj(seen), self.dropout, self.training)
        tokens = tokens + F.dropout(self.ffn(tokens), self.dropout, self.training)
        return from_blocks(tokens, self.block, size)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (N, M, n, A) within each block."""
        large = self.attention == "auto" and query.is_cuda and prod(self.block) >= LARGE_BLOCK
        if self.attention == "flex" or large:
            banks = (self.dt_bank, self.dh_bank, self.dw_bank)
            return flex_block_attention(query, key, value, banks, self.block, self.causal)
        return attention(query, key, value, self.bias().to(query.dtype)[None])


def run_layers(layers: nn.ModuleList, x: Tensor, checkpointing: bool, keep: list[Tensor] | None = None) -> Tensor:
    """(B, t, h, w, D) through all layers; checkpointing stores only what enters each of them."""
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False) if checkpointing else layer(x, keep)
    return x


def blocks_along(size: Triple, block: Triple) -> Triple:
    """Blocks along each axis of a slice. Raises UserError when the block does not divide the slice."""
    if any(length % part for length, part in zip(size, block, strict=True)):
        raise UserError(
            f"attention blocks of {tuple(block)} do not divide slices of {tuple(size)} codes; set VT.BLOCKS_E and "
            f"VT.BLOCKS_D to such as do"
        )
    return size[0] // block[0], size[1] // block[1], size[2] // block[2]


def into_blocks(x: Tensor, block: Triple) -> Tensor:
    """(B, t, h, w, D) -> (B * blocks, n, D); blocks and the tokens in them in raster order."""
    nt, nh, nw = blocks_along(tuple(x.shape[1:4]), block)
    x = x.view(len(x), nt, block[0], nh, block[1], nw, block[2], -1)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, prod(block), x.shape[-1])


def from_blocks(tokens: Tensor, block: Triple, size: Triple) -> Tensor:
    """The inverse of `into_blocks` for slices of `size`."""
    nt, nh, nw = blocks_along(size, block)
    x = tokens.view(-1, nt, nh, nw, *block, tokens.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *size, tokens.shape[-1])


def flex_block_attention(
    query: Tensor, key: Tensor, value: Tensor, banks: tuple[Tensor, Tensor, Tensor], block: Triple, causal: bool
) -> Tensor:
    """Attention of (N, M, n, A) with the bias banks (M, 2 b - 1) of the three axes of a block."""
    bt, bh, bw = block
    dt_bank, dh_bank, dw_bank = banks

    def relative(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dt = i // (bh * bw) - j // (bh * bw) + bt - 1
        dh = i // bw % bh - j // bw % bh + bh - 1
        dw = i % bw - j % bw + bw - 1
        return score + dt_bank[head, dt] + dh_bank[head, dh] + dw_bank[head, dw]

    mask = causal_mask(prod(block), str(query.device)) if causal else None
    attend = compiled_flex_attention() if query.is_cuda else flex_attention
    return attend(query, key, value, score_mod=relative, block_mask=mask)


@lru_cache(maxsize=16)
def causal_mask(tokens: int, device: str) -> BlockMask:
    """Lets a query see itself and what is before it."""
    return create_block_mask(lambda batch, head, i, j: j <= i, None, None, tokens, tokens, device=device)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> object:
    """Compiled once for the process."""
    return torch.compile(flex_attention)
