"""One decoder layer for one position at a time, with the keys and values of earlier positions kept.

In raster order over a slice, the visited positions of an attention block are exactly its first ones, and once the
slice has moved on to later frames than a block's, that block is never looked at again. So a layer keeps the blocks of
one range of frames alone: slot number (row of blocks, column of blocks).

Axes: B samples, M heads, n tokens of a block, A width of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.attention import BlockLocalAttention, blocks_along
from lvt.model_config import Triple


@dataclass
class Place:
    """A position of the slice as a layer sees it: its block's slot, and its number among the block's tokens.

    Numbers for the plain sampler, tensors (1,) for the compiled one, whose shapes must not depend on the position.
    """

    slot: int | Tensor
    token: int | Tensor


class RowProduct:
    """x W^T + b for a few rows x (B, in), with W (out, in) in the layout that is read fastest.

    Such products cost the time of reading W. On a CPU, one row reads the transpose of a wide matrix up to twice as fast
    as the matrix itself, and several rows are fastest with a matrix that oneDNN has packed for their number.
    packed: allow that; a compiled graph cannot hold such a matrix.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, batch: int, packed: bool = True) -> None:
        self.bias, self.matrix = bias, weight.contiguous()
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.packed = packed and plain and batch > 1 and torch.backends.mkldnn.is_available()
        self.transposed = batch == 1 and len(weight) > weight.shape[1]
        if self.packed:
            self.matrix = torch.ops.mkldnn._reorder_linear_weight(self.matrix, batch)
        elif self.transposed:
            self.matrix = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        if self.transposed:
            return torch.mm(x, self.matrix) if self.bias is None else torch.addmm(self.bias, x, self.matrix)
        return F.linear(x, self.matrix, self.bias)


class CachedLayer:
    """The weights of a layer in the form that a single position needs, and its caches (2, B, slots, M, n, A)."""

    def __init__(self, layer: BlockLocalAttention, size: Triple, batch: int, packed: bool = True) -> None:
        mha, ffn = layer.mha, layer.ffn
        self.block, self.size = layer.block, size
        self.heads, self.head_width, self.tokens = mha.heads, mha.head_width, prod(layer.block)
        self.attention_norm = (mha.layer_norm.weight, mha.layer_norm.bias, mha.layer_norm.eps)
        self.feed_forward_norm = (ffn[0].weight, ffn[0].bias, ffn[0].eps)
        self.qkv = RowProduct(mha.fused_weight(), None, batch, packed)
        self.proj = RowProduct(mha.proj.weight, None, batch, packed)
        self.widen = RowProduct(ffn[1].weight, ffn[1].bias, batch, packed)
        self.narrow = RowProduct(ffn[3].weight, ffn[3].bias, batch, packed)
        self.bias = layer.bias().transpose(0, 1).contiguous()  # (n, M, n)
        _, rows, columns = blocks_along(size, layer.block)
        self.slots = rows * columns
        self.cache = self.bias.new_zeros(2, batch, self.slots, self.heads, self.tokens, self.head_width)

    def place(self, position: int) -> tuple[int, int]:
        """(slot, token) of a flat position of the slice."""
        _, h, w = self.size
        bt, bh, bw = self.block
        frame, row, column = position // (h * w), position // w % h, position % w
        slot = row // bh * (w // bw) + column // bw
        return slot, (frame % bt * bh + row % bh) * bw + column % bw

    def fill(self, kept: Tensor, frame: int) -> None:
        """Take over keys and values (2, B, blocks, M, n, A) of the blocks that frame number `frame` belongs to."""
        start = frame // self.block[0] * self.slots
        if start < kept.shape[2]:
            self.cache.copy_(kept[:, :, start : start + self.slots])

    def step(self, x: Tensor, place: Place) -> Tensor:
        """Features (B, D) of a position through the layer."""
        batch = len(x)
        y = F.layer_norm(x, x.shape[-1:], *self.attention_norm)
        query, new = self.qkv(y).reshape(batch, 3, self.heads, self.head_width).split([1, 2], 1)
        seen = self.attend(query.transpose(1, 2), new.transpose(0, 1), place).view(batch, -1)
        x = x + self.proj(seen)
        y = F.layer_norm(x, x.shape[-1:], *self.feed_forward_norm)
        return x + self.narrow(F.relu(self.widen(y)))

    def attend(self, query: Tensor, new: Tensor, place: Place) -> Tensor:
        """Attention of query (B, M, 1, A) over the visited tokens of its block, after keeping `new` (2, B, M, A)."""
        if isinstance(place.token, int):
            self.cache[:, :, place.slot, :, place.token] = new
            key, value = self.cache[:, :, place.slot, :, : place.token + 1].unbind(0)
            bias = self.bias[place.token, None, :, : place.token + 1]
        else:
            self.cache[:, :, place.slot, :, place.token] = new[None]
            key, value = self.cache.index_select(2, place.slot).squeeze(2).unbind(0)
            bias = self.bias.index_select(0, place.token)
        return attend_one(query, key, value, bias)


def attend_one(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention of a single query (B, M, 1, A) over keys and values (B, M, n, A); bias (1, M, n).

    Products of elements read the caches of several samples in a CPU's memory about twice as fast as
    scaled_dot_product_attention and matrix products with one row do.
    """
    if query.is_cuda or len(query) == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, :, None])
    scores = (key * (query * query.shape[-1] ** -0.5)).sum(-1)  # (B, M, n)
    weights = (scores + bias).softmax(-1)
    return (weights[..., None] * value).sum(-2)
