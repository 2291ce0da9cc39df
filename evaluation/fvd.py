"""Frechet video distance (Unterthiner et al. 2018, arXiv 1812.01717) between two sets of clips."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.clips import check_range, unit_frames
from evaluation.definitions import fvd_definition
from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.report import Score
from evaluation.video_features import FeatureExtractor, open_extractor
from videodata.errors import UserError

FEWEST_CLIPS = 256  # the estimate of 400 x 400 covariances from fewer says more about their number than about the clips
CLIPS_AT_A_TIME = 8
Clips = Tensor | np.ndarray


def fvd(
    real: Clips | Iterable[Clips],
    generated: Clips | Iterable[Clips],
    value_range: tuple[float, float] = (-1.0, 1.0),
    quantize: bool = True,
    extractor: str | FeatureExtractor = "i3d",
    weights: Path | str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_random_features: bool = False,
    force: bool = False,
) -> float:
    """FVD of two equally large sets of clips, each one array as for `psnr`, or an iterable of such arrays.

    `extractor`: i3d or i3d-torchscript, or an extractor itself; its weights are a file or folder, or found by name, and
    downloaded only when asked for. Raises UserError for fewer than 256 clips (unless `force`), for clips that are too
    short, and when the weights are missing.
    """
    if isinstance(extractor, str):
        extractor = open_extractor(extractor, weights, download, device, allow_random_features)
    distance = FVD(extractor, value_range, quantize, force)
    for name, clips in (("real", real), ("generated", generated)):
        for batch in _batches(clips):
            distance.update(**{name: batch})
    return distance.score().mean


class FVD:
    """Collects two sets of clips batch by batch; memory does not grow with their number.

    Every other clip of a set is also collected apart: the distance of these half sets shows how far the number still
    falls as clips are added.
    """

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
        """Features (B, D) of a batch of clips. Raises UserError for too few frames, or another number than before."""
        unit = unit_frames(torch.as_tensor(clips).detach(), self.value_range, self.quantize)  # (B, T, 3, H, W)
        frames, fewest = unit.shape[1], self.extractor.minimum_frames
        if frames < fewest:
            raise UserError(f"clips of {frames} frames are too short for FVD: {self.extractor.name} needs {fewest}")
        if self.frames not in (None, frames):
            raise UserError(f"clips of {frames} frames beside clips of {self.frames}: FVD compares equal lengths only")
        self.frames = frames
        clips = (unit * 2 - 1).float().transpose(1, 2)
        return torch.cat([self.extractor(part).cpu() for part in clips.split(CLIPS_AT_A_TIME)])

    def add_features(self, side: str, features: Tensor) -> None:
        """Take in features (B, D) of clips of one side, real or generated."""
        first, second = self._halves[side]
        odd = (first.count + second.count) % 2
        first.update(features[odd::2])
        second.update(features[1 - odd :: 2])

    def over_processes(self) -> FVD:
        """The distance of the sets of all processes, a new object."""
        total = FVD(self.extractor, self.value_range, self.quantize, self.force)
        total.frames = self.frames
        for side, halves in self._halves.items():
            total._halves[side] = tuple(half.over_processes() for half in halves)
        return total

    def score(self) -> Score:
        """The distance, with everything that it depends on. Raises UserError for too few clips or unequal sets."""
        real, generated = (first.merge(second) for first, second in self._halves.values())
        if real.count != generated.count:
            raise UserError(
                f"{real.count} real and {generated.count} generated clips: FVD compares equally large sets only"
            )
        if real.count < (2 if self.force else FEWEST_CLIPS):
            raise UserError(
                f"FVD of {real.count} clips measures their number more than their content; give at least "
                f"{FEWEST_CLIPS}, or --force (force=True) to see it all the same"
            )
        definition = fvd_definition(self.extractor.name, self.frames or 0, real.count, self.quantize)
        halves = [first for first, _ in self._halves.values()]
        notes = {"clips_per_side": real.count, "feature_network": self.extractor.facts(), "half_sample": None}
        if min(half.count for half in halves) >= 2:
            notes["half_sample"] = {"clips_per_side": halves[0].count, "value": frechet_distance(*halves)}
        return Score(definition, [], value=frechet_distance(real, generated), notes=notes)


def _batches(clips: Clips | Iterable[Clips]) -> Iterable[Clips]:
    if isinstance(clips, Tensor | np.ndarray):
        return torch.as_tensor(clips).split(CLIPS_AT_A_TIME)
    return clips
