"""Where the tables of a fresh transformer start: weights that are read by index, a row for each code.

The fan-in of such a table is the number of rows that are added up, not the number of codes. At the scale of a matrix,
what an encoder sees of the clip begins 15 times smaller than the embedding of the slice's number beside it, and a
training spends its first minutes on making it visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvt.transformer import VideoTransformer, visible_taps

SLICE_SCALE = 0.3  # of the slice embedding: what is known of the clip weighs more than the slice's number
CONTEXT_SCALE = 2.0  # of the sum over all taps: many of them lie outside the clip
EARLIER_SCALE = 0.5  # of what a head knows of the codes of the earlier codebooks
SMALLEST = 0.02  # singular values of a codebook below this share of the largest are noise


@torch.no_grad()
def start_tables(model: VideoTransformer, frames: int, codebooks: Sequence[Tensor] | None = None) -> None:
    """Set every table of a fresh model for clips of that many frames.

    Rows are random projections of the codes' vectors: of `codebooks`, one (V, D) each, so that codes that look alike
    start alike; or of random ones.
    """
    config = model.config
    slice_frames = max(1, frames // config.stride[0])
    taps = visible_taps((slice_frames, *config.kernel[1:]), config.stride, config.kernel)
    weight = model.encoder.conv.weight.unflatten(1, (config.nc, config.nv)).flatten(3)  # (E, C, V, taps), a view
    for k, embedder in enumerate(model.decoder.ch_embedder):
        vectors = unit_vectors(codebooks[k]) if codebooks else torch.randn(config.nv, config.de) / config.de**0.5
        embedder.weight.copy_(projected(vectors, config.de))
        for tap in taps.tolist():
            rows = projected(vectors, config.de) * CONTEXT_SCALE / math.sqrt(config.nc * len(taps))
            weight[:, k, :, tap] = rows.t()
        for layer in model.ch_predictor.U[k + 1 :]:
            columns = slice(config.d + k * config.nv, config.d + (k + 1) * config.nv)
            layer.weight[:, columns] = EARLIER_SCALE * projected(vectors, config.d).t()
    model.encoder.slice_embedding.weight.mul_(SLICE_SCALE)


def unit_vectors(codebook: Tensor) -> Tensor:
    """The vectors (V, D) of a codebook, centred, directions evened out by half, of mean squared length 1: (V, r)."""
    left, sizes, _ = torch.linalg.svd(codebook.float() - codebook.float().mean(0), full_matrices=False)
    kept = sizes > SMALLEST * sizes[0]
    vectors = left[:, kept] * sizes[kept].sqrt()
    return vectors / vectors.square().sum(1).mean().sqrt()


def projected(vectors: Tensor, width: int) -> Tensor:
    """Random projection of vectors of length 1 to rows (V, width) of variance 1."""
    return vectors @ torch.randn(vectors.shape[1], width)
