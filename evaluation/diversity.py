"""How much samples for one condition differ from each other. Copies of one sample have a diversity of 0."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean

from torch import Tensor

from evaluation.clips import unit_frames
from evaluation.gather import gather_batches, merge_dicts
from evaluation.lpips_distance import lpips_distance
from evaluation.report import Score
from videodata.errors import UserError


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
