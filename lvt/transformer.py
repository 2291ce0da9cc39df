"""The video transformer: a model of clips of codes, slice by slice, and the likelihood it gives them.

Rakhimov et al. 2020 (arXiv 2006.10704) after Weissenborn et al. 2020 (arXiv 1906.02634). An encoder turns what is known
of the clip into features at the positions of a slice; a causal decoder adds the slice's own earlier codes; a head
predicts the codes of a position, one codebook after the other. Names of modules and parameters are those of the
published checkpoints. With DECODER masked, the decoder sees the codes of any positions of the slice (`lvt.masked`).

Axes: B clips or slices, C codebooks, V codes per codebook, (T, H, W) clip of codes, (T', H', W') context of a slice,
(t, h, w) slice, E embedding width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.config import TransformerConfig, Triple, transformer_config
from lvt.layers import BlockLocalAttention, initialize_convolutions, inverse_timescales, position_signal, run_layers
from lvt.subscale import context_ids, put_slice, slice_frames, take_contexts, take_slices
from videodata.errors import UserError

IGNORED = -100  # target of positions that do not count
TAPS = 25  # live taps of the causal kernel: all before the position itself, in raster order of 3 x 3 x 3
TAPS_OF_ONE_FRAME = 7  # those in the last of the three frames
MASK_SCALE = 0.02  # of fresh mask embeddings: next to nothing beside the embedding of a code
TABLES = ("dt", "dh", "dw", "mask")
TIMESCALES = "inv_timescales"


class VideoTransformer(nn.Module):
    """`model_config` is the VT node of a configuration, or a configuration that holds one.

    `load_state_dict` takes the published keys; the index tables in those files are left out, because they follow from
    the configuration. gradient_checkpointing recomputes the layers in the backward pass in place of storing them.
    Raises UserError for a configuration that does not fit together.
    """

    def __init__(self, model_config: Mapping[str, Any], gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = transformer_config(model_config)
        self.encoder = SliceEncoder(self.config, gradient_checkpointing)
        decoder = MaskedSliceDecoder if self.config.decoder == "masked" else SliceDecoder
        self.decoder = decoder(self.config, gradient_checkpointing)
        self.ch_predictor = ChannelHead(self.config)
        initialize_convolutions(self)
        self.register_load_state_dict_pre_hook(forget_recomputable)

    def forward(
        self,
        context: Tensor,
        slice_codes: Tensor,
        slice_index: Tensor,
        class_index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Context (B, C, T', H', W'), codes (B, C, t, h, w), slice_index (B,) -> logits (B, C, V, t, h, w).

        mask: bool (B, t, h, w), the positions whose codes a masked decoder must not see; None of a causal one.
        """
        encoded = self.encoder(context, slice_index, class_index)
        seen = (slice_codes, encoded) if mask is None else (slice_codes, encoded, mask)
        return self.predict(self.decoder(*seen), slice_codes)

    def predict(self, features: Tensor, slice_codes: Tensor) -> Tensor:
        """The decoder's features (B, t, h, w, D), codes of the slice for the later codebooks -> logits as `forward`."""
        logits = self.ch_predictor(features, slice_codes.movedim(1, -1), self.decoder.ch_embedder)
        return torch.stack(logits, 1).movedim(-1, 2)

    def check_causal(self, what: str) -> None:
        """Raises UserError of a masked decoder, which gives no probability to each code given those before it."""
        if self.config.decoder != "causal":
            raise UserError(f"{what}: a model with VT.DECODER {self.config.decoder} has none, only the bounds of it")

    def slice_inputs(self, codes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Context and codes of slice index[b] of each clip (B, C, T, H, W), as `forward` takes them."""
        context = take_contexts(codes, self.config.stride, self.config.kernel, index, self.config.pad_value)
        return context, take_slices(codes, self.config.stride, index)

    @torch.no_grad()
    def clip_logits(self, codes: Tensor, class_idx: Tensor | None = None) -> Tensor:
        """Logits of every code of the clips given all that are generated before it.

        codes int64 (B, C, T, H, W), class_idx int64 (B,) -> (B, C, V, T, H, W). Raises UserError of a masked decoder.
        """
        self.check_causal("logits of a clip in their order")
        batch, channels, *clip = codes.shape
        logits = codes.new_zeros(batch, channels * self.config.nv, *clip, dtype=self.encoder.conv.weight.dtype)
        for number in range(self.config.n_slices):
            index = codes.new_full((batch,), number)
            context, slice_codes = self.slice_inputs(codes, index)
            put_slice(logits, self.config.stride, number, self(context, slice_codes, index, class_idx).flatten(1, 2))
        return logits.unflatten(1, (channels, self.config.nv))

    def original_state(self) -> dict[str, dict[str, Tensor]]:
        """The weights as the published file holds them, with the index tables: {"netG": ...}."""
        return {"netG": {**self.state_dict(), **recomputable(self.config)}}


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
        if not len(taps):  # the first slice of all may be the only one, and then nothing is known of the clip
            return table[-1].expand(*rows.shape[:1], -1).view(-1, *size, table.shape[1]) + self.bias
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
        if config.class_num:  # and a last row for "no class"
            self.class_embedding = nn.Embedding(config.class_num + (config.no_class is not None), config.de)
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
        if x.shape[1] == 1:  # before the only frame there is nothing
            padded = F.pad(x[:, 0].movedim(-1, 1), (1, 1, 2, 0))
            return F.conv2d(padded, weight[:, :, 2], self.conv.bias).movedim(1, -1)[:, None]
        padded = F.pad(x.movedim(-1, 1), (1, 1, 2, 0, 2, 0))
        return F.conv3d(padded, weight, self.conv.bias).movedim(1, -1)

    def matrix(self, one_frame: bool) -> Tensor:
        """The live taps as a matrix (taps * E, D); only those of the last frame for slices of one frame."""
        taps = self.conv.weight.flatten(2)[:, :, (TAPS - TAPS_OF_ONE_FRAME if one_frame else 0) : TAPS]
        return taps.permute(2, 1, 0).flatten(0, 1)


class SurroundingConv3d(nn.Module):
    """3 x 3 x 3 convolution that sees the position and all around it; zeros lie outside the slice.

    They are put there beforehand: with its own padding, oneDNN's bf16 convolution of small slices on a CPU now and then
    gives a gradient of the weight that is no number (seen with PyTorch 2.14.1).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, h, w, E) -> (B, t, h, w, D)."""
        if x.shape[1] == 1:  # the taps before and after the only frame meet zeros alone
            padded = F.pad(x[:, 0].movedim(-1, 1), (1, 1, 1, 1))
            return F.conv2d(padded, self.conv.weight[:, :, 1], self.conv.bias).movedim(1, -1)[:, None]
        return self.conv(F.pad(x.movedim(-1, 1), (1,) * 6)).movedim(1, -1)


class SliceDecoder(nn.Module):
    """Codes of a slice and the encoder's features -> features (B, t, h, w, D).

    A position's features depend on the codes of earlier positions alone.
    """

    causal = True

    def __init__(self, config: TransformerConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.ch_embedder = nn.ModuleList(nn.Embedding(config.nv, config.de) for _ in range(config.nc))
        self.conv = (CausalConv3d if self.causal else SurroundingConv3d)(config.de, config.d)
        self.linear_projector = nn.Conv3d(config.d, config.d, 1, bias=False)
        self.block_local_attention = nn.ModuleList(
            BlockLocalAttention(
                config.d, heads, config.da, block, causal=self.causal, dropout=config.dropout,
                qkv_init=config.qkv_init, attention=config.attention,
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
        weight = self.linear_projector.weight.flatten(1)
        signal = position_signal(tuple(encoded.shape[1:4]), encoded.shape[-1], encoded.device)
        return signal.to(weight.dtype) + F.linear(encoded, weight)


class MaskedSliceDecoder(SliceDecoder):
    """The same blocks without an order: a position's features depend on the codes of all positions that are not masked.

    All codebooks of a position are masked together: what stands in for its codes is a vector of their own, and the
    tables of codes keep their V rows (Chang et al. 2022, arXiv 2202.04200, has a further row of the table).
    """

    causal = False

    def __init__(self, config: TransformerConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__(config, gradient_checkpointing)
        self.mask_embedding = nn.Parameter(torch.randn(config.nc, config.de) * MASK_SCALE)

    def forward(self, codes: Tensor, encoded: Tensor, mask: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes int64 (B, C, t, h, w) of which those under the mask, bool (B, t, h, w), do not matter, encoded
        (B, t, h, w, D). `conditions` is what `conditions(encoded)` gave, to reuse it.
        """
        embedded = torch.where(mask[..., None], self.mask_embedding.sum(0), self.embed(codes))
        x = self.conv(embedded) + (self.conditions(encoded) if conditions is None else conditions)
        return run_layers(self.block_local_attention, x, self.gradient_checkpointing and self.training)


class ChannelHead(nn.Module):
    """logits_k = P_k(relu(U_k [y, onehot(code_0), ..., onehot(code_k-1)])), y the normalised features.

    The products with one-hot vectors are rows picked from the transposed weight. SHARE_P uses one P for all
    codebooks; SHARE_EMBEDDINGS compares P(...) with the code embeddings of the decoder.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.nc, self.nv, self.width = config.nc, config.nv, config.d
        self.share_embeddings = config.share_embeddings
        self.layer_norm = nn.LayerNorm(config.d)
        self.U = nn.ModuleList(nn.Linear(config.d + k * config.nv, config.d) for k in range(config.nc))
        if config.share_embeddings:
            self.P = nn.Linear(config.d, config.de)
        elif config.share_p:
            self.P = nn.Linear(config.d, config.nv)
        else:
            self.P = nn.ModuleList(nn.Linear(config.d, config.nv) for _ in range(config.nc))

    def forward(self, features: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> list[Tensor]:
        """Features (..., D), codes int64 (..., C), the decoder's code embeddings -> C logits (..., V)."""
        y = self.layer_norm(features)
        return [self.logits(k, self.hidden(k, y, codes), embeddings[k].weight) for k in range(self.nc)]

    def hidden(self, k: int, y: Tensor, codes: Tensor) -> Tensor:
        """U_k of the normalised features (..., D) and the codes before codebook k."""
        layer = self.U[k]
        hidden = F.linear(y, layer.weight[:, : self.width], layer.bias)
        for earlier in range(k):
            start = self.width + earlier * self.nv
            hidden = hidden + F.embedding(codes[..., earlier], layer.weight[:, start : start + self.nv].t())
        return hidden

    def logits(self, k: int, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Logits (..., V) of codebook k from U_k's output; embedding (V, E) is the decoder's for this codebook."""
        layer = self.P[k] if isinstance(self.P, nn.ModuleList) else self.P
        scores = layer(F.relu(hidden))
        return F.linear(scores, embedding) if self.share_embeddings else scores


def cross_entropy(logits: Tensor, codes: Tensor, ignore: Tensor) -> Tensor:
    """Mean over codebooks and over all positions that are not ignored, in nats.

    logits (B, C, V, ...), codes (B, C, ...), ignore bool (B, 1, ...): true where nothing is predicted.
    """
    target = torch.where(ignore, IGNORED, codes)
    return F.cross_entropy(logits.movedim(2, 1).float(), target, ignore_index=IGNORED)


@torch.no_grad()
def clip_nats(
    model: VideoTransformer, codes: Tensor, n_prime: int, class_index: Tensor | None = None
) -> tuple[Tensor, int]:
    """Negative log-likelihood of the codes after the first `n_prime` frames of each clip, and how many they are.

    codes int64 (B, C, T, H, W) -> nats float64 (B,), codes counted per clip. Slices are looked at one after the other.
    Raises UserError of a masked decoder.
    """
    model.check_causal("an exact likelihood")
    clip = tuple(codes.shape[2:])
    total, count = codes.new_zeros(len(codes), dtype=torch.float64), 0
    for number in range(model.config.n_slices):
        index = codes.new_full((len(codes),), number)
        counted = slice_frames(index[:1], clip, model.config.stride)[0] >= n_prime  # (t, h, w)
        if not counted.any():
            continue
        context, slice_codes = model.slice_inputs(codes, index)
        logits = model(context, slice_codes, index, class_index)  # (B, C, V, t, h, w)
        nats = F.cross_entropy(logits.movedim(2, 1).float(), slice_codes, reduction="none")  # (B, C, t, h, w)
        total += nats[..., counted].double().sum((1, 2))
        count += int(counted.sum()) * codes.shape[1]
    return total, count


def bits_per_code(nats: Tensor, count: int) -> Tensor:
    """Bits per code; a model that knows nothing needs log2(V)."""
    return nats / (math.log(2) * count)


def forget_recomputable(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop the published index tables from a state dict that is being loaded."""
    for key in [key for key in state if key.startswith(prefix) and is_recomputable(key)]:
        del state[key]


def drop_recomputable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the index tables of attention layers and without the timescales."""
    return {key: value for key, value in state.items() if not is_recomputable(key)}


def is_recomputable(key: str) -> bool:
    """Whether a key of a published file names a table that follows from the configuration."""
    parts = key.split(".")
    if parts[-1] == TIMESCALES:
        return "positional_encoder" in parts
    return "block_local_attention" in parts and parts[-1] in TABLES


def recomputable(config: TransformerConfig) -> dict[str, Tensor]:
    """All tables that a published file of this configuration holds."""
    tables = {}
    for half, blocks, width in (("encoder", config.blocks_e, config.de), ("decoder", config.blocks_d, config.d)):
        tables[f"{half}.positional_encoder.{TIMESCALES}"] = inverse_timescales(width)
        for layer, block in enumerate(blocks):
            prefix = f"{half}.block_local_attention.{layer}."
            causal = half == "decoder" and config.decoder == "causal"
            tables |= {prefix + name: value for name, value in attention_tables(block, causal).items()}
    return tables


def attention_tables(block: Triple, causal: bool) -> dict[str, Tensor]:
    """dt, dh, dw int64 (n * n): row of each bias bank for every query and key; mask (1, 1, n, n): 1 where j > i."""
    tokens = prod(block)
    places = torch.cartesian_prod(*(torch.arange(length) for length in block)).view(tokens, 3)
    rows = places[:, None] - places + torch.tensor(block) - 1  # (n, n, 3)
    tables = {name: rows[..., axis].flatten() for axis, name in enumerate(("dt", "dh", "dw"))}
    if causal:
        tables["mask"] = torch.ones(tokens, tokens).triu(1)[None, None]
    return tables
