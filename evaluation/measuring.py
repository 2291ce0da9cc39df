"""One pass of clips through a model, and everything that is measured on the way, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from evaluation.digit_classifier import DigitScores, check_labels, open_classifier
from evaluation.ensemble import EnsembleScores
from evaluation.factors import GeneratedScores, IdentityInPlace, MotionScores
from evaluation.journal import Journal
from evaluation.metrics import boundary_ratio
from evaluation.paired import Diversity, PairedScores, scores_over_samples
from evaluation.protocol import DIGIT_METRICS, ENSEMBLE_METRICS, PAIRED_METRICS, Protocol
from evaluation.report import Score
from evaluation.set_distance import FeatureCache, SetDistance, by_network
from evaluation.subject import Batch, Subject
from training import distributed
from training.distributed import gather_batches
from training.randomness import derive_seed
from videodata.clips import ClipDataset
from videodata.finite import finite
from videodata.labels import label_of
from videodata.pixels import normalize

GENERATED: dict[str, type[GeneratedScores]] = {"motion": MotionScores, "identity-in-place": IdentityInPlace}
Watch = Callable[[Batch, Tensor, dict[str, Tensor]], None]


class Pass:
    """One evaluation of all clips: `run`, or `update` with clips that are made elsewhere, then `scores`."""

    def __init__(
        self,
        subject: Subject,
        clips: Dataset,
        protocol: Protocol,
        distances: Sequence[SetDistance] = (),
        seed: int = 0,
        real: Dataset | None = None,
    ) -> None:
        """real: the other set of distances, where that is not the clips which the model is shown."""
        self.subject, self.clips, self.protocol, self.seed, self.real = subject, clips, protocol, seed, real
        self.paired: dict[str, list[PairedScores]] = {}  # name of the row -> one collector per sample
        self.ensembles: dict[str, EnsembleScores] = {}  # name of the row -> all of its samples
        self.frames = 0  # that are scored of each clip
        self.diversity = Diversity(protocol.lpips_network, protocol.lpips_weights, subject.context)
        self.ratios: list[list[float]] = []
        self.digits = None
        if asked := set(protocol.metrics) & set(DIGIT_METRICS):
            self.digits = DigitScores(protocol.metrics, open_classifier(), subject.context)
            if asked != {"recognised"}:
                check_labels([label_of(clips, item) for item in range(len(clips))])
        kinds = [kind for name, kind in GENERATED.items() if name in protocol.metrics]
        self.generated = [kind(clips, subject.context, protocol.quantize) for kind in kinds]
        context, apart = subject.context, real is not None
        self.sets = [SetScores(group, real or clips, protocol, context, apart) for group in by_network(distances)]

    @torch.no_grad()
    def run(self, watch: Watch | None = None, journal: Journal | None = None, always: Container[int] = ()) -> None:
        """Every clip through the model, but for the batches that the journal knows.

        always: numbers of clips that are made even then, because `watch` wants to see them.
        """
        journal = Journal(None) if journal is None else journal
        for items in self._batches(len(self.clips), "evaluating"):
            name = f"{self.seed}-{items[0]:08}"
            known = None if any(item in always for item in items) else journal.read(name)
            if known is None:
                self._make(items, watch)
                journal.write(name, self._record())
            else:
                self._restore(known, items)
        for items in self._batches(len(self.real), "real clips") if self.real else ():
            name = f"{self.seed}-real-{items[0]:08}"
            features = journal.read(name)
            if features is None:
                clips = clips_of(self.real, items)
                features = [distance.real_features(clips, items) for distance in self.sets]
                journal.write(name, features)
            for distance, found in zip(self.sets, features, strict=True):
                distance.take_real(found, items)

    def _batches(self, count: int, doing: str) -> Iterator[list[int]]:
        """Numbers of clips, those that this process deals with."""
        size = self.protocol.batch_size
        own = list(islice(range(0, count, size), distributed.rank(), None, distributed.world_size()))
        for start in tqdm(own, desc=doing, unit="batch", disable=None if distributed.is_main() else True):
            yield list(range(start, min(start + size, count)))

    def _make(self, items: list[int], watch: Watch | None) -> None:
        labels = [self.protocol.class_name or label_of(self.clips, item) for item in items]
        batch = Batch(clips_of(self.clips, items), items, self.seed, 0, labels)
        seeds = [self.seed, *(derive_seed(self.seed, "sample", k) for k in range(1, self.protocol.samples))]
        made = [self.subject.make(replace(batch, seed=seed, sample=k)) for k, seed in enumerate(seeds)]
        if not self.subject.visible:
            return
        for clips in made:
            finite(clips, f"clips that the model made of numbers {items[0]} to {items[-1]}")
        samples = torch.stack(made, dim=1)
        rows = self.update(batch, samples)
        if watch:
            watch(batch, samples, rows)

    def _record(self) -> dict[str, Any]:
        """All that the last batch added."""
        return {
            "frames": self.frames,
            "paired": {name: [one.batches[-1] for one in samples] for name, samples in self.paired.items()},
            "ensembles": {name: [one.samples, one.batches[-1]] for name, one in self.ensembles.items() if one.batches},
            "diversity": self.diversity.batches[-1:],
            "ratios": self.ratios[-1:],
            "digits": self.digits.batches[-1:] if self.digits else [],
            "generated": [scores.batches[-1] for scores in self.generated],
            "sets": [distance.last for distance in self.sets],
        }

    def _restore(self, record: dict[str, Any], items: list[int]) -> None:
        """Add the batch of these clips, which was measured before."""
        self.frames = record["frames"]
        for name, samples in record["paired"].items():
            for number, found in enumerate(samples):
                self._row(name, number).batches.append(found)
        for name, (samples, found) in record["ensembles"].items():
            ensemble = self._ensemble(name)
            ensemble.samples = samples
            ensemble.batches.append(found)
        self.diversity.batches += record["diversity"]
        self.ratios += record["ratios"]
        if self.digits:
            self.digits.batches += record["digits"]
        for scores, found in zip(self.generated, record["generated"], strict=True):
            scores.batches.append(found)
        for distance, found in zip(self.sets, record["sets"], strict=True):
            distance.take(found, items)

    def update(self, batch: Batch, made: Tensor) -> dict[str, Tensor]:
        """Take in clips and what was made of them (B, S, 3, T, H, W); gives the rows that the first was compared in."""
        metrics, rows = self.protocol.metrics, {}
        if self.subject.paired and set(metrics) & set(PAIRED_METRICS):
            rows = self.subject.compared(batch, made[:, 0])
            if made.shape[1] > 1:  # as one prediction: what a squared error likes best
                rows = {**rows, f"mean of {made.shape[1]} samples": made.mean(dim=1)}
            self.frames = made.shape[3] - self.subject.context
            for name, clips in rows.items():
                self._row(name, 0).update(batch.clips, clips)
                if set(metrics) & set(ENSEMBLE_METRICS):
                    drawn = clips[:, None] if name else made
                    self._ensemble(name).update(batch.clips, drawn, self.subject.parts(self.frames))
            for sample in range(1, made.shape[1]):
                self._row("", sample).update(batch.clips, made[:, sample])
        if "diversity" in metrics:
            self.diversity.update(made)
        if "boundary" in metrics:
            window, quantize = self.subject.window, self.protocol.quantize
            self.ratios.append(boundary_ratio(batch.clips, made[:, 0], window, quantize=quantize))
        if self.digits:
            own = [label_of(self.clips, item) for item in batch.items]
            self.digits.update(batch.clips, made, own, batch.labels or own)
        for scores in self.generated:
            scores.update(batch.clips, made, batch.items)
        for distance in self.sets:
            distance.update(batch.clips, made, batch.items)
        return rows

    def _row(self, name: str, sample: int) -> PairedScores:
        collectors, protocol = self.paired.setdefault(name, []), self.protocol
        if sample == len(collectors):
            collectors.append(
                PairedScores(
                    protocol.lpips_network, protocol.lpips_weights, protocol.quantize,
                    ssim_definition=protocol.ssim_definition, excluded_frames=self.subject.context,
                    metrics=protocol.metrics, device=protocol.device,
                )
            )  # fmt: skip
        return collectors[sample]

    def _ensemble(self, name: str) -> EnsembleScores:
        options = self.protocol.quantize, self.subject.context, self.protocol.metrics
        return self.ensembles.setdefault(name, EnsembleScores(*options))

    def scores(self) -> list[Score]:
        """All scores, over all processes."""
        found = self._paired_scores()
        found += [score for distance in self.sets for score in distance.scores()]
        found += self.digits.scores() if self.digits else []
        found += [score for scores in self.generated for score in scores.scores()]
        if "diversity" in self.protocol.metrics:
            found += self.diversity.over_processes().scores()
        if "boundary" in self.protocol.metrics:
            ratios = [ratio for batch in gather_batches(self.ratios) for ratio in batch]
            found.append(Score("boundary-ratio", ratios, notes={"window": self.subject.window}))
        own = self.subject.own_scores()
        return found + [score for name, scores in own.items() if name in self.protocol.metrics for score in scores]

    def _paired_scores(self) -> list[Score]:
        found = []
        # A process that had no batch asks for the same rows as the others: each of them is a meeting of all.
        shapes = gather_batches([(name, len(samples), self.frames) for name, samples in self.paired.items()])
        rows = {name: (samples, frames) for name, samples, frames in shapes}
        for name, (samples, frames) in rows.items():
            collectors = [self._row(name, sample) for sample in range(samples)]
            ensemble = self._ensemble(name).over_processes()
            for part, numbers in self.subject.parts(frames).items():
                label = ", ".join(text for text in (part, name) if text)
                found += scores_over_samples(collectors, label, numbers)
                found += ensemble.scores(label, part)
        return found


def start_of_sets(context: int, protocol: Protocol) -> int:
    """The first frame that distances of sets look at, of clips of which `context` frames are given."""
    return context if protocol.fvd_frames == "predicted" else 0


class SetScores:
    """Distances by the same features over one pass through the clips, of which the first `context` frames are given.

    All samples of a clip are in the set of what was made. Raises UserError where there are too few clips, or frames.
    """

    def __init__(
        self,
        distances: Sequence[SetDistance],
        clips: ClipDataset,
        protocol: Protocol,
        context: int,
        apart: bool = False,
    ) -> None:
        """clips: the real ones; `apart`: they come by themselves (`take_real`), and not with what was made of them."""
        self.distances, self.network, self.apart = distances, distances[0], apart
        self.context, self.start, self.samples = context, start_of_sets(context, protocol), protocol.samples
        self.frames = clips.frames - self.start
        self.per_clip = self.frames if self.network.counted == "frames" else 1
        for distance in distances:
            distance.check_frames(self.frames)
            distance.check_count(len(clips) * self.per_clip)
            distance.caution(len(clips) * self.per_clip, self.frames)
        folder = protocol.feature_cache if self.network.extractor.kept else None
        self.cache = FeatureCache(folder, self._key(clips, protocol))
        known = self.cache.read(len(clips) * self.per_clip)
        if distributed.any_process(known is None):  # so that all processes do the same
            known = None
        self.known = None if known is None else known.unflatten(0, (len(clips), self.per_clip))
        self._fresh: list[Tensor] = []
        self.last: dict[str, Tensor] = {}  # features of the last batch

    def update(self, clips: Tensor, made: Tensor, items: list[int]) -> None:
        """Take in a batch of clips and what was made of them (B, S, 3, T, H, W)."""
        found = {"generated": self.network.features(made.flatten(0, 1)[:, :, self.start :])}
        if not self.apart:
            found["real"] = self.real_features(clips, items)
        self.take(found, items)

    def real_features(self, clips: Tensor, items: list[int]) -> Tensor:
        """Of real clips with these numbers."""
        if self.known is not None:
            return self.known[items].flatten(0, 1)
        return self.network.features(clips[:, :, self.start :])

    def take(self, found: dict[str, Tensor], items: list[int]) -> None:
        """Take in the features of a batch of these clips, generated and perhaps real."""
        self.last = found
        number = items[0] * self.samples * self.per_clip
        for distance in self.distances:
            distance.add_features("generated", found["generated"], self.frames, number)
        if "real" in found:
            self.take_real(found["real"], items)

    def take_real(self, features: Tensor, items: list[int]) -> None:
        """Take in features of real clips."""
        if self.known is None:
            self._fresh.append(features)
        for distance in self.distances:
            distance.add_features("real", features, self.frames, items[0] * self.per_clip)

    def scores(self) -> list[Score]:
        """The distances over all processes; keeps the features of the real clips."""
        if self.known is None:
            batches = gather_batches(self._fresh)
            if distributed.is_main():
                self.cache.write(torch.cat(batches))
        scores = [score for distance in self.distances for score in distance.over_processes().scores()]
        given = "none" if not self.context else "left out of both sets" if self.start else "part of both sets"
        for score in scores:
            score.notes |= {"samples_of_each_clip": self.samples, "given_frames": given}
        return scores

    def _key(self, clips: ClipDataset, protocol: Protocol) -> dict[str, object]:
        extractor = self.network.extractor
        return {
            "network": extractor.identity,
            "data": clips.fingerprint(),
            "windows": (clips.windows, clips.seed, clips.frames, clips.stride, clips.size, clips.reading),
            "preprocessing": (extractor.text, protocol.quantize, self.start),
        }


def clips_of(dataset: Dataset, items: Sequence[int]) -> Any:
    """Items of a data set, put together, as the clips (B, 3, T, H, W) in [-1, 1] that they are, if they are."""
    found = default_collate([dataset[item] for item in items])
    if not isinstance(found, Tensor):
        return found
    if found.dtype == torch.uint8:
        found = normalize(found)
    return found[:, :, None] if found.dim() == 4 else found
