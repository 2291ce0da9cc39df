"""The transformer's decoder for a few positions of a slice at a time: what sampling needs, and nothing computed twice.

In raster order over a slice, the visited positions of an attention block are exactly its first ones, and once the
slice has moved on to later frames than a block's, that block is never looked at again. So a layer keeps the keys and
values of the blocks of one range of frames alone: slot number (row of blocks, column of blocks).

Each call computes a window of W positions of every sample, of which all but the first stand behind codes that are only
guessed. What it computes is right as far as those guesses are (`lvt.predictive_sampler`).

Axes: B samples, C codebooks, V codes per codebook, (t, h, w) slice, n = t h w positions (of a layer: tokens of
a block), W positions of a window, R = B W rows, E embedding width, D width, M heads, A width of a head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.config import Triple
from lvt.layers import BlockLocalAttention, blocks_along
from lvt.sampling import SamplingRule
from lvt.transformer import TAPS, TAPS_OF_ONE_FRAME, VideoTransformer

# How much float32 sums of another order may change logits, as a share of the largest: ten times what was seen, which is
# 1e-6 with DSFVT and with trained weights. In half precision it would be so much that most codes were in doubt.
ROUNDING = 1e-5


class CachedDecoder:
    """Samples slices of one size for a batch. `begin` a slice, then `sample` windows of its positions in raster order.

    window: positions of a sample that are computed at once, fewer where an attention block ends before. compiled: one
    graph for all positions (torch.compile), which always attends to whole blocks. With a `guidance` other than 1, the
    batch is twice that of the samples: as the class has them, then the same without a class, and logits are led from
    the second to the first (Ho and Salimans 2022, arXiv 2207.12598).
    """

    def __init__(
        self, model: VideoTransformer, size: Triple, batch: int, rule: SamplingRule, compiled: bool = False,
        guidance: float = 1.0, window: int = 1,
    ) -> None:  # fmt: skip
        self.decoder, self.head, self.config, self.rule = model.decoder, model.ch_predictor, model.config, rule
        self.size, self.batch, self.compiled, self.guidance = size, batch, compiled, guidance
        self.samples = batch if guidance == 1 else batch // 2
        self.run = gcd(*(run_length(size, layer.block) for layer in model.decoder.block_local_attention))
        self.window = min(window, self.run)
        rows = batch * self.window
        self.layers = [
            CachedLayer(layer, size, batch, rows, not compiled) for layer in model.decoder.block_local_attention
        ]
        if self.window == 1 and not compiled and products_pay(self.layers[0].cache[:, :, 0]):
            for layer in self.layers:
                layer.attend = attend_by_products
        taps = model.decoder.conv.matrix(one_frame=size[0] == 1)  # (taps * E, D)
        width, device, dtype = self.config.d, taps.device, taps.dtype
        self.convolve = RowProduct(taps.t(), None, rows, not compiled)
        self.cells, self.neighbours = neighbour_tables(size, device)
        self.codes = torch.zeros(self.samples, prod(size), self.config.nc, dtype=torch.int64, device=device)
        self.embedded = torch.zeros(batch, padded_cells(size), self.config.de, device=device, dtype=dtype)
        self.conditions = torch.zeros(batch, prod(size), width, device=device, dtype=dtype)
        self.first_hidden = [
            RowProduct(layer.weight[:, :width], layer.bias, rows, not compiled) for layer in self.head.U
        ]
        self.picked_hidden = [layer.weight[:, width:].t().contiguous() for layer in self.head.U]  # (k V, D)
        self.rounding = 0.0 if dtype in (torch.bfloat16, torch.float16) else ROUNDING
        self.damage = torch.zeros((), device=device)  # NaN once a logit was none: NaN has a code, too
        self.forward = torch.compile(self.compute, dynamic=False) if compiled else self.compute

    def begin(self, codes: Tensor, encoded: Tensor, known_frames: int) -> None:
        """Start a slice: codes (B, C, t, h, w) whose first frames are known and the others guessed, encoded
        (B, t, h, w, D).
        """
        conditions = self.decoder.conditions(encoded) + self.decoder.conv.conv.bias
        self.conditions.copy_(conditions.flatten(1, 3))
        self.codes.copy_(codes[: self.samples].flatten(2).transpose(1, 2))
        self.embedded.zero_()
        self.embedded[:, self.cells] = self.decoder.embed(codes).flatten(1, 3)
        if not known_frames:
            return
        # One parallel pass over the known frames (rounded up to whole blocks) gives their keys and values.
        step = lcm(*(layer.block[0] for layer in self.layers))
        frames = -(-known_frames // step) * step
        kept: list[Tensor] = []
        self.decoder(codes[:, :, :frames], encoded[:, :frames], kept)
        for layer, own in zip(self.layers, kept, strict=True):
            layer.fill(own, known_frames)

    def start(self, position: int) -> int:
        """Where the window begins that shows a position and what follows: there, or before, where its block ends."""
        end = (position // self.run + 1) * self.run
        return min(position, end - self.window)

    def sample(self, positions: Sequence[int], noise: Tensor) -> tuple[list[int], Tensor, Tensor]:
        """One call for a window of each sample, which shows its position of `positions`; noise (B, n, C, V).

        Gives where the windows start, whether their guesses were what now is chosen, and whether that is in doubt, bool
        (B, W) each. What is chosen, `codes`, is the next call's guess; before `positions`, codes stay as they are.
        B counts the samples: half of the batch under guidance.
        """
        starts = [self.start(min(position, len(self.cells) - 1)) for position in positions]
        window = own = self.place(starts)
        if self.guidance != 1:
            window = self.place(self.of_batch(starts))
        codes, doubt = self.forward(window, noise[own.rows, own.positions].flatten(0, 1))
        codes, guessed = codes.view(self.samples, self.window, -1), self.codes[own.rows, own.positions]
        known = [position - start for position, start in zip(positions, starts, strict=True)]
        if any(known):
            keep = torch.arange(self.window) < torch.tensor(known)[:, None]  # (B, W)
            codes = torch.where(keep.to(codes.device)[..., None], guessed, codes)
        right = (codes == guessed).all(-1)  # now: what was guessed may be a view
        self.codes[own.rows, own.positions] = codes
        embedding = self.decoder.embed(codes.movedim(-1, 1))
        self.embedded[window.rows, self.cells[window.positions]] = self.of_batch(embedding)
        return starts, right, doubt.view(self.samples, -1)

    def correct(self, sample: int, position: int, codes: Tensor) -> None:
        """Put codes (C,) in the place of those that were chosen."""
        self.codes[sample, position] = codes
        self.embedded[sample :: self.samples, self.cells[position]] = self.decoder.embed(codes[None])

    def place(self, starts: Sequence[int]) -> Window:
        """The windows that begin at `starts`."""
        first, blocks = starts[0], {layer.block: layer for layer in self.layers}
        if not self.compiled and len(set(starts)) == 1:
            places = {}
            for block, layer in blocks.items():
                slot, token = layer.places[first]
                places[block] = (slot, token, token + self.window, [])
            return Window(slice(None), slice(first, first + self.window), places)
        device = self.cells.device
        rows = torch.arange(len(starts), device=device)[:, None]
        firsts = torch.tensor(starts, device=device)[:, None]
        positions = firsts + torch.arange(self.window, device=device)
        places = {}
        for block, layer in blocks.items():
            own = [] if self.compiled else [layer.places[start] for start in starts]
            seen = max(token for _, token in own) + self.window if own else layer.tokens
            places[block] = (layer.slots_of[firsts], layer.tokens_of[positions], seen, own)
        return Window(rows, positions, places)

    def compute(self, window: Window, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (samples * W, C) of the windows through convolution, layers and head, and whether they are in doubt."""
        taps = self.neighbours[window.positions].flatten(-2)
        seen = self.embedded[window.rows, taps].view(self.batch * self.window, -1)  # (R, taps * E)
        x = self.conditions[window.rows, window.positions].reshape(len(seen), -1) + self.convolve(seen)
        for layer in self.layers:
            x = layer.step(x, window.rows, *window.places[layer.block])
        return self.choose_codes(x, noise)

    def choose_codes(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (samples * W, C), one codebook after the other, from features (R, D) and noise (samples * W, C, V)."""
        norm, nv = self.head.layer_norm, self.config.nv
        y = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        codes: list[Tensor] = []
        in_doubt = torch.zeros(len(noise), dtype=torch.bool, device=x.device)
        for k, table in enumerate(self.decoder.ch_embedder):
            hidden = self.first_hidden[k](y)
            for earlier, code in enumerate(codes):
                hidden = hidden + self.of_batch(F.embedding(code + earlier * nv, self.picked_hidden[k]))
            logits = self.head.logits(k, hidden, table.weight)
            # Logits are rounded once more when noise is added, which is after they are divided by the temperature.
            error = self.rounding * logits.abs().amax(-1, keepdim=True).float().clamp(min=self.rule.temperature)
            if self.guidance != 1:  # what leads away from other logits multiplies the errors of both
                error = (1 + 2 * abs(self.guidance)) * torch.maximum(*error.chunk(2))
            logits = self.led(logits)
            self.damage.add_(0 * logits.sum(dtype=torch.float32))
            chosen, doubt = self.rule.draw(logits, noise[:, k], error)
            codes.append(chosen)
            in_doubt = in_doubt | doubt
        return torch.stack(codes, 1), in_doubt

    def led(self, logits: Tensor) -> Tensor:
        """Logits of the batch -> those of the samples."""
        if self.guidance == 1:
            return logits
        with_class, without = logits.chunk(2)
        return without + self.guidance * (with_class - without)

    def of_batch(self, rows: Tensor | list[int]) -> Tensor | list[int]:
        """Rows of the samples -> of the batch, which may hold each of them twice."""
        if self.guidance == 1:
            return rows
        return torch.cat([rows, rows]) if isinstance(rows, Tensor) else rows + rows


def padded_cells(size: Triple) -> int:
    """Cells of a slice with the border that the causal convolution sees (no earlier frames for one-frame slices)."""
    t, h, w = size
    return (t if t == 1 else t + 2) * (h + 2) * (w + 2)


def neighbour_tables(size: Triple, device: torch.device) -> tuple[Tensor, Tensor]:
    """Padded cell of each position, int64 (n,), and those of the convolution's live taps, int64 (n, taps)."""
    t, h, w = size
    back = 0 if t == 1 else 2
    padded = torch.arange(padded_cells(size), device=device).view(t + back, h + 2, w + 2)
    cells = padded[back:, 2:, 1:-1].flatten()
    windows = padded.unfold(0, back + 1, 1).unfold(1, 3, 1).unfold(2, 3, 1)  # (t, h, w, kt, 3, 3)
    taps = TAPS_OF_ONE_FRAME if t == 1 else TAPS
    return cells, windows.reshape(t * h * w, -1)[:, :taps].contiguous()


@dataclass
class Window:
    """W positions of every sample, as what has axes (B, n, ...) is indexed: x[rows, positions] is (B, W, ...).

    Slices where all samples are at the same place, else int64 (B, 1) and (B, W). places: for layers with these blocks,
    slot and first token as numbers, else the slots (B, 1) and all tokens (B, W); how many tokens to look at; and for
    samples at several places, but not in a compiled graph, slot and first token of each.
    """

    rows: slice | Tensor
    positions: slice | Tensor
    places: dict[Triple, tuple[int | Tensor, int | Tensor, int, list[tuple[int, int]]]]


def run_length(size: Triple, block: Triple) -> int:
    """Positions in raster order that stay in one block, from each multiple of their number on."""
    bt, bh, bw = block
    if bw < size[2]:
        return bw
    return bh * bw if bh < size[1] else bt * bh * bw


class CachedLayer:
    """The weights of a layer in the form that a few positions need, and its caches (2, B, slots, M, n, A)."""

    def __init__(self, layer: BlockLocalAttention, size: Triple, batch: int, rows: int, packed: bool = True) -> None:
        mha, ffn = layer.mha, layer.ffn
        self.block, self.size = layer.block, size
        self.heads, self.head_width, self.tokens = mha.heads, mha.head_width, prod(layer.block)
        self.attention_norm = (mha.layer_norm.weight, mha.layer_norm.bias, mha.layer_norm.eps)
        self.feed_forward_norm = (ffn[0].weight, ffn[0].bias, ffn[0].eps)
        self.qkv = RowProduct(mha.fused_weight(), None, rows, packed)
        self.proj = RowProduct(mha.proj.weight, None, rows, packed)
        self.widen = RowProduct(ffn[1].weight, ffn[1].bias, rows, packed)
        self.narrow = RowProduct(ffn[3].weight, ffn[3].bias, rows, packed)
        self.bias = layer.bias().transpose(0, 1).contiguous()  # (n, M, n)
        _, height, width = blocks_along(size, layer.block)
        self.slots = height * width
        self.cache = self.bias.new_zeros(2, batch, self.slots, self.heads, self.tokens, self.head_width)
        self.places = [self.place(position) for position in range(prod(size))]
        self.slots_of, self.tokens_of = torch.tensor(self.places, device=self.bias.device).unbind(1)
        self.attend = attend

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

    def step(
        self, x: Tensor, rows: slice | Tensor, slot: int | Tensor, token: int | Tensor, seen: int,
        firsts: list[tuple[int, int]],
    ) -> Tensor:  # fmt: skip
        """Features (R, D) of windows through the layer; the last five as `Window` describes them."""
        y = F.layer_norm(x, x.shape[-1:], *self.attention_norm)
        own = self.qkv(y).view(self.cache.shape[1], -1, 3, self.heads, self.head_width)  # (B, W, 3, M, A)
        query, new = own[:, :, 0].transpose(1, 2), own[:, :, 1:]
        if isinstance(token, int):
            self.cache[:, :, slot, :, token:seen] = new.permute(2, 0, 3, 1, 4)
            key, value = self.cache[:, :, slot, :, :seen].unbind(0)
            bias = self.bias[None, token:seen, :, :seen].transpose(1, 2)
        else:
            self.write(new, rows, slot, token, firsts)
            cache = self.cache[:, :, 0] if self.slots == 1 else self.cache[:, rows[:, 0], slot[:, 0]]
            key, value = cache[..., :seen, :].unbind(0)
            bias = self.bias[..., :seen][token].transpose(1, 2)
        x = x + self.proj(self.attend(query, key, value, bias).transpose(1, 2).reshape(len(x), -1))
        y = F.layer_norm(x, x.shape[-1:], *self.feed_forward_norm)
        return x + self.narrow(self.widen(y).relu_())

    def write(self, new: Tensor, rows: Tensor, slot: Tensor, token: Tensor, firsts: list[tuple[int, int]]) -> None:
        """Put new keys and values (B, W, 2, M, A) of samples at several places into the cache."""
        if not firsts:
            self.cache[:, rows, slot, :, token] = new.to(self.cache.dtype)
            return
        # A window's tokens follow each other: a copy for each sample is faster than writing by index.
        for row, (place, first) in enumerate(firsts):
            own = new[row].permute(1, 2, 0, 3)  # (2, M, W, A)
            self.cache[:, row, place, :, first : first + own.shape[2]] = own


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention (B, M, W, A) of queries (B, M, W, A) over keys and values (B, M, m, A); bias (B or 1, M, W, m)."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """The same for one query each (W = 1), by products of elements."""
    scores = (key * (query * query.shape[-1] ** -0.5)).sum(-1)  # (B, M, m)
    weights = (scores + bias[:, :, 0]).softmax(-1)
    return (weights[..., None] * value).sum(-2, keepdim=True)


def products_pay(cache: Tensor) -> bool:
    """Whether `attend_by_products` is faster here with the keys and values (2, B, M, n, A) of several samples: on a CPU
    in float32 that depends on the processor (twice as fast as the fused kernel on an EPYC, a fifth as fast on a Xeon).
    """
    if cache.device.type != "cpu" or cache.dtype != torch.float32 or cache.shape[1] == 1:
        return False
    key, value = cache.zero_()  # written, or all of it might be the one page of zeros that the system lends
    query, bias = key[:, :, :1], key.new_zeros(1, key.shape[1], 1, key.shape[2])
    spent = {attend: math.inf, attend_by_products: math.inf}
    for way in (*spent, *spent):
        start = time.perf_counter()
        way(query, key, value, bias)
        spent[way] = min(spent[way], time.perf_counter() - start)
    return spent[attend_by_products] < spent[attend]


class RowProduct:
    """x W^T + b for a few rows x (R, in), with W (out, in) in the layout that is read fastest.

    Such products cost the time of reading W. On a CPU, one row reads the transpose of a wide matrix up to twice as fast
    as the matrix itself, and several rows are fastest with a matrix that oneDNN has packed for their number.
    packed: allow that; a compiled graph cannot hold such a matrix.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, packed: bool = True) -> None:
        self.bias, self.matrix, self.dtype = bias, weight.contiguous(), weight.dtype
        self.packed = packed and rows >= packed_from(weight)
        self.transposed = rows == 1 and len(weight) > weight.shape[1]
        if self.packed:
            self.matrix = torch.ops.mkldnn._reorder_linear_weight(self.matrix, rows)
        elif self.transposed:
            self.matrix = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out)."""
        if self.packed:
            # autocast, in which attention gives bf16, does not know this operator
            return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.matrix, self.bias, "none", [], "")
        if self.transposed:
            return torch.mm(x, self.matrix) if self.bias is None else torch.addmm(self.bias, x, self.matrix)
        return F.linear(x, self.matrix, self.bias)


def packed_from(weight: Tensor) -> float:
    """The number of rows from which on a matrix is read faster in oneDNN's own layout; infinite where it has none."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return math.inf
    if weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 1
    return 2 if weight.dtype == torch.float32 else math.inf
