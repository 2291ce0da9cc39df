"""Sampling with a causal decoder, a window of positions at a time: the same clips, in fewer calls of the network.

Predictive sampling (Wiggers and Hoogeboom 2020, arXiv 2002.09928) with the network's own earlier outputs as forecasts,
which is Jacobi's iteration (Song et al. 2021, arXiv 2002.03629). A call computes a window of positions behind codes
that are guessed. The codes that it chooses are final up to the first that differs from its guess, that one included,
because all before it were right; what it chooses behind that is the guess of the next call. The noise of a code never
changes (`lvt.sampling`), so the final codes are those that one position after the other gives, and guesses are often
right.

To the last bit: calls with other numbers of rows add up in another order, so logits differ in their last digits, and a
code may tip over when two are as good as equally likely. Where that is in doubt, the plain network decides, which sees
that sample alone: about one code in ten thousand. So a sample depends neither on its window nor on its batch. (In half
precision it does: nothing is held to be in doubt there.)

Axes: B samples, C codebooks, V codes per codebook, (T, H, W) clip of codes, (t, h, w) slice of n positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from lvt.cached_decoder import CachedDecoder
from lvt.config import Triple
from lvt.sampling import SamplingRule, gumbel_noise
from lvt.subscale import put_slice, slice_offset, slice_size, take_slices
from lvt.transformer import VideoTransformer, visible_taps
from videodata.finite import finite

Progress = Callable[[int, int], None]  # (positions that all samples have reached, positions in all), after each call


class PredictiveSampler:
    """Fills in a batch of clips (B, C, T, H, W) in place, from one seed per sample.

    window: positions of a sample in a call; None: as many as pay.
    """

    def __init__(
        self, model: VideoTransformer, clips: Tensor, n_prime: int, rule: SamplingRule, class_index: Tensor | None,
        seeds: Sequence[int], compiled: bool = False, guidance: float = 1.0, window: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.clips, self.n_prime, self.rule, self.seeds = model, clips, n_prime, rule, seeds
        self.guidance, self.class_index = guidance, class_index
        self.twice = guidance != 1  # each sample with its class and without
        if self.twice:
            self.class_index = torch.cat([class_index, torch.full_like(class_index, model.config.no_class)])
        self.stride = model.config.stride
        self.size: Triple = slice_size(tuple(clips.shape[2:]), self.stride)
        rows = len(clips) * (1 + self.twice)
        window = paying_window(rows, model.encoder.conv.weight.dtype) if window is None else window
        self.decoder = CachedDecoder(model, self.size, rows, rule, compiled, guidance, window)
        taps = visible_taps(self.size, self.stride, model.config.kernel).to(clips.device)
        self.table = model.encoder.conv.table(taps)  # the same for all slices
        self.calls = self.decisions = 0  # of the decoder with caches, and of the plain one

    def run(self, progress: Progress | None = None) -> Tensor:
        """Sample all positions of all slices that are not known; gives the clips."""
        frame = self.size[1] * self.size[2]
        known = [self.known_frames(number) for number in range(self.model.config.n_slices)]
        total, before = sum((self.size[0] - count) * frame for count in known), 0
        for number, count in enumerate(known):
            if count == self.size[0]:
                continue
            self.begin(number, count)
            for done in self.fill(count * frame):
                if progress is not None:
                    progress(before + done, total)
            before += done
            values = self.decoder.codes.transpose(1, 2).unflatten(2, self.size)
            put_slice(self.clips, self.stride, number, values)
        finite(self.decoder.damage, "logits of sampled clips, their sum")
        return self.clips

    def known_frames(self, number: int) -> int:
        """Frames of slice `number` that lie within the first n_prime frames of the clip."""
        first = slice_offset(number, self.stride)[0]
        return min(self.size[0], max(0, -(-(self.n_prime - first) // self.stride[0])))

    def begin(self, number: int, known_frames: int) -> None:
        """Encode what slice `number` may see and start the decoder, with the codes of the slice before as guesses.

        Those are of the frame before, or of the place beside, and often the same.
        """
        self.number = number
        context, codes, index = self.inputs(number)
        if number:
            guesses = take_slices(self.clips, self.stride, index[: len(self.clips)] - 1)
            codes[:, :, known_frames:] = self.decoder.of_batch(guesses)[:, :, known_frames:]
        encoded = self.model.encoder(context, index, self.class_index, self.table)
        self.decoder.begin(codes, encoded, known_frames)
        shape = (prod(self.size), self.model.config.nc, self.model.config.nv)
        self.noise = gumbel_noise(self.seeds, ("codes", number), shape).to(self.clips.device)  # (B, n, C, V)
        self.alone: dict[int, list[Tensor]] = {}  # encoded for one sample alone, where the plain network has to decide

    def inputs(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Context and codes of slice `number`, and its number, for the whole batch."""
        clips = torch.cat([self.clips, self.clips]) if self.twice else self.clips
        index = clips.new_full((len(clips),), number)
        return *self.model.slice_inputs(clips, index), index

    def fill(self, first: int) -> Iterator[int]:
        """Sample the slice from its position `first` on; yields how far all samples are, from there."""
        count = self.decoder.codes.shape[1]
        reached = [first] * len(self.clips)
        while min(reached) < count:
            starts, guessed, doubt = self.decoder.sample(reached, self.noise)
            self.calls += 1
            right, doubtful = guessed.tolist(), doubt.tolist() if doubt.any() else None
            for sample, start in enumerate(starts):
                reached[sample] = self.accept(sample, reached[sample], start, right[sample], doubtful)
            yield min(reached) - first

    def accept(
        self, sample: int, position: int, start: int, right: list[bool], doubtful: list[list[bool]] | None
    ) -> int:
        """How far the codes of a sample are final, where those before `position` were: right and doubtful tell of its
        window, which begins at `start`, whether its guesses were right and whether its choices are in doubt.
        """
        for place in range(position - start, len(right)):
            same = right[place]
            if doubtful is not None and doubtful[sample][place]:
                chosen = self.decide(sample, start + place)
                if not torch.equal(chosen, self.decoder.codes[sample, start + place]):
                    self.decoder.correct(sample, start + place, chosen)
                    same = False
            if not same:
                return start + place + 1
        return max(position, start + len(right))

    def decide(self, sample: int, position: int) -> Tensor:
        """Codes (C,) of a position as the plain network chooses them, which sees this sample alone."""
        self.decisions += 1
        model, head = self.model, self.model.ch_predictor
        rows = slice(sample, None, len(self.clips))
        if sample not in self.alone:
            context, _, index = self.inputs(self.number)
            classes = [None] * (1 + self.twice) if self.class_index is None else self.class_index[rows].split(1)
            self.alone[sample] = [
                model.encoder(own[None], index[:1], label, self.table)
                for own, label in zip(context[rows], classes, strict=True)
            ]
        codes = self.decoder.codes[sample].t()[None].clone()  # (1, C, n)
        codes[:, :, position:] = 0
        features = [
            head.layer_norm(model.decoder(codes.unflatten(2, self.size), own).flatten(1, 3)[:, position])
            for own in self.alone[sample]
        ]
        for k, table in enumerate(model.decoder.ch_embedder):
            logits = [head.logits(k, head.hidden(k, y, codes[:, :, position]), table.weight) for y in features]
            logits = self.decoder.led(torch.cat(logits))
            codes[:, k, position] = self.rule.choose(logits, self.noise[sample, position, k][None])
        return codes[0, :, position]


def paying_window(batch: int, dtype: torch.dtype) -> int:
    """Positions in a call for which a batch is sampled fastest (benchmarks/lvt_sampling.py).

    A call costs the time of reading the weights up to about 16 rows, and more with each row beyond, in bfloat16 with
    each row beyond 64. Caches of the samples, which are read once for a whole window, make windows worth their
    arithmetic in larger batches too, but less and less: 3 times as fast for one clip, 1.2 times for 32, and for 64 0.9
    times.
    """
    if batch > 32:
        return 1
    return 16 if batch <= 2 or dtype == torch.bfloat16 else 8
