"""How much samples for one condition differ from each other. Copies of one sample have a diversity of 0."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean

from torch import Tensor

from evaluation.clips import unit_frames
from evaluation.lpips_distance import lpips_distance
from evaluation.report import Score
from videodata.errors import UserError


class Diversity:
    """Mean distance over the pairs of samples of each condition: root mean square, and LPIPS where a network is named.

    `excluded_frames`: frames at the start of each sample that were given to the model, and are the same in all.
    """

    def __init__(self, lpips: str | None = None, weights: Path | str | None = None, excluded_frames: int = 0) -> None:
        self.lpips, self.weights, self.excluded_frames = lpips, weights, excluded_frames
        self.values: dict[str, list[float]] = {}  # definition -> one value per condition

    def update(self, samples: Tensor) -> None:
        """Samples (S, 3, T, H, W) in [-1, 1] for one condition. Raises UserError for a single one."""
        if len(samples) < 2:
            raise UserError("diversity needs at least two samples for each clip; ask for more with --samples")
        samples = samples[:, :, self.excluded_frames :]
        unit = unit_frames(samples, (-1.0, 1.0), quantize=True)
        pairs = list(combinations(range(len(samples)), 2))
        distances = [255 * float(((unit[a] - unit[b]) ** 2).mean().sqrt()) for a, b in pairs]
        self.values.setdefault("diversity-rmse-8bit", []).append(fmean(distances))
        if self.lpips:
            first, second = (samples[[pair[side] for pair in pairs]] for side in (0, 1))
            distance = lpips_distance(first, second, net=self.lpips, weights=self.weights).mean()
            self.values.setdefault(f"diversity-lpips-{self.lpips}-8bit", []).append(float(distance))

    def scores(self, label: str = "") -> list[Score]:
        """One Score per distance, over the conditions."""
        return [Score(definition, values, label) for definition, values in self.values.items()]
