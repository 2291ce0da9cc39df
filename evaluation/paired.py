"""Scores of predictions against their originals, collected batch by batch."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from evaluation.gather import Entry, gather_batches
from evaluation.metrics import (
    CAP,
    lpips_distance,
    lpips_facts,
    lpips_per_frame,
    psnr_per_frame,
    ssim_per_frame,
    unit_frames,
)
from evaluation.report import Score, definition_of
from videodata.errors import UserError


class PairedScores:
    """PSNR, SSIM (or one of `metrics`) and, when `lpips` names a network (alex or vgg), LPIPS of any number of batches.

    Computed on `device`. `excluded_frames`: frames at the start of each clip that were given to the model, not scored.
    """

    def __init__(
        self,
        lpips: str | None = None,
        weights: Path | str | None = None,
        quantize: bool = True,
        value_range: tuple[float, float] = (-1.0, 1.0),
        ssim_definition: str = "standard",
        excluded_frames: int = 0,
        metrics: tuple[str, ...] = ("psnr", "ssim"),
        device: torch.device | str = "cpu",
    ) -> None:
        self.lpips = lpips
        self.weights = weights
        self.quantize = quantize
        self.value_range = value_range
        self.ssim_definition = ssim_definition
        self.excluded_frames = excluded_frames
        self.metrics = metrics
        self.device = device
        self._per_frame: dict[str, list[Tensor]] = {}

    def update(self, original: Tensor, prediction: Tensor) -> None:
        """Score a batch of clips, both as `evaluation.psnr` takes them."""
        pair = (clips.to(self.device) for clips in (original, prediction))
        arguments = (*pair, self.value_range, self.quantize)
        values = {}
        if "psnr" in self.metrics:
            values[self._id("psnr-frame")] = psnr_per_frame(*arguments)
        if "ssim" in self.metrics:
            window = "gaussian11" if self.ssim_definition == "standard" else self.ssim_definition
            values[self._id(f"ssim-{window}")] = ssim_per_frame(*arguments, self.ssim_definition)
        if self.lpips:
            values[self._id(f"lpips-{self.lpips}")] = lpips_per_frame(*arguments, self.lpips, self.weights)
        for definition, value in values.items():
            self._per_frame.setdefault(definition, []).append(value[:, self.excluded_frames :].cpu())

    def over_processes(self) -> PairedScores:
        """The scores of all processes, which deal the batches out in turn: a new object."""
        total = copy(self)
        total._per_frame = merge_dicts(gather_batches(self._batches()))
        return total

    def _batches(self) -> list[dict[str, Tensor]]:
        names = list(self._per_frame)
        return [dict(zip(names, rows, strict=True)) for rows in zip(*self._per_frame.values(), strict=True)]

    def scores(self) -> list[Score]:
        """One Score per metric over all batches; clips may differ in length."""
        return [self._score(definition, batches) for definition, batches in self._per_frame.items()]

    def _score(self, definition: str, batches: list[Tensor]) -> Score:
        clips = [row for batch in batches for row in batch]
        score = Score(definition, per_clip=[row.mean().item() for row in clips])
        if len({len(row) for row in clips}) == 1:
            score.per_frame = torch.stack(clips).mean(dim=0).tolist()
        if definition.startswith("psnr"):
            score.notes["frames_at_the_cap"] = sum(int((row >= CAP).sum()) for row in clips)
        if definition.startswith("lpips"):
            score.notes["feature_network"] = lpips_facts(self.lpips, self.weights)
        return score

    def _id(self, metric: str) -> str:
        return f"{metric}-{'8bit' if self.quantize else 'raw'}"


def scores_over_samples(samples: list[PairedScores], label: str = "") -> list[Score]:
    """Scores over all processes; of several samples for each clip, the mean over them, and the best of them."""
    rows = [collected.over_processes().scores() for collected in samples]
    if len(rows) == 1:
        return [replace(score, label=label) for score in rows[0]]
    means, best = [], []
    for scores in zip(*rows, strict=True):
        definition, values = scores[0].definition, list(zip(*(score.per_clip for score in scores), strict=True))
        choose = max if definition_of(definition).better == "higher" else min
        notes = scores[0].notes
        means.append(Score(definition, [fmean(row) for row in values], label, notes=notes))
        best.append(Score(definition, [choose(row) for row in values], f"best of {len(samples)}", notes=notes))
    return means + best


def merge_dicts(batches: list[dict[str, Entry]]) -> dict[str, list[Entry]]:
    """Dictionaries of one entry per batch -> a dictionary of lists with an entry per batch."""
    merged: dict[str, list[Entry]] = {}
    for batch in batches:
        for name, entry in batch.items():
            merged.setdefault(name, []).append(entry)
    return merged


class Diversity:
    """Mean distance over the pairs of samples of each condition: root mean square, and LPIPS where a network is named.

    `excluded_frames`: frames at the start of each sample that were given to the model, and are the same in all.
    """

    def __init__(self, lpips: str | None = None, weights: Path | str | None = None, excluded_frames: int = 0) -> None:
        self.lpips, self.weights, self.excluded_frames = lpips, weights, excluded_frames
        self._batches: list[dict[str, list[float]]] = []  # per batch: definition -> one value per condition

    def update(self, samples: Tensor) -> None:
        """Samples (B, S, 3, T, H, W) in [-1, 1] for B conditions. Raises UserError for a single sample of each."""
        if samples.shape[1] < 2:
            raise UserError("diversity needs at least two samples for each clip; ask for more with --samples")
        rows = [self._distances(condition[:, :, self.excluded_frames :]) for condition in samples]
        self._batches.append({name: [row[name] for row in rows] for name in rows[0]})

    def over_processes(self) -> Diversity:
        """The diversity over the conditions of all processes, which deal the batches out in turn: a new object."""
        total = Diversity(self.lpips, self.weights, self.excluded_frames)
        total._batches = gather_batches(self._batches)
        return total

    def scores(self, label: str = "") -> list[Score]:
        """One Score per distance, over the conditions."""
        merged = merge_dicts(self._batches)
        return [Score(name, [value for batch in batches for value in batch], label) for name, batches in merged.items()]

    def _distances(self, samples: Tensor) -> dict[str, float]:
        """Of the samples (S, 3, T, H, W) of one condition."""
        samples = samples.clamp(-1, 1)  # networks overshoot; the metrics of pairs take that for another range
        unit = unit_frames(samples, (-1.0, 1.0), quantize=True)
        pairs = list(combinations(range(len(samples)), 2))
        found = {"diversity-rmse-8bit": 255 * fmean(float(((unit[a] - unit[b]) ** 2).mean().sqrt()) for a, b in pairs)}
        if self.lpips:
            first, second = (samples[[pair[side] for pair in pairs]] for side in (0, 1))
            distance = lpips_distance(first, second, net=self.lpips, weights=self.weights)
            found[f"diversity-lpips-{self.lpips}-8bit"] = float(distance.mean())
        return found
