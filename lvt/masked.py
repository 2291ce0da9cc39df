"""A masked decoder: how many codes stay masked after each pass, what a training hides, and what is known of its
likelihood.

Chang et al. 2022 (MaskGIT, arXiv 2202.04200) and Yu et al. 2022 (MAGVIT, arXiv 2212.05199): a network learns to fill in
codes that were hidden, any share of them, and makes a slice in a few passes. In each it draws all codes that are still
masked and keeps some (`lvt.masked_sampler`). The codes of the given frames are exact and stay visible, and all
codebooks of a position are masked together: the head goes through them one after the other, as it does without masks.

Axes: B clips or slices, C codebooks, V codes per codebook, (T, H, W) clip, (t, h, w) slice, n = t h w its positions.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvt.config import MASKED_FLAGS, MaskedConfig, Triple
from lvt.subscale import slice_frames, slice_size
from lvt.transformer import VideoTransformer
from training.randomness import SampleNoise, derive_seed
from videodata.errors import UserError

RATIOS = (0.25, 0.5, 0.75, 1.0)  # of masked positions, at which predictions are scored
DRAWS = 16  # masks per slice of the bound on the likelihood


def masked_settings(args: Namespace, decoder: str) -> dict[str, Any]:
    """Fields of `MaskedConfig` that flags ask for. Raises UserError for a transformer whose decoder is not masked."""
    asked = {flag: getattr(args, flag) for flag in MASKED_FLAGS if getattr(args, flag) is not None}
    if asked and decoder != "masked":
        flag = next(iter(asked))
        raise UserError(f"--{flag}: the model has no masked decoder (VT.DECODER), which alone is asked so")
    return {MASKED_FLAGS[flag].lower(): value for flag, value in asked.items()}


def masked_share(progress: float, schedule: str, positions: int) -> float:
    """Share of the positions that the sampler leaves masked at a progress in [0, 1]: 1 at its start, 0 at its end
    (exp: one position). `training_mask` has a share of its own.

    cosine keeps few codes at first, while little is known; exp still fewer, nearly half of all in the last pass.
    """
    if schedule == "cosine":
        return math.cos(math.pi * progress / 2)
    if schedule == "uniform":
        return 1 - progress
    return 1 - positions ** (progress - 1)


def masked_counts(positions: int, steps: int, schedule: str) -> list[int]:
    """How many of the positions stay masked after each pass: every pass keeps at least one, the last one all.

    There are at most as many passes as positions.
    """
    steps, counts = min(steps, positions), [positions]
    for step in range(1, steps):
        wanted = math.floor(positions * masked_share(step / steps, schedule, positions) + 1e-6)
        counts.append(max(steps - step, min(counts[-1] - 1, wanted)))
    return [*counts[1:], 0]


def lowest(scores: Tensor, maskable: Tensor, count: Tensor) -> Tensor:
    """Mask of the `count` (B,) maskable positions with the lowest scores; scores and maskable (B, t, h, w)."""
    flat = scores.masked_fill(~maskable, math.inf).flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(1)
    return (ranks < count[:, None]).view_as(scores)


def training_mask(maskable: Tensor, ratio: Tensor, scores: Tensor, settings: MaskedConfig) -> Tensor:
    """What a training hides: bool (B, t, h, w). maskable bool (B, t, h, w); ratio (B,) and scores uniform in [0, 1).

    MASKS any: a share cos(pi ratio / 2) of the maskable positions, at least one: 0.64 of them in the mean, often nearly
    all. So it is whatever SCHEDULE says, which is of the sampler and may be changed without another training. MASKS
    passes: as many as are masked at the beginning of one of the sampler's passes, all passes being alike.
    """
    counts = maskable.flatten(1).sum(1)
    if settings.masks == "any":
        count = (torch.cos(ratio.double() * (math.pi / 2)) * counts).floor().clamp(min=1)
    else:
        before = [count_before(*row, settings) for row in zip(counts.tolist(), ratio.tolist(), strict=True)]
        count = torch.tensor(before, device=counts.device)
    return lowest(scores, maskable, count)


def count_before(positions: int, ratio: float, settings: MaskedConfig) -> int:
    """How many of the positions are masked before the pass that a ratio in [0, 1) stands for."""
    before = [positions, *masked_counts(positions, settings.steps, settings.schedule)[:-1]]
    return before[int(ratio * len(before))]


@dataclass
class Hidden:
    """Slices of a training step: what the network is shown of each, and which of its predictions count."""

    context: Tensor  # (B, C, T', H', W')
    codes: Tensor  # int64 (B, C, t, h, w): the true ones, but for random ones among those that are given
    mask: Tensor  # bool (B, t, h, w)
    targets: Tensor  # int64 (B, C, t, h, w)
    counted: Tensor  # bool (B, t, h, w)


def hide(model: VideoTransformer, codes: Tensor, index: Tensor, noise: SampleNoise) -> Hidden:
    """Slices index (B, S) of clips (B, C, T, H, W) as a training step shows them; B S slices.

    All that is random comes from the noise of each clip. The slices have something after the first N_PRIME frames.
    """
    config, masked, clip = model.config, model.config.masked, tuple(codes.shape[2:])
    repeats, size = index.shape[1], slice_size(clip, config.stride)
    given = given_frames(clip[0], size, config.stride[0], config.n_prime, masked.random_given, noise)
    given = given.repeat_interleave(repeats)
    noisy = with_random_codes(codes, config.nv, masked.token_dropout, noise).repeat_interleave(repeats, 0)
    ratio, scores = noise.uniform(repeats).flatten(), noise.uniform(repeats, *size).flatten(0, 1)
    blind = noise.uniform(repeats).flatten() < masked.context_drop
    codes, index = codes.repeat_interleave(repeats, 0), index.flatten()
    maskable = slice_frames(index, clip, config.stride) >= given[:, None, None, None]  # (B, t, h, w)
    mask = training_mask(maskable, ratio, scores, masked)
    _, targets = model.slice_inputs(codes, index)
    context, shown = model.slice_inputs(noisy, index)
    shown = torch.where(maskable[:, None], targets, shown)  # codes that are made here are seen as they are kept
    context = torch.where(blind[:, None, None, None, None], config.pad_value, context)
    counted = mask if masked.loss == "masked" else maskable
    return Hidden(context, shown, mask | (blind[:, None, None, None] & ~maskable), targets, counted)


def given_frames(frames: int, size: Triple, stride: int, n_prime: int, share: float, noise: SampleNoise) -> Tensor:
    """Given frames of each clip, int64 (B,): N_PRIME; where slices have several frames, of a share of the clips any
    number that leaves something of every slice, so that windows with any number of them can be continued.
    """
    last = frames - stride  # a slice's last frame is this one or a later one
    uniform = noise.uniform(2)
    drawn = 1 + (uniform[:, 0] * last).long()
    chosen = (uniform[:, 1] < share) & (size[0] > 1 and last > 0)
    return torch.where(chosen, drawn, n_prime)


def with_random_codes(codes: Tensor, size: int, largest: float, noise: SampleNoise) -> Tensor:
    """The clips (B, C, T, H, W) with random codes in place of a share of theirs, uniform in [0, largest] for each clip.

    What a network makes of its own errors differs less from what it has learnt then.
    """
    if not largest:
        return codes
    share = noise.uniform()[:, None, None, None, None] * largest
    uniform = noise.uniform(*codes.shape[1:])
    drawn = (uniform / share.clamp(min=1e-9) * size).long().clamp(max=size - 1)
    return torch.where(uniform < share, drawn, codes)


def masked_loss(logits: Tensor, hidden: Hidden, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean over clips of each one's mean cross-entropy over what counts, and over what is masked without smoothing.

    logits (B, C, V, t, h, w); both scalars in nats. With smoothing e, a target is 1 - e on its code and e / V on all.
    """
    logits = logits.movedim(2, 1).float()
    losses = F.cross_entropy(logits, hidden.targets, reduction="none", label_smoothing=smoothing).mean(1)
    plain = F.cross_entropy(logits.detach(), hidden.targets, reduction="none").mean(1)  # (B, t, h, w)
    made = hidden.mask & hidden.counted
    return mean_where(losses, hidden.counted).mean(), mean_where(plain, made).mean()


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each row's chosen values: (B, ...) -> (B,)."""
    return torch.where(chosen, values, 0.0).flatten(1).sum(1) / chosen.flatten(1).sum(1)


@dataclass
class SliceView:
    """A slice of each clip, ready to be predicted under any mask."""

    number: int
    codes: Tensor  # int64 (B, C, t, h, w)
    encoded: Tensor  # (B, t, h, w, D)
    maskable: Tensor  # bool (t, h, w)

    def logits(self, model: VideoTransformer, mask: Tensor) -> Tensor:
        """Logits (B, C, V, t, h, w) of all codes where those under the mask (B, t, h, w) are not seen."""
        return model.predict(model.decoder(self.codes, self.encoded, mask), self.codes)

    def nats(self, model: VideoTransformer, mask: Tensor) -> Tensor:
        """Negative log-likelihood of each position, all its codebooks: float64 (B, t, h, w)."""
        logits = self.logits(model, mask).movedim(2, 1).float()
        return F.cross_entropy(logits, self.codes, reduction="none").double().sum(1)


def slice_views(
    model: VideoTransformer, codes: Tensor, n_prime: int, class_index: Tensor | None
) -> Iterator[SliceView]:
    """The slices of clips (B, C, T, H, W) in which there is something after the given frames."""
    for number in range(model.config.n_slices):
        index = codes.new_full((len(codes),), number)
        maskable = slice_frames(index[:1], tuple(codes.shape[2:]), model.config.stride)[0] >= n_prime
        if not maskable.any():
            continue
        context, own = model.slice_inputs(codes, index)
        yield SliceView(number, own, model.encoder(context, index, class_index), maskable)


def uniform_scores(seeds: Sequence[int], *key: int | str, size: Triple) -> Tensor:
    """Numbers in [0, 1) of each clip, a function of its seed and of the key: float32 (B, *size), on the CPU."""
    generators = [torch.Generator().manual_seed(derive_seed(seed, "masked bits", *key)) for seed in seeds]
    return torch.stack([torch.rand(size, generator=generator) for generator in generators])


@torch.no_grad()
def masked_nats(
    model: VideoTransformer, codes: Tensor, n_prime: int, seeds: Sequence[int], ratio: float,
    class_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """How well a share of the codes is predicted from the others: nats and right codes (B,) of each clip, and how many
    codes they are of. Right: the likeliest code, given those of the earlier codebooks. Masks depend on the seeds (one
    per clip) and the ratio alone; the first `n_prime` frames are given.
    """
    nats = codes.new_zeros(len(codes), dtype=torch.float64)
    right, count = torch.zeros_like(nats), 0
    for view in slice_views(model, codes, n_prime, class_index):
        hidden = max(1, round(ratio * int(view.maskable.sum())))
        scores = uniform_scores(seeds, view.number, f"{ratio:g}", size=tuple(view.maskable.shape)).to(codes.device)
        mask = lowest(scores, view.maskable.expand_as(scores), codes.new_full((len(codes),), hidden))
        logits = view.logits(model, mask).movedim(2, 1).float()  # (B, V, C, t, h, w)
        losses = F.cross_entropy(logits, view.codes, reduction="none").double().sum(1)
        nats += torch.where(mask, losses, 0).flatten(1).sum(1)
        right += ((logits.argmax(1) == view.codes) & mask[:, None]).flatten(1).sum(1)
        count += hidden * codes.shape[1]
    return nats, right, count


@torch.no_grad()
def random_order_nats(
    model: VideoTransformer, codes: Tensor, n_prime: int, seeds: Sequence[int], draws: int = DRAWS,
    class_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """An estimate of an upper bound on -log p of each clip after its first `n_prime` frames, in nats float64 (B,), the
    variance of the estimate (B,), and how many codes it is of.

    p is what the sampler gives that keeps one code per pass in random order: the mean over orders. By Jensen, -log p is
    at most the mean over orders of the sum of -log p(code | codes before it), that is N times the mean over m uniform
    in 1 .. N, over masks of size m, of the mean over what is masked (Uria et al. 2014, arXiv 1310.1757; Hoogeboom et
    al. 2022, arXiv 2110.02037). m is drawn once from each of `draws` equal parts. It says nothing of fewer passes, nor
    of the order of confidence.
    """
    nats = codes.new_zeros(len(codes), dtype=torch.float64)
    variance, count = torch.zeros_like(nats), 0
    for view in slice_views(model, codes, n_prime, class_index):
        places, size = int(view.maskable.sum()), tuple(view.maskable.shape)
        found = []
        for draw in range(draws):
            scores = uniform_scores(seeds, view.number, "order", draw, size=size).to(codes.device)
            place = uniform_scores(seeds, view.number, "size", draw, size=(1, 1, 1)).to(codes.device).flatten()
            hidden = 1 + ((draw + place.double()) / draws * places).long().clamp(max=places - 1)
            mask = lowest(scores, view.maskable.expand_as(scores), hidden)
            found.append(order_nats(view.nats(model, mask), mask, places))
        estimates = torch.stack(found)  # (draws, B)
        nats += estimates.mean(0)
        variance += estimates.var(0) / draws if draws > 1 else math.nan
        count += places * codes.shape[1]
    return nats, variance, count


def order_nats(nats: Tensor, mask: Tensor, places: int) -> Tensor:
    """What one mask (B, t, h, w) says of the bound: `places` times the mean of nats (B, t, h, w) over it; (B,)."""
    return places * mean_where(nats, mask)
