"""Training a masked decoder on earlier slices that it made itself.

A model that has seen true codes alone meets its own errors for the first time when it is sampled, and they add up from
slice to slice (Bengio et al. 2015, scheduled sampling, arXiv 1506.03099). A masked decoder makes a slice in one pass,
so that a training step can afford to make a few in a row: the model then learns to go on from them to the true codes.

Axes: B clips, S slices, C codebooks, V codes per codebook, (T, H, W) clip, (t, h, w) slice, n = t h w its positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lvt.sampling import SamplingRule, gumbel
from lvt.subscale import slice_frames, slice_ids
from lvt.transformer import VideoTransformer
from training.randomness import SampleNoise

RULE = SamplingRule(temperature=0.8, top_p=0.9)  # near what samplers use: codes that they never draw teach little


def slices_in_a_row(useful: Tensor, count: int, noise: SampleNoise) -> Tensor:
    """`count` of the slices `useful` (N,) from a random one on, the first following the last: int64 (B, count)."""
    start = (noise.uniform() * len(useful)).long()
    return useful[(start[:, None] + torch.arange(count, device=useful.device)) % len(useful)]


def own_share(largest: float, step: int, steps: int) -> float:
    """Share of the clips with a past that the model made: from 0 to the largest in the first half of a training, as a
    fresh model makes nothing that could be gone on from.
    """
    return largest * min(1.0, 2 * step / steps)


@torch.no_grad()
def with_own_codes(
    model: VideoTransformer, codes: Tensor, index: Tensor, share: float, noise: SampleNoise,
    class_index: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The clips (B, C, T, H, W), for a share of them with codes of the model in the slices index (B, S) but the last.

    Those are made one after the other, each in one pass from what was made before it; given frames stay.
    """
    config, last = model.config, index.shape[1]
    rows = (noise.uniform() < share).nonzero().flatten()
    positions = slice_ids(tuple(codes.shape[2:]), config.stride)[0].numel()
    random = gumbel(noise.uniform(last - 1, config.nc, positions, config.nv))[rows]
    if not len(rows):
        return codes
    drawn, classes = codes[rows], None if class_index is None else class_index[rows]
    for place in range(last - 1):
        draw_slice(model, drawn, index[rows, place], random[:, place], classes)
    return codes.index_copy(0, rows, drawn)


def draw_slice(
    model: VideoTransformer, clips: Tensor, index: Tensor, noise: Tensor, class_index: Tensor | None
) -> None:
    """Put codes of the model into slice index (B,) of the clips (B, C, T, H, W), in one pass, in place; Gumbel noise
    (B, C, n, V).
    """
    config, clip, head = model.config, tuple(clips.shape[2:]), model.ch_predictor
    context, own = model.slice_inputs(clips, index)
    mask = slice_frames(index, clip, config.stride) >= config.n_prime  # (B, t, h, w)
    features = model.decoder(own, model.encoder(context, index, class_index), mask)
    features = head.layer_norm(features).flatten(1, 3)  # (B, n, D)
    found = own.flatten(2).movedim(1, -1).clone()  # (B, n, C)
    for k, table in enumerate(model.decoder.ch_embedder):
        logits = head.logits(k, head.hidden(k, features, found), table.weight)
        chosen = RULE.choose(logits.flatten(0, 1), noise[:, k].flatten(0, 1)).view(mask.shape[0], -1)
        found[..., k] = torch.where(mask.flatten(1), chosen, found[..., k])
    ids = slice_ids(clip, config.stride).to(clips.device)[index].flatten(1)  # (B, n)
    clips.flatten(2).scatter_(2, ids[:, None].expand(-1, clips.shape[1], -1), found.movedim(-1, 1))
