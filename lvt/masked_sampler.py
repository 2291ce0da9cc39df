"""Masked parallel decoding: a slice in a few passes, each of which draws all codes that are missing and keeps some.

Chang et al. 2022 (MaskGIT, arXiv 2202.04200), section 3.2. What is kept is never drawn again. ORDER says which codes a
pass keeps: those of the highest confidence log p(code) with Gumbel noise that fades out; a random order; or one that
spreads over the slice (Besnier et al. 2025, arXiv 2503.17076). Confidence looks at the codes that were drawn and so
sharpens the distribution even at one code per pass; the two others then sample the joint distribution of the model.

Axes: B samples, C codebooks, V codes per codebook, (t, h, w) slice of n positions, u of them still masked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from lvt.config import MaskedConfig, Triple
from lvt.masked import masked_counts
from lvt.sampling import SamplingRule, gumbel, gumbel_noise, uniform_noise
from lvt.subscale import put_slice, slice_frames, slice_size
from lvt.transformer import VideoTransformer, visible_taps
from videodata.finite import finite

logger = logging.getLogger(__name__)
BASES = (2, 3, 5)  # of the Halton sequence, of the longest axis first


class MaskedSampler:
    """Fills in a batch of clips (B, C, T, H, W) in place, from one seed per sample.

    guidance leads the logits from those without a class, or without context where there is no class_index, to those
    with it; 1 takes one call of the decoder per pass in place of two.
    """

    def __init__(
        self, model: VideoTransformer, clips: Tensor, n_prime: int, rule: SamplingRule, class_index: Tensor | None,
        seeds: Sequence[int], compiled: bool = False, guidance: float = 1.0,
    ) -> None:  # fmt: skip
        self.model, self.clips, self.n_prime, self.rule, self.seeds = model, clips, n_prime, rule, seeds
        self.class_index, self.guidance, self.settings = class_index, guidance, model.config.masked
        self.size = slice_size(tuple(clips.shape[2:]), model.config.stride)
        self.decode = torch.compile(model.decoder, dynamic=False) if compiled else model.decoder
        taps = visible_taps(self.size, model.config.stride, model.config.kernel).to(clips.device)
        self.table = model.encoder.conv.table(taps)  # the same for all slices
        self.damage = torch.zeros(len(clips), device=clips.device)  # NaN once a logit was none: NaN has a code, too

    def run(self, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Sample all positions that are not given; gives the clips. progress(passes done, passes in all)."""
        places = [self.unknown(number) for number in range(self.model.config.n_slices)]
        plans = [masked_counts(len(own), self.settings.steps, self.settings.schedule) if len(own) else []
                 for own in places]  # fmt: skip
        if any(0 < len(plan) < self.settings.steps for plan in plans):
            logger.info("VT.MASKED.STEPS %d: slices with fewer codes take a pass for each", self.settings.steps)
        done, total = 0, sum(map(len, plans))
        for number, (own, plan) in enumerate(zip(places, plans, strict=True)):
            if not plan:
                continue
            for _ in self.fill(number, own, plan):
                done += 1
                if progress is not None:
                    progress(done, total)
        finite(self.damage, "logits of sampled clips, one value each")
        return self.clips

    def unknown(self, number: int) -> Tensor:
        """Flat positions of slice `number` that are not given, in raster order: int64 (u,)."""
        index = self.clips.new_full((1,), number)
        frames = slice_frames(index, tuple(self.clips.shape[2:]), self.model.config.stride)[0]
        return (frames.flatten() >= self.n_prime).nonzero().flatten()

    def fill(self, number: int, places: Tensor, plan: list[int]) -> Iterator[int]:
        """Sample slice `number` at the places (u,), of which plan[k] stay masked after pass k; yields after each."""
        views = self.begin(number, places)
        unknown = places.expand(len(self.clips), -1)  # (B, u)
        order = self.fixed_order(number)
        for step, left in enumerate(plan, start=1):
            drawn, confidence = self.draw(views, unknown, (number, step), self.strength(step, len(plan)))
            if order is not None:
                score = order.gather(1, unknown)
            else:
                noise = self.settings.choice_temperature * (1 - step / len(plan)) * self.order_noise(number, step)
                score = confidence + noise.gather(1, unknown)
            # Of equal scores the earlier position is kept, and exactly as many stay masked as the plan says.
            ranked = score.argsort(dim=1, descending=True, stable=True)
            kept = ranked[:, : ranked.shape[1] - left]
            chosen = drawn.gather(2, kept[:, None].expand(-1, drawn.shape[1], -1))
            for view in views:
                view.keep(unknown.gather(1, kept), chosen)
            unknown = unknown.gather(1, ranked[:, ranked.shape[1] - left :].sort(1).values)
            yield step
        put_slice(self.clips, self.model.config.stride, number, views[0].codes)

    def begin(self, number: int, places: Tensor) -> list[View]:
        """Encode what slice `number` may see; a second view, without class or without context, where it is led from
        there.
        """
        model, index = self.model, self.clips.new_full((len(self.clips),), number)
        context, codes = model.slice_inputs(self.clips, index)
        mask = torch.zeros(len(codes), prod(self.size), dtype=torch.bool, device=codes.device)
        mask[:, places] = True
        inputs = [(context, self.class_index, mask)]
        if self.guidance != 1 and self.class_index is not None:
            inputs.append((context, torch.full_like(self.class_index, model.config.no_class), mask))
        elif self.guidance != 1:  # given codes of the slice itself are context, too
            inputs.append((torch.full_like(context, model.config.pad_value), None, torch.ones_like(mask)))
        views = []
        for shown, classes, hidden in inputs:
            encoded = model.encoder(shown, index, classes, self.table)
            views.append(View(codes.clone(), encoded, model.decoder.conditions(encoded), hidden.clone()))
        return views

    def strength(self, step: int, steps: int) -> float:
        """Guidance of pass `step` of `steps`."""
        if not self.settings.guidance_ramp or steps == 1:
            return self.guidance
        return 1 + (self.guidance - 1) * (step - 1) / (steps - 1)

    def draw(self, views: list[View], unknown: Tensor, call: tuple[int, int], guidance: float) -> tuple[Tensor, Tensor]:
        """Codes (B, C, u) at the positions (B, u) and log p of each position (B, u) at temperature 1, in float64.

        call: (number of the slice, pass).
        """
        head, embedders = self.model.ch_predictor, self.model.decoder.ch_embedder
        views = views if guidance != 1 else views[:1]
        features = [head.layer_norm(view.features(self.decode, unknown)) for view in views]  # (B, u, D) each
        rows = torch.arange(len(unknown), device=unknown.device)[:, None]
        codes = unknown.new_zeros(*unknown.shape, head.nc)
        confidence = torch.zeros(unknown.shape, dtype=torch.float64, device=codes.device)
        for k, table in enumerate(embedders):
            found = [head.logits(k, head.hidden(k, y, codes), table.weight) for y in features]  # (B, u, V)
            logits = found[0] if len(found) == 1 else found[1] + guidance * (found[0] - found[1])
            self.damage.add_(0 * logits.sum((1, 2), dtype=torch.float32))
            noise = self.noise(*call, k)[rows, unknown]  # (B, u, V)
            own = self.rule.choose(logits.flatten(0, 1), noise.flatten(0, 1)).view_as(unknown)
            codes[..., k] = own
            if self.settings.order == "confidence":
                confidence += logits.float().log_softmax(-1).gather(-1, own[..., None])[..., 0].double()
        return codes.transpose(1, 2), confidence

    def noise(self, number: int, step: int, k: int) -> Tensor:
        """Gumbel noise of the codes of codebook k in a pass, float32 (B, n, V), for known positions of the slice, too.

        A function of each sample's seed.
        """
        key, shape = ("masked", number, step, k), (prod(self.size), self.model.config.nv)
        return gumbel_noise(self.seeds, key, shape).to(self.clips.device)

    def order_noise(self, number: int, step: int) -> Tensor:
        """Likewise for the order in which positions are kept: float32 (B, n)."""
        uniform = uniform_noise(self.seeds, ("masked", number, step, "order"), (prod(self.size),))
        return gumbel(uniform.to(self.clips.device))

    def fixed_order(self, number: int) -> Tensor | None:
        """Scores (B, n) of an order that does not look at codes; None: there is none."""
        if self.settings.order == "random":
            return self.order_noise(number, 1)
        if self.settings.order == "spread":
            return -spread_ranks(self.size).to(self.clips.device).expand(len(self.clips), -1)
        return None


class View:
    """A slice as the decoder sees it in the next pass."""

    def __init__(self, codes: Tensor, encoded: Tensor, conditions: Tensor, mask: Tensor) -> None:
        self.codes, self.encoded, self.conditions = codes, encoded, conditions  # (B, C, t, h, w), (B, t, h, w, D) twice
        self.mask = mask  # (B, n)

    def features(self, decode: Callable[..., Tensor], unknown: Tensor) -> Tensor:
        """Features (B, u, D) at the positions (B, u)."""
        mask = self.mask.view(len(self.mask), *self.codes.shape[2:])
        found = decode(self.codes, self.encoded, mask, self.conditions).flatten(1, 3)
        return found.gather(1, unknown[..., None].expand(-1, -1, found.shape[-1]))

    def keep(self, where: Tensor, codes: Tensor) -> None:
        """Show codes (B, C, kept) at flat positions (B, kept) from now on."""
        self.codes.flatten(2).scatter_(2, where[:, None].expand_as(codes), codes)
        self.mask.scatter_(1, where, False)


@lru_cache(maxsize=16)
def spread_ranks(size: Triple) -> Tensor:
    """Place of each position of a slice in an order that soon has been everywhere: int64 (n,), 0 first.

    The cells of the slice as the Halton sequence first meets them, with base 2 along the longest axis.
    """
    axes = sorted(range(3), key=lambda axis: -size[axis])
    count = prod(size)
    while True:
        flat = np.zeros(count, dtype=np.int64)
        for axis in range(3):
            cells = np.floor(radical_inverses(count, BASES[axes.index(axis)]) * size[axis]).astype(np.int64)
            flat = flat * size[axis] + cells
        met, first = np.unique(flat, return_index=True)
        if len(met) == prod(size):
            return torch.from_numpy(first.argsort().argsort())
        count *= 2


def radical_inverses(count: int, base: int) -> np.ndarray:
    """The first numbers of the van der Corput sequence of a base, in [0, 1): float64 (count,)."""
    numbers, values, place = np.arange(1, count + 1), np.zeros(count), 1.0
    while numbers.any():
        place /= base
        values += numbers % base * place
        numbers //= base
    return values


def guidance_of(settings: MaskedConfig, asked: float) -> float:
    """The guidance that was asked for; for 1, which asks for none, that of the configuration."""
    return settings.guidance if asked == 1 else asked
