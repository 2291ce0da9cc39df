"""The evaluation of any model: clips through the model, everything that was asked for measured, as often as asked.

`evaluate_model` is what scripts/evaluate.py calls: it opens the clips, says which, measures, notes all that a number
depends on, and writes the first clips as videos. `evaluate` measures on any data set.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.journal import Journal
from evaluation.measuring import Pass, Watch, start_of_sets
from evaluation.metrics import SMALLEST_SIDE
from evaluation.protocol import DIGIT_METRICS, GENERATED_METRICS, PAIRED_METRICS, SET_METRICS, Chosen, Protocol
from evaluation.report import Report, Score, merge_repetitions
from evaluation.set_distance import open_distances
from evaluation.subject import Batch, ClipSpec, Subject
from training import distributed, trained_on
from training.checkpoint import checkpoint_of
from training.distributed import gather_batches
from training.writing import check_place
from videodata.clips import ClipDataset, open_clips
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import files_in_folder, sha256_of
from videodata.labels import class_number
from videodata.pixels import to_uint8
from videodata.provenance import overlap, together
from videodata.splits import declared_splits, evaluation_split, sidecars
from videodata.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

REFERENCE_CLIPS = 512  # that FD-PCA finds its components in
FRAMES_PER_SECOND = 8  # of the clips that are written, where the data does not say


@dataclass
class Source:
    """The clips of an evaluation. `num_clips`: evenly spread over the split's videos, one of each; 0: all."""

    data: str
    split: str | None = None  # train, val, test or all; None: test where the data declares one, else val
    num_clips: int = 64
    windows: str = "random"
    replacement: bool = False  # num_clips are drawn by the seed, a video perhaps twice
    whole: bool = False  # train is all that is declared so: no val is taken out of it

    @cached_property
    def part(self) -> str:
        """The split that is scored."""
        return self.split or evaluation_split(self.data)

    def open(self, spec: ClipSpec, seed: int) -> ClipDataset:
        """The clips, their windows drawn from the seed. Raises UserError."""
        split = None if self.part == "all" else self.part
        arguments = (self.data, spec.frames, spec.size, spec.stride, split, seed)
        options = {"windows": self.windows, **spec.reading}
        if self.whole and self.part == "train":
            options["held_out"] = 0.0
        try:
            clips = open_clips(*arguments, **options)
            if self.num_clips and (self.replacement or self.num_clips < len(clips)):
                clips = open_clips(*arguments, total_videos=self.num_clips, replacement=self.replacement, **options)
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
    chosen: Chosen | None = None,
    result: Path | None = None,
) -> Report:
    """Measure a model on the clips that it is made for. Raises UserError before anything is computed.

    checkpoint: what the user names it by; default: the first of its runs. clips_dir: gets `clips_shown` clips
    and what was made of them, as `ShownClips` says. chosen: the published protocol that all this is meant to be.
    result: the file beside which is kept what was measured until the report is delivered, so that the same command
    goes on after a kill.
    """
    if chosen:
        chosen.check(name, subject)
        source = replace(source, whole=True)
    spec, context = subject.clips, subject.context
    check_clips(spec, context, protocol)
    protocol.check(metrics_of(subject), subject.random, subject.paired)
    if clips_dir and not subject.visible:
        raise UserError(f"--clips_dir: {name} of {checkpoint or subject.runs[0]} makes no pictures; leave it out")
    clips = source.open(spec, protocol.seed)
    told = "" if source.split else ", the default"
    logger.info("scoring %s on %d clips of %s (split %s%s)", name, len(clips), source.data, source.part, told)
    checkpoint = checkpoint or subject.runs[0]
    report = Report(name, str(checkpoint), source.data, spec.frames, spec.stride, *spec.size)
    report.clips, report.clips_trained_on = len(clips), trained_on_of(subject.runs, clips)
    report.excluded_frames, report.repetitions = context, protocol.repetitions
    if chosen:
        chosen.see(subject, clips, source.data, sidecars(source.data, source.part))
        report.published = [vars(row) for row in chosen.protocol.published]
    asked = replace(source, num_clips=protocol.generated, replacement=True) if protocol.generated else source
    shown = ShownClips(clips_dir, clips_shown, asked.open(spec, protocol.seed)) if clips_dir else None
    reference = source.reference(spec, protocol.seed) if "fd-pca" in protocol.metrics else None
    facts = {**checkpoint_facts(checkpoint), "data_fingerprint": clips.fingerprint()}
    report.journal = journal_of(subject, protocol, result, [report.to_dict(), facts, clips.windows, clips.reading])
    report.scores = evaluate(
        subject,
        lambda seed: asked.open(spec, seed),
        protocol,
        shown and shown.take,
        reference,
        report.journal,
        shown.numbers if shown else (),
        (lambda seed: source.open(spec, seed)) if protocol.generated else None,
    )
    if shown:
        shown.write()
    report.details = {
        "command": command,
        **facts,
        "clips": len(clips),
        "windows": clips.windows,
        "reading": clips.reading,
        "split": source.part,
        "device": str(protocol.device),
        "processes": distributed.world_size(),
        "protocol": chosen and chosen.facts(),
        **protocol.facts(),
        **subject.facts(),
    }
    return report


def check_clips(spec: ClipSpec, context: int, protocol: Protocol) -> None:
    """Raises UserError for clips of which nothing is left to score, or too small for a metric."""
    if spec.frames <= context:
        raise UserError(f"--frames {spec.frames}: {context} of them are given, so nothing is left to score")
    height, width = spec.size
    if "ssim" in protocol.metrics and min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"frames of {width}x{height} have no SSIM (at least {SMALLEST_SIDE} pixels); use other --metrics or --size"
        )


def evaluate(
    subject: Subject,
    open_data: Callable[[int], Dataset],
    protocol: Protocol,
    watch: Watch | None = None,
    reference: Dataset | None = None,
    journal: Journal | None = None,
    always: Container[int] = (),
    open_real: Callable[[int], Dataset] | None = None,
) -> list[Score]:
    """The scores of a model on the clips that `open_data` gives for a seed; all processes get the same.

    Clips are float or uint8 (3, T, H, W), frames (3, H, W) are clips of one frame. Processes deal the batches out in
    turn. `watch(batch, made (B, S, 3, T, H, W), rows)` sees what this process made, to keep it. reference: other real
    clips, in which FD-PCA finds its components; default: those that are scored. journal: of batches that are measured
    already; always: numbers of clips that are made even then. open_real: the real set of distances for a seed, where
    it is not of the clips that the model is shown. Raises UserError before anything is computed where the protocol does
    not fit the model or weights are missing.
    """
    protocol.check(metrics_of(subject), subject.random, subject.paired)
    ask_for_class(subject, protocol)
    subject.asked = protocol.metrics
    scored = open_data(protocol.seed) if "fd-pca" in protocol.metrics else []
    distances = open_distances(protocol, reference or scored, len(scored), start_of_sets(subject.context, protocol))
    runs = []
    for repetition in range(protocol.repetitions):
        seed = protocol.seed + repetition
        real = open_real(seed) if open_real else None
        found = Pass(subject, open_data(seed), protocol, [distance.empty() for distance in distances], seed, real)
        found.run(watch, journal, always)
        runs.append(found.scores())
    return merge_repetitions(runs)


def journal_of(subject: Subject, protocol: Protocol, result: Path | None, key: list[Any]) -> Journal:
    """Where the batches of an evaluation are kept: nowhere, where the model counts numbers of its own on the way."""
    if set(protocol.metrics) & set(subject.own_metrics):
        result = None
    settings = {name: str(value) for name, value in vars(protocol).items() if name not in ("feature_cache", "download")}
    journal = Journal(result, {"key": key, "protocol": settings, "subject": subject.facts()})
    if len(journal) and distributed.is_main():
        logger.info("going on after %d batches that were measured before", len(journal))
    return journal


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
    paired = (*PAIRED_METRICS, *GENERATED_METRICS) if subject.paired else ()
    paired = paired if subject.random else tuple(name for name in paired if name != "coverage")
    borders = ("boundary",) if subject.paired and subject.window else ()
    drawn = ("diversity",) if subject.random else ()
    return (*paired, *SET_METRICS, *DIGIT_METRICS, *drawn, *borders, *subject.own_metrics)


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
            check_place(folder / "original_0000.mp4")  # before anything is computed

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


def trained_on_of(runs: Sequence[Path | str], clips: ClipDataset) -> int | None:
    """How many of the clips a model has seen in its training, which `runs` made together; None where that is unknown.

    A run says in its folder what it was trained on; one that does not makes it unknown, unless another has seen some.
    """
    records = [trained_on(run) for run in runs]
    known = [record for record in records if record is not None]
    seen = overlap(together(known), clips) if known else None  # of all of them: parts may have seen different clips
    return seen if seen or len(known) == len(records) else None


def checkpoint_facts(path: Path | str) -> dict[str, Any]:
    """Which file was evaluated: its hash, and the step where it is the checkpoint of a folder."""
    path = Path(path)
    newest = checkpoint_of(path) if path.is_dir() else None
    if newest is not None:
        return {"checkpoint_sha256": newest.manifest["sha256"], "checkpoint_step": newest.step}
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {"checkpoint_sha256": sha256_of(files[0]) if len(files) == 1 and files[0].is_file() else None}
