"""Decoder and channel head for one position of a slice at a time: what sampling needs, and nothing twice.

Axes: B samples, C codebooks, V codes per codebook, (t, h, w) slice, n = t h w positions, E embedding width, D width.
"""

from __future__ import annotations

from functools import partial
from math import lcm

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.cached_layer import CachedLayer, Place, RowProduct
from lvt.model_config import Triple
from lvt.sampling import SamplingRule
from lvt.slice_decoder import TAPS, TAPS_OF_ONE_FRAME
from lvt.transformer import VideoTransformer


class CachedDecoder:
    """Samples slices of one size for a batch. `begin` a slice, then `sample` its positions in raster order.

    compiled: one graph for all positions (torch.compile), which always attends to whole blocks.
    """

    def __init__(
        self, model: VideoTransformer, size: Triple, batch: int, rule: SamplingRule, compiled: bool = False
    ) -> None:
        self.decoder, self.head, self.config, self.rule = model.decoder, model.ch_predictor, model.config, rule
        self.size, self.batch, self.compiled = size, batch, compiled
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
        """Codes int64 (B, C) of a position, from uniform numbers (B, C); they are kept for the next positions."""
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
        """Codes (B, C) one codebook after the other from features (B, D), and the sum of their embeddings (B, E)."""
        norm, nv = self.head.layer_norm, self.config.nv
        y = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        codes: list[Tensor] = []
        embedding = 0
        for k, table in enumerate(self.decoder.ch_embedder):
            hidden = self.first_hidden[k](y)
            for earlier, code in enumerate(codes):
                hidden = hidden + self.picked_hidden[k][code + earlier * nv]
            logits = self.head.logits(k, hidden, table.weight)
            codes.append(self.rule.choose(logits, uniform[:, k]))
            embedding = embedding + table.weight[codes[-1]]
        return torch.stack(codes, 1), embedding


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
