"""Frechet video distance (Unterthiner et al. 2018, arXiv 1812.01717) between two sets of clips."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.definitions import set_definition
from evaluation.features import FeatureExtractor
from evaluation.set_distance import CLIPS_AT_A_TIME, Clips, SetDistance
from evaluation.video_features import open_extractor


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


class FVD(SetDistance):
    """Collects two sets of clips batch by batch, and gives their distance."""

    name, counted = "FVD", "clips"
    fewest = 256  # a covariance of 400 features

    def definition(self, count: int) -> str:
        return set_definition("fvd", self.extractor.name, f"{self.frames or 0}f", count, self.quantize)


def _batches(clips: Clips | Iterable[Clips]) -> Iterable[Clips]:
    if isinstance(clips, Tensor | np.ndarray):
        return torch.as_tensor(clips).split(CLIPS_AT_A_TIME)
    return clips
