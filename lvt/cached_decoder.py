"""The transformer's decoder for one position of a slice at a time: what sampling needs, and nothing computed twice.

In raster order over a slice, the visited positions of an attention block are exactly its first ones, and once the
slice has moved on to later frames than a block's, that block is never looked at again. So a layer keeps the keys and
values of the blocks of one range of frames alone: slot number (row of blocks, column of blocks).

Axes: B samples, C codebooks, V codes per codebook, (t, h, w) slice, n = t h w positions (of a layer: tokens of
a block), E embedding width, D width, M heads, A width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.config import Triple
from lvt.layers import BlockLocalAttention, blocks_along
from lvt.transformer import TAPS, TAPS_OF_ONE_FRAME, VideoTransformer
from videodata.errors import UserError


@dataclass(frozen=True)
class SamplingRule:
    """How a code is chosen: greedy takes the most likely one; otherwise from the `top_k` most likely codes, and from
    the fewest codes that together have probability `top_p`, after dividing logits by `temperature`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, found {self.temperature}; greedy takes the likeliest code")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, found {self.top_p}")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes int64 (B,) from logits (B, V) and one number in [0, 1) each (B,)."""
        if self.greedy:
            return logits.argmax(-1)
        return inverse_cdf(self.probabilities(logits), uniform)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Distribution (B, V) that is drawn from."""
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            smallest = scores.topk(self.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < smallest, float("-inf"))
        shares = scores.softmax(-1)
        if self.top_p is None or self.top_p >= 1:
            return shares
        ordered, order = shares.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier codes
        kept = torch.where(before < self.top_p, ordered, 0.0)
        return torch.zeros_like(shares).scatter(-1, order, kept)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index at which the running sum of the weights (B, V) passes uniform (B,) times their total."""
    running = weights.cumsum(-1)
    index = torch.searchsorted(running, (uniform[:, None] * running[:, -1:]), right=True)[:, 0]
    # Rounding may push the threshold to the very end: stay at the last code that has any weight.
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(index, last)


class SampleStreams:
    """One stream of random numbers per sample, on the CPU, so that neither batch nor device changes a sample."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """The next numbers in [0, 1) of every sample: float32 (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])


def sample_seeds(batch: int, seeds: Sequence[int] | None, generator: torch.Generator | None) -> list[int]:
    """One seed per sample: those given, or drawn from the generator (torch's global one for None)."""
    if seeds is None:
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
    if len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for {batch} samples: give one per sample")
    return [int(seed) for seed in seeds]


class CachedDecoder:
    """Samples slices of one size for a batch. `begin` a slice, then `sample` its positions in raster order.

    compiled: one graph for all positions (torch.compile), which always attends to whole blocks. With a `guidance` other
    than 1, the batch is twice that of the samples: as the class has them, then the same without a class, and logits are
    led from the second to the first (Ho and Salimans 2022, arXiv 2207.12598).
    """

    def __init__(
        self, model: VideoTransformer, size: Triple, batch: int, rule: SamplingRule, compiled: bool = False,
        guidance: float = 1.0,
    ) -> None:  # fmt: skip
        self.decoder, self.head, self.config, self.rule = model.decoder, model.ch_predictor, model.config, rule
        self.size, self.batch, self.compiled, self.guidance = size, batch, compiled, guidance
        self.layers = [CachedLayer(layer, size, batch, not compiled) for layer in model.decoder.block_local_attention]
        taps = model.decoder.conv.matrix(one_frame=size[0] == 1)  # (taps * E, D)
        width, device, dtype = self.config.d, taps.device, taps.dtype
        self.convolve = RowProduct(taps.t(), None, batch, not compiled)
        self.cells, self.neighbours = neighbour_tables(size, device)
        self.embedded = torch.zeros(batch, padded_cells(size), self.config.de, device=device, dtype=dtype)
        self.conditions = torch.zeros(size[0] * size[1] * size[2], batch, width, device=device, dtype=dtype)
        self.first_hidden = [
            RowProduct(layer.weight[:, :width], layer.bias, batch, not compiled) for layer in self.head.U
        ]
        samples = batch if guidance == 1 else batch // 2
        self.damage = torch.zeros(samples, device=device)  # NaN once a logit was none: NaN has a code, too
        self.picked_hidden = [layer.weight[:, width:].t().contiguous() for layer in self.head.U]  # (k V, D)
        self.step = torch.compile(self.sample_anywhere, dynamic=False) if compiled else self.sample_anywhere
        self.places = [[layer.place(position) for layer in self.layers] for position in range(len(self.conditions))]

    def begin(self, codes: Tensor, encoded: Tensor, known_frames: int) -> None:
        """Start a slice: codes (B, C, t, h, w) whose first frames are known, encoded (B, t, h, w, D)."""
        conditions = self.decoder.conditions(encoded) + self.decoder.conv.conv.bias
        self.conditions.copy_(conditions.flatten(1, 3).transpose(0, 1))
        self.embedded.zero_()
        if not known_frames:
            return
        known = self.decoder.embed(codes[:, :, :known_frames]).flatten(1, 3)
        self.embedded[:, self.cells[: known.shape[1]]] = known
        # One parallel pass over the known frames (rounded up to whole blocks) gives their keys and values.
        step = lcm(*(layer.block[0] for layer in self.layers))
        frames = -(-known_frames // step) * step
        kept: list[Tensor] = []
        self.decoder(codes[:, :, :frames], encoded[:, :frames], kept)
        for layer, own in zip(self.layers, kept, strict=True):
            layer.fill(own, known_frames)

    def sample(self, position: int, uniform: Tensor) -> Tensor:
        """Codes int64 (B, C) of a position, from uniform numbers (B, C); they are kept for the next positions.

        B counts the samples: half of the batch under guidance.
        """
        if not self.compiled:
            places = [Place(*place) for place in self.places[position]]
            return self.step(position, places, uniform)
        index = partial(torch.tensor, device=self.conditions.device)
        places = [Place(index([slot]), index([token])) for slot, token in self.places[position]]
        return self.step(index([position]), places, uniform)

    def sample_anywhere(self, position: int | Tensor, places: list[Place], uniform: Tensor) -> Tensor:
        """One position through convolution, layers and head; position and places as `Place` describes."""
        window = self.embedded[:, self.neighbours[position].view(-1)].flatten(1)  # (B, taps * E)
        x = self.conditions[position].view(self.batch, -1) + self.convolve(window)
        for layer, place in zip(self.layers, places, strict=True):
            x = layer.step(x, place)
        codes, embedding = self.sample_codes(x, uniform)
        self.embedded[:, self.cells[position].view(-1)] = embedding[:, None]
        return codes

    def sample_codes(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (samples, C), one codebook after the other, from features (B, D), and the sums of their embeddings."""
        norm, nv = self.head.layer_norm, self.config.nv
        y = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        codes: list[Tensor] = []
        embedding = 0
        for k, table in enumerate(self.decoder.ch_embedder):
            hidden = self.first_hidden[k](y)
            for earlier, code in enumerate(codes):
                hidden = hidden + self.of_batch(self.picked_hidden[k][code + earlier * nv])
            logits = self.led(self.head.logits(k, hidden, table.weight))
            self.damage.add_(0 * logits.sum(-1, dtype=torch.float32))
            codes.append(self.rule.choose(logits, uniform[:, k]))
            embedding = embedding + table.weight[codes[-1]]
        return torch.stack(codes, 1), self.of_batch(embedding)

    def led(self, logits: Tensor) -> Tensor:
        """Logits (B, V) of the batch -> those of the samples."""
        if self.guidance == 1:
            return logits
        with_class, without = logits.chunk(2)
        return without + self.guidance * (with_class - without)

    def of_batch(self, rows: Tensor) -> Tensor:
        """Rows of the samples -> of the batch, which may hold each of them twice."""
        return rows if self.guidance == 1 else torch.cat([rows, rows])


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
class Place:
    """A position of the slice as a layer sees it: its block's slot, and its number among the block's tokens.

    Numbers for the plain sampler, tensors (1,) for the compiled one, whose shapes must not depend on the position.
    """

    slot: int | Tensor
    token: int | Tensor


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
