"""What a model made beside what it was shown, or beside other samples of its own, collected batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics import (
    CAP,
    lpips_distance,
    lpips_facts,
    lpips_per_frame,
    psnr_per_frame,
    ssim_per_frame,
    summed_errors_per_frame,
    unit_frames,
)
from evaluation.report import Score, definition_of
from training.distributed import gather_batches
from videodata.errors import UserError

Entry = TypeVar("Entry")


def frame_scores(
    original: Tensor | np.ndarray,
    prediction: Tensor | np.ndarray,
    metrics: tuple[str, ...] = ("psnr", "ssim"),
    lpips: str | None = None,
    weights: Path | str | None = None,
    quantize: bool = True,
    ssim_definition: str = "standard",
) -> dict[str, Tensor]:
    """Scores (B, T) of each frame by the id of their definition; `lpips` names the network of LPIPS, None: without."""
    arguments = (original, prediction, (-1.0, 1.0), quantize)
    rounding = "8bit" if quantize else "raw"
    found = {}
    if "psnr" in metrics:
        found[f"psnr-frame-{rounding}"] = psnr_per_frame(*arguments)
    if "ssim" in metrics:
        window = "gaussian11" if ssim_definition == "standard" else ssim_definition
        found[f"ssim-{window}-{rounding}"] = ssim_per_frame(*arguments, ssim_definition)
    if {"mse-pixels", "mae-pixels"} & set(metrics):
        sums = summed_errors_per_frame(original, prediction)
        found |= {f"{name}-raw": values for name, values in sums.items() if name in metrics}
    if lpips:
        found[f"lpips-{lpips}-{rounding}"] = lpips_per_frame(*arguments, lpips, weights)
    return found


class PairedScores:
    """PSNR, SSIM (or one of `metrics`) and, when `lpips` names a network (alex or vgg), LPIPS of any number of batches.

    Computed on `device`. `excluded_frames`: frames at the start of each clip that were given to the model, not scored.
    """

    def __init__(
        self,
        lpips: str | None = None,
        weights: Path | str | None = None,
        quantize: bool = True,
        ssim_definition: str = "standard",
        excluded_frames: int = 0,
        metrics: tuple[str, ...] = ("psnr", "ssim"),
        device: torch.device | str = "cpu",
    ) -> None:
        self.lpips = lpips
        self.weights = weights
        self.excluded_frames = excluded_frames
        self.device = device
        self.options = (metrics, lpips, weights, quantize, ssim_definition)  # of `frame_scores`
        self.batches: list[dict[str, Tensor]] = []  # per batch: definition -> scores (B, T) of the frames that count

    def update(self, original: Tensor, prediction: Tensor) -> None:
        """Score a batch of clips, both as `evaluation.psnr` takes them."""
        found = frame_scores(original.to(self.device), prediction.to(self.device), *self.options)
        self.batches.append({name: values[:, self.excluded_frames :].cpu() for name, values in found.items()})

    def over_processes(self) -> PairedScores:
        """The scores of all processes, which deal the batches out in turn: a new object."""
        total = copy(self)
        total.batches = gather_batches(self.batches)
        return total

    def scores(self, frames: Sequence[int] | None = None) -> list[Score]:
        """One Score per metric over all batches; clips may differ in length.

        frames: numbers of those that count, 0 being the first after the given ones; None: all.
        """
        return [self._score(name, batches, frames) for name, batches in merge_dicts(self.batches).items()]

    def _score(self, definition: str, batches: list[Tensor], frames: Sequence[int] | None) -> Score:
        score, clips = score_of_frames(definition, batches, frames)
        if definition.startswith("psnr"):
            score.notes["frames_at_the_cap"] = sum(int((row >= CAP).sum()) for row in clips)
        if definition.startswith("lpips"):
            score.notes["feature_network"] = lpips_facts(self.lpips, self.weights)
        return score


def score_of_frames(definition: str, batches: list[Tensor], frames: Sequence[int] | None) -> tuple[Score, list[Tensor]]:
    """The Score of values (B, T) of frames, batch by batch, and the values (t,) that count of each clip."""
    clips = [row if frames is None else row[list(frames)] for batch in batches for row in batch]
    score = Score(definition, per_clip=[row.mean().item() for row in clips])
    if len({len(row) for row in clips}) == 1:
        score.per_frame = torch.stack(clips).mean(dim=0).tolist()
    return score, clips


def scores_over_samples(
    samples: list[PairedScores], label: str = "", frames: Sequence[int] | None = None
) -> list[Score]:
    """Scores over all processes; of several samples for each clip, the mean over them, and the best of them."""
    rows = [collected.over_processes().scores(frames) for collected in samples]
    if len(rows) == 1:
        return [replace(score, label=label) for score in rows[0]]
    best_label = ", ".join(part for part in (label, f"best of {len(samples)}") if part)
    means, best = [], []
    for scores in zip(*rows, strict=True):
        definition, values = scores[0].definition, list(zip(*(score.per_clip for score in scores), strict=True))
        choose = max if definition_of(definition).better == "higher" else min
        notes = scores[0].notes
        means.append(Score(definition, [fmean(row) for row in values], label, notes=notes))
        best.append(Score(definition, [choose(row) for row in values], best_label, notes=notes))
    return means + best


class Diversity:
    """Mean distance over the pairs of samples of each condition: root mean square, and LPIPS where a network is named.

    `excluded_frames`: frames at the start of each sample that were given to the model, and are the same in all.
    """

    def __init__(self, lpips: str | None = None, weights: Path | str | None = None, excluded_frames: int = 0) -> None:
        self.lpips, self.weights, self.excluded_frames = lpips, weights, excluded_frames
        self.batches: list[dict[str, list[float]]] = []  # per batch: definition -> one value per condition

    def update(self, samples: Tensor) -> None:
        """Samples (B, S, 3, T, H, W) in [-1, 1] for B conditions. Raises UserError for a single sample of each."""
        if samples.shape[1] < 2:
            raise UserError("diversity needs at least two samples for each clip; ask for more with --samples")
        rows = [self._distances(condition[:, :, self.excluded_frames :]) for condition in samples]
        self.batches.append({name: [row[name] for row in rows] for name in rows[0]})

    def over_processes(self) -> Diversity:
        """The diversity over the conditions of all processes, which deal the batches out in turn: a new object."""
        total = Diversity(self.lpips, self.weights, self.excluded_frames)
        total.batches = gather_batches(self.batches)
        return total

    def scores(self, label: str = "") -> list[Score]:
        """One Score per distance, over the conditions."""
        merged = merge_dicts(self.batches)
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


def merge_dicts(batches: list[dict[str, Entry]]) -> dict[str, list[Entry]]:
    """Dictionaries of one entry per batch -> a dictionary of lists with an entry per batch."""
    merged: dict[str, list[Entry]] = {}
    for batch in batches:
        for name, entry in batch.items():
            merged.setdefault(name, []).append(entry)
    return merged
