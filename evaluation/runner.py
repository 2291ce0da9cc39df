"""The evaluation of any model: clips through the model, everything that was asked for measured, as often as asked.

`evaluate_model` is what scripts/evaluate.py calls: it opens the clips, says which, measures, notes all that a number
depends on, and writes the first clips as videos. `evaluate` measures on any data set. `Pass` takes in clips that are
made elsewhere, batch by batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from evaluation.digit_classifier import DigitScores, check_labels, open_classifier
from evaluation.frechet import FeatureCache, SetDistance, open_distances
from evaluation.metrics import SMALLEST_SIDE, boundary_ratio
from evaluation.paired import Diversity, EnergyScores, PairedScores, scores_over_samples
from evaluation.protocol import DIGIT_METRICS, PAIRED_METRICS, SET_METRICS, Protocol
from evaluation.report import Report, Score, merge_repetitions
from evaluation.subject import Batch, ClipSpec, Subject
from training import distributed, trained_on
from training.checkpoint import newest_checkpoint
from training.distributed import gather_batches
from training.randomness import derive_seed
from videodata.clips import ClipDataset, open_clips, overlap, together
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import files_in_folder, sha256_of
from videodata.finite import finite
from videodata.labels import class_number, label_of
from videodata.pixels import normalize, to_uint8
from videodata.splits import declared_splits, evaluation_split
from videodata.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

Watch = Callable[[Batch, Tensor, dict[str, Tensor]], None]
REFERENCE_CLIPS = 512  # that FD-PCA finds its components in
FRAMES_PER_SECOND = 8  # of the clips that are written, where the data does not say


@dataclass
class Source:
    """The clips of an evaluation. `num_clips`: evenly spread over the split's videos, one of each; 0: all."""

    data: str
    split: str | None = None  # train, val, test or all; None: test where the data declares one, else val
    num_clips: int = 64

    @cached_property
    def part(self) -> str:
        """The split that is scored."""
        return self.split or evaluation_split(self.data)

    def open(self, spec: ClipSpec, seed: int) -> ClipDataset:
        """The clips, their windows drawn from the seed. Raises UserError."""
        split = None if self.part == "all" else self.part
        arguments = (self.data, spec.frames, spec.size, spec.stride, split, seed)
        try:
            clips = open_clips(*arguments, **spec.reading)
            if 0 < self.num_clips < len(clips):
                clips = open_clips(*arguments, total_videos=self.num_clips, **spec.reading)
        except UserError as error:
            if self.split is None:
                raise UserError(f"{error} (--split {self.part} is the default here; all: everything)") from error
            raise
        return clips

    def reference(self, spec: ClipSpec, seed: int) -> ClipDataset:
        """Real clips beside those that are scored: of the training part, or the scored ones where there is none."""
        declared = declared_splits(self.data)
        has_train = self.part not in ("train", "all") and (not declared or "train" in declared)
        return (replace(self, split="train", num_clips=REFERENCE_CLIPS) if has_train else self).open(spec, seed)


def evaluate_model(
    name: str,
    subject: Subject,
    source: Source,
    protocol: Protocol,
    command: str = "",
    checkpoint: Path | str | None = None,
    clips_dir: Path | None = None,
    clips_shown: int = 4,
) -> Report:
    """Measure a model on the clips that it is made for. Raises UserError before anything is computed.

    checkpoint: what the user names it by; default: the first of its runs. clips_dir: gets `clips_shown` clips
    and what was made of them, as `ShownClips` says.
    """
    spec, context = subject.clips, subject.context
    if spec.frames <= context:
        raise UserError(f"--frames {spec.frames}: {context} of them are given, so nothing is left to score")
    height, width = spec.size
    if "ssim" in protocol.metrics and min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"frames of {width}x{height} have no SSIM (at least {SMALLEST_SIDE} pixels); use other --metrics or --size"
        )
    protocol.check(metrics_of(subject), subject.random)
    if clips_dir and not subject.visible:
        raise UserError(f"--clips_dir: {name} of {checkpoint or subject.runs[0]} makes no pictures; leave it out")
    clips = source.open(spec, protocol.seed)
    told = "" if source.split else ", the default"
    logger.info("scoring %s on %d clips of %s (split %s%s)", name, len(clips), source.data, source.part, told)
    checkpoint = checkpoint or subject.runs[0]
    report = Report(name, str(checkpoint), source.data, spec.frames, spec.stride, height, width)
    report.clips, report.clips_trained_on = len(clips), trained_on_of(subject.runs, clips)
    report.excluded_frames, report.repetitions = context, protocol.repetitions
    shown = ShownClips(clips_dir, clips_shown, clips) if clips_dir else None
    reference = source.reference(spec, protocol.seed) if "fd-pca" in protocol.metrics else None
    report.scores = evaluate(subject, lambda seed: source.open(spec, seed), protocol, shown and shown.take, reference)
    if shown:
        shown.write()
    report.details = {
        "command": command,
        **checkpoint_facts(checkpoint),
        "data_fingerprint": clips.fingerprint(),
        "clips": len(clips),
        "windows": clips.windows,
        "reading": clips.reading,
        "split": source.part,
        "device": str(protocol.device),
        "processes": distributed.world_size(),
        **protocol.facts(),
        **subject.facts(),
    }
    return report


def evaluate(
    subject: Subject,
    open_data: Callable[[int], Dataset],
    protocol: Protocol,
    watch: Watch | None = None,
    reference: Dataset | None = None,
) -> list[Score]:
    """The scores of a model on the clips that `open_data` gives for a seed; all processes get the same.

    Clips are float or uint8 (3, T, H, W), frames (3, H, W) are clips of one frame. Processes deal the batches out in
    turn. `watch(batch, made (B, S, 3, T, H, W), rows)` sees what this process made, to keep it. reference: other real
    clips, in which FD-PCA finds its components; default: those that are scored. Raises UserError before anything is
    computed where the protocol does not fit the model or weights are missing.
    """
    protocol.check(metrics_of(subject), subject.random)
    ask_for_class(subject, protocol)
    scored = open_data(protocol.seed) if "fd-pca" in protocol.metrics else []
    distances = open_distances(protocol, reference or scored, len(scored), start_of_sets(subject.context, protocol))
    runs = []
    for repetition in range(protocol.repetitions):
        seed = protocol.seed + repetition
        found = Pass(subject, open_data(seed), protocol, [distance.empty() for distance in distances], seed)
        found.run(watch)
        runs.append(found.scores())
    return merge_repetitions(runs)


def ask_for_class(subject: Subject, protocol: Protocol) -> None:
    """Set the subject's guidance. Raises UserError where the protocol asks a model for a class that it cannot show."""
    if protocol.class_name is not None:
        class_number(subject.classes, protocol.class_name)
    if protocol.guidance != 1 and not subject.classes:
        raise UserError(f"--guidance {protocol.guidance:g}: the model was trained without classes")
    subject.guidance = protocol.guidance


def metrics_of(subject: Subject) -> tuple[str, ...]:
    """The names of everything that can be measured of a model."""
    if not subject.visible:
        return subject.own_metrics
    paired = PAIRED_METRICS if subject.paired else ()
    borders = ("boundary",) if subject.paired and subject.window else ()
    drawn = ("diversity",) if subject.random else ()
    return (*paired, *SET_METRICS, *DIGIT_METRICS, *drawn, *borders, *subject.own_metrics)


class Pass:
    """One evaluation of all clips: `run`, or `update` with clips that are made elsewhere, then `scores`."""

    def __init__(
        self, subject: Subject, clips: Dataset, protocol: Protocol, distances: Sequence[SetDistance] = (), seed: int = 0
    ) -> None:
        self.subject, self.clips, self.protocol, self.seed = subject, clips, protocol, seed
        self.paired: dict[str, list[PairedScores]] = {}  # name of the row -> one collector per sample
        self.energy: dict[str, EnergyScores] = {}  # name of the row -> all of its samples
        self.frames = 0  # that are scored of each clip
        self.diversity = Diversity(protocol.lpips_network, protocol.lpips_weights, subject.context)
        self.ratios: list[list[float]] = []
        self.digits = None
        if asked := set(protocol.metrics) & set(DIGIT_METRICS):
            self.digits = DigitScores(protocol.metrics, open_classifier(), subject.context)
            if asked != {"recognised"}:
                check_labels([label_of(clips, item) for item in range(len(clips))])
        self.sets = [SetScores(distance, clips, protocol, subject.context) for distance in distances]

    @torch.no_grad()
    def run(self, watch: Watch | None = None) -> None:
        """Every clip through the model."""
        for batch in self._batches():
            seeds = [self.seed, *(derive_seed(self.seed, "sample", k) for k in range(1, self.protocol.samples))]
            made = [self.subject.make(replace(batch, seed=seed, sample=k)) for k, seed in enumerate(seeds)]
            if self.subject.visible:
                for clips in made:
                    finite(clips, f"clips that the model made of numbers {batch.items[0]} to {batch.items[-1]}")
                rows = self.update(batch, torch.stack(made, dim=1))
                if watch:
                    watch(batch, torch.stack(made, dim=1), rows)

    def _batches(self) -> Iterator[Batch]:
        size = self.protocol.batch_size
        starts = range(0, len(self.clips), size)
        own = list(islice(starts, distributed.rank(), None, distributed.world_size()))
        for start in tqdm(own, desc="evaluating", unit="batch", disable=None if distributed.is_main() else True):
            items = list(range(start, min(start + size, len(self.clips))))
            labels = [self.protocol.class_name or label_of(self.clips, item) for item in items]
            yield Batch(as_clips(default_collate([self.clips[item] for item in items])), items, self.seed, 0, labels)

    def update(self, batch: Batch, made: Tensor) -> dict[str, Tensor]:
        """Take in clips and what was made of them (B, S, 3, T, H, W); gives the rows that the first was compared in."""
        metrics, rows = self.protocol.metrics, {}
        if self.subject.paired and set(metrics) & set(PAIRED_METRICS):
            rows = self.subject.compared(batch, made[:, 0])
            for name, clips in rows.items():
                self._row(name, 0).update(batch.clips, clips)
                if "energy" in metrics:
                    self._energy(name).update(batch.clips, clips[:, None] if name else made)
            for sample in range(1, made.shape[1]):
                self._row("", sample).update(batch.clips, made[:, sample])
            self.frames = made.shape[3] - self.subject.context
        if "diversity" in metrics:
            self.diversity.update(made)
        if "boundary" in metrics:
            window, quantize = self.subject.window, self.protocol.quantize
            self.ratios.append(boundary_ratio(batch.clips, made[:, 0], window, quantize=quantize))
        if self.digits:
            own = [label_of(self.clips, item) for item in batch.items]
            self.digits.update(batch.clips, made, own, batch.labels or own)
        for distance in self.sets:
            distance.update(batch.clips, made[:, 0], batch.items)
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

    def _energy(self, name: str) -> EnergyScores:
        return self.energy.setdefault(name, EnergyScores(self.protocol.quantize, self.subject.context))

    def scores(self) -> list[Score]:
        """All scores, over all processes."""
        found = self._paired_scores()
        found += [distance.score() for distance in self.sets]
        found += self.digits.scores() if self.digits else []
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
            for part, numbers in self.subject.parts(frames).items():
                label = ", ".join(text for text in (part, name) if text)
                found += scores_over_samples(collectors, label, numbers)
                if "energy" in self.protocol.metrics:
                    found.append(self._energy(name).over_processes().score(label, numbers))
        return found


def start_of_sets(context: int, protocol: Protocol) -> int:
    """The first frame that distances of sets look at, of clips of which `context` frames are given."""
    return context if protocol.fvd_frames == "predicted" else 0


class SetScores:
    """One distance over one pass through the clips, of which the first `context` frames are given.

    Raises UserError where there are too few clips.
    """

    def __init__(self, distance: SetDistance, clips: ClipDataset, protocol: Protocol, context: int) -> None:
        self.distance = distance
        self.context, self.start = context, start_of_sets(context, protocol)
        self.per_clip = clips.frames - self.start if self.distance.counted == "frames" else 1
        self.distance.check_count(len(clips) * self.per_clip)
        folder = protocol.feature_cache if distance.extractor.kept else None
        self.cache = FeatureCache(folder, self._key(clips, protocol))
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
        given = "none" if not self.context else "left out of both sets" if self.start else "part of both sets"
        score.notes |= {"sample": "the first of each clip", "given_frames": given}
        return score

    def _key(self, clips: ClipDataset, protocol: Protocol) -> dict[str, object]:
        extractor = self.distance.extractor
        return {
            "network": extractor.identity,
            "data": clips.fingerprint(),
            "windows": (clips.windows, clips.seed, clips.frames, clips.stride, clips.size, clips.reading),
            "preprocessing": (extractor.text, protocol.quantize, self.start),
        }


class ShownClips:
    """Writes some clips of an evaluation, evenly spread, as videos: original_0000.mp4 beside made_0000.mp4, of the
    further samples made-1_0000.mp4, ..., and of every baseline that is measured one by its name, such as
    last-frame-repeated_0000.mp4.
    """

    def __init__(self, folder: Path, count: int, clips: ClipDataset) -> None:
        self.folder, self.clips = folder, clips
        count = min(count, len(clips))
        self.numbers = {place * len(clips) // count: place for place in range(count)}  # item -> number of the file
        self._batches: list[dict[tuple[str, int], np.ndarray]] = []  # per batch: (kind, number of the clip) -> frames
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)  # before anything is computed: perhaps it cannot be

    def take(self, batch: Batch, made: Tensor, rows: dict[str, Tensor]) -> None:
        """Keep what will be written of a batch, of the first repetition: what `evaluate` hands over."""
        shown = [(row, item) for row, item in enumerate(batch.items) if item in self.numbers]
        if batch.seed != self.clips.seed or not shown:
            return
        kinds = {"-".join(re.findall(r"\w+", name)): clips for name, clips in rows.items() if name}
        kinds |= {f"made-{k}" if k else "made": made[:, k] for k in range(made.shape[1])} | {"original": batch.clips}
        self._batches.append(
            {(kind, item): to_uint8(clips[row]) for kind, clips in kinds.items() for row, item in shown}
        )

    def write(self) -> None:
        """Let the main process write what all of them have kept."""
        found = {key: frames for batch in gather_batches(self._batches) for key, frames in batch.items()}
        if not distributed.is_main():
            return
        written = set()
        for (kind, item), frames in found.items():
            rate = self.clips.describe(item)["fps"] or FRAMES_PER_SECOND
            written.add(write_video(self.folder / f"{kind}_{self.numbers[item]:04}.mp4", frames, rate))
        if others := set(files_in_folder(self.folder, VIDEO_SUFFIXES, deep=False)) - written:
            logger.warning("%s: holds %d videos that are not of this evaluation", self.folder, len(others))


def as_clips(items: Any) -> Any:
    """Items of a data set, put together, as the clips (B, 3, T, H, W) in [-1, 1] that they are, if they are."""
    if not isinstance(items, Tensor):
        return items
    if items.dtype == torch.uint8:
        items = normalize(items)
    return items[:, :, None] if items.dim() == 4 else items


def trained_on_of(runs: Sequence[Path | str], clips: ClipDataset) -> int | None:
    """How many of the clips a model has seen in its training, which `runs` made together; None where that is unknown.

    A run says in its folder what it was trained on; one that does not makes it unknown, unless another has seen some.
    """
    records = [trained_on(run) for run in runs]
    known = [record for record in records if record is not None]
    seen = overlap(together(known), clips) if known else None  # of all of them: parts may have seen different clips
    return seen if seen or len(known) == len(records) else None


def checkpoint_facts(path: Path | str) -> dict[str, Any]:
    """Which file was evaluated: its hash, and the step where it is a run's newest checkpoint."""
    path = Path(path)
    newest = newest_checkpoint(path / "checkpoints") if path.is_dir() else None
    if newest is not None:
        return {"checkpoint_sha256": newest.manifest["sha256"], "checkpoint_step": newest.step}
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {"checkpoint_sha256": sha256_of(files[0]) if len(files) == 1 and files[0].is_file() else None}
