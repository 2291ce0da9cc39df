"""Frechet distance of the features of two sets of clips, collected batch by batch: what FVD and FID have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from evaluation.clips import check_range, unit_frames
from evaluation.features import FeatureExtractor
from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.report import Score
from videodata.errors import UserError

CLIPS_AT_A_TIME = 8
Clips = Tensor | np.ndarray


class SetDistance(ABC):
    """Two sets of clips; memory does not grow with their number.

    Every other feature of a set is also collected apart: the distance of these half sets shows how far the number
    still falls as clips are added.
    """

    name: str  # FVD or FID
    counted: str  # what has a feature: clips or frames
    fewest: int  # of these: an estimate from fewer says more about their number than about what they show

    def __init__(
        self,
        extractor: FeatureExtractor,
        value_range: tuple[float, float] = (-1.0, 1.0),
        quantize: bool = True,
        force: bool = False,
    ) -> None:
        self.extractor, self.value_range, self.quantize, self.force = extractor, value_range, quantize, force
        self.frames: int | None = None
        self._halves = {
            side: (GaussianStatistics(extractor.dimensions), GaussianStatistics(extractor.dimensions))
            for side in ("real", "generated")
        }

    @abstractmethod
    def definition(self, count: int) -> str:
        """The id of the distance of sets with so many features each."""

    def update(self, real: Clips | None = None, generated: Clips | None = None) -> None:
        """Take in a batch of clips of either set or of both.

        Raises UserError for clips that are too short, ValueError for real clips that leave the declared range.
        """
        if real is not None:
            check_range(torch.as_tensor(real), self.value_range)
        for side, clips in (("real", real), ("generated", generated)):
            if clips is not None:
                self.add_features(side, self.features(clips))

    def features(self, clips: Clips) -> Tensor:
        """Features (B * n, D) of clips. Raises UserError for too few frames, or another number of them than before."""
        unit = unit_frames(torch.as_tensor(clips).detach(), self.value_range, self.quantize)  # (B, T, 3, H, W)
        frames, fewest = unit.shape[1], self.extractor.minimum_frames
        if frames < fewest:
            raise UserError(
                f"clips of {frames} frames are too short for {self.name}: {self.extractor.name} needs {fewest}"
            )
        if self.frames not in (None, frames):
            raise UserError(
                f"clips of {frames} frames beside clips of {self.frames}: {self.name} compares equal lengths only"
            )
        self.frames = frames
        clips = (unit * 2 - 1).float().transpose(1, 2)
        return torch.cat([self.extractor(part).cpu() for part in clips.split(CLIPS_AT_A_TIME)])

    def add_features(self, side: str, features: Tensor) -> None:
        """Take in features (N, D) of one side, real or generated."""
        first, second = self._halves[side]
        odd = (first.count + second.count) % 2
        first.update(features[odd::2])
        second.update(features[1 - odd :: 2])

    def over_processes(self) -> SetDistance:
        """The distance of the sets of all processes, a new object."""
        total = type(self)(self.extractor, self.value_range, self.quantize, self.force)
        total.frames = self.frames
        for side, halves in self._halves.items():
            total._halves[side] = tuple(half.over_processes() for half in halves)
        return total

    def check_count(self, count: int) -> None:
        """Raises UserError for so few features that their distance would mislead."""
        if count < (2 if self.force else self.fewest):
            raise UserError(
                f"{self.name} of {count} {self.counted} measures their number more than their content; give at least "
                f"{self.fewest}, or --force (force=True) to see it all the same"
            )

    def score(self) -> Score:
        """The distance, with everything that it depends on. Raises UserError for too few features or unequal sets."""
        real, generated = (first.merge(second) for first, second in self._halves.values())
        if real.count != generated.count:
            raise UserError(
                f"{real.count} real and {generated.count} generated {self.counted}: "
                f"{self.name} compares equally large sets only"
            )
        self.check_count(real.count)
        halves = [first for first, _ in self._halves.values()]
        per_side = f"{self.counted}_per_side"
        notes = {per_side: real.count, "feature_network": self.extractor.facts(), "half_sample": None}
        if halves[0].count >= 2:
            notes["half_sample"] = {per_side: halves[0].count, "value": frechet_distance(*halves)}
        return Score(self.definition(real.count), [], value=frechet_distance(real, generated), notes=notes)
