"""The evaluation of any model: clips through the model, everything that was asked for measured, as often as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.frechet import FeatureCache, SetDistance
from evaluation.gather import gather_batches
from evaluation.metrics import boundary_ratio
from evaluation.networks import FeatureExtractor
from evaluation.paired import Diversity, PairedScores, scores_over_samples
from evaluation.protocol import PAIRED_METRICS, Network, Protocol
from evaluation.report import Score, merge_repetitions
from evaluation.subject import Batch, Subject
from training import distributed
from training.randomness import derive_seed
from videodata.clips import ClipDataset


def evaluate(subject: Subject, open_data: Callable[[int], ClipDataset], protocol: Protocol) -> list[Score]:
    """The scores of a model on the clips that `open_data` gives for a seed; all processes get the same.

    Processes deal the batches out in turn. Raises UserError before anything is computed where the protocol does not
    fit the model or weights are missing.
    """
    protocol.check(metrics_of(subject), subject.random)
    networks = protocol.open_networks()
    runs = []
    for repetition in range(protocol.repetitions):
        seed = protocol.seed + repetition
        runs.append(Pass(subject, open_data(seed), protocol, networks, seed).scores())
    return merge_repetitions(runs)


def metrics_of(subject: Subject) -> tuple[str, ...]:
    """The names of everything that can be measured of a model."""
    paired = PAIRED_METRICS if subject.paired else ()
    borders = ("boundary",) if subject.paired and subject.window else ()
    return (*paired, "fvd", "fid", *(("diversity",) if subject.random else ()), *borders, *subject.own_metrics)


class Pass:
    """One evaluation of all clips."""

    def __init__(
        self, subject: Subject, clips: ClipDataset, protocol: Protocol, networks: list[Network], seed: int
    ) -> None:
        self.subject, self.clips, self.protocol, self.seed = subject, clips, protocol, seed
        self.paired: dict[str, list[PairedScores]] = {}  # name of the row -> one collector per sample
        self.diversity = Diversity(protocol.lpips_network, protocol.lpips_weights, subject.context)
        self.ratios: list[list[float]] = []
        self.sets = [SetScores(*network, clips, protocol, subject.context) for network in networks]

    def scores(self) -> list[Score]:
        """Every clip through the model, then the numbers."""
        for batch in self._batches():
            made = torch.stack([self._make(batch, sample) for sample in range(self.protocol.samples)], dim=1)
            self._score(batch.clips, made)
            for distance in self.sets:
                distance.update(batch.clips, made[:, 0], batch.items)
        return self._collected()

    def _batches(self) -> Iterator[Batch]:
        """The batches of this process."""
        size = self.protocol.batch_size
        starts = range(0, len(self.clips), size)
        own = list(islice(starts, distributed.rank(), None, distributed.world_size()))
        for start in tqdm(own, desc="evaluating", unit="batch", disable=None if distributed.is_main() else True):
            items = list(range(start, min(start + size, len(self.clips))))
            yield Batch(torch.stack([self.clips[item] for item in items]), items, self.seed)

    def _make(self, batch: Batch, sample: int) -> Tensor:
        seed = self.seed if sample == 0 else derive_seed(self.seed, "sample", sample)
        return self.subject.make(Batch(batch.clips, batch.items, seed, sample))

    def _score(self, clips: Tensor, made: Tensor) -> None:
        """Everything but FVD and FID, of clips (B, 3, T, H, W) and what was made of them (B, S, 3, T, H, W)."""
        metrics = self.protocol.metrics
        if self.subject.paired and set(metrics) & set(PAIRED_METRICS):
            for sample in range(made.shape[1]):
                self._row("", sample).update(clips, made[:, sample])
            for name, baseline in self.subject.baselines(clips).items():
                self._row(name, 0).update(clips, baseline)
        if "diversity" in metrics:
            self.diversity.update(made)
        if "boundary" in metrics:
            self.ratios.append(boundary_ratio(clips, made[:, 0], self.subject.window, quantize=self.protocol.quantize))

    def _row(self, name: str, sample: int) -> PairedScores:
        collectors = self.paired.setdefault(name, [])
        if sample == len(collectors):
            collectors.append(self.protocol.paired_scores(self.subject.context))
        return collectors[sample]

    def _collected(self) -> list[Score]:
        """All scores, over all processes."""
        rows = dict(gather_batches([(name, len(samples)) for name, samples in self.paired.items()]))
        for name, samples in rows.items():
            for sample in range(samples):
                self._row(name, sample)  # a process that had no batch asks for the same rows as the others
        found = [score for name in rows for score in scores_over_samples(self.paired[name], name)]
        found += [distance.score() for distance in self.sets]
        if "diversity" in self.protocol.metrics:
            found += self.diversity.over_processes().scores()
        if "boundary" in self.protocol.metrics:
            ratios = [ratio for batch in gather_batches(self.ratios) for ratio in batch]
            found.append(Score("boundary-ratio", ratios, notes={"window": self.subject.window}))
        own = self.subject.own_scores()
        return found + [score for name, scores in own.items() if name in self.protocol.metrics for score in scores]


class SetScores:
    """One distance over one pass through the clips, of which the first `context` frames are given.

    Raises UserError where there are too few clips.
    """

    def __init__(
        self,
        kind: type[SetDistance],
        extractor: FeatureExtractor,
        clips: ClipDataset,
        protocol: Protocol,
        context: int,
    ) -> None:
        self.distance = kind(extractor, quantize=protocol.quantize, force=protocol.force)
        self.context, self.start = context, context if protocol.fvd_frames == "predicted" else 0
        self.per_clip = clips.frames - self.start if self.distance.counted == "frames" else 1
        self.distance.check_count(len(clips) * self.per_clip)
        self.cache = FeatureCache(protocol.feature_cache, self._key(clips, protocol))
        known = self.cache.read(len(clips) * self.per_clip)
        if distributed.any_process(known is None):  # so that all processes do the same
            known = None
        self.known = None if known is None else known.unflatten(0, (len(clips), self.per_clip))
        self._fresh: list[Tensor] = []

    def update(self, clips: Tensor, made: Tensor, items: list[int]) -> None:
        """Take in a batch of clips and what was made of them."""
        self.distance.update(generated=made[:, :, self.start :])
        if self.known is None:
            self._fresh.append(self.distance.features(clips[:, :, self.start :]))
        real = self._fresh[-1] if self.known is None else self.known[items].flatten(0, 1)
        self.distance.add_features("real", real)

    def score(self) -> Score:
        """The distance over all processes; keeps the features of the real clips."""
        if self.known is None:
            batches = gather_batches(self._fresh)
            if distributed.is_main():
                self.cache.write(torch.cat(batches))
        score = self.distance.over_processes().score()
        score.notes |= {"sample": "the first of each clip", "given_frames": self._given_frames()}
        return score

    def _given_frames(self) -> str:
        if not self.context:
            return "none"
        return "left out of both sets" if self.start else "part of both sets"

    def _key(self, clips: ClipDataset, protocol: Protocol) -> dict[str, object]:
        extractor = self.distance.extractor
        return {
            "network": extractor.identity,
            "data": clips.fingerprint(),
            "windows": (clips.windows, clips.seed, clips.frames, clips.stride, clips.size, clips.reading),
            "preprocessing": (extractor.text, protocol.quantize, self.start),
        }
