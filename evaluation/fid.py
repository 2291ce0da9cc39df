"""Frechet inception distance of single frames (Heusel et al. 2017, arXiv 1706.08500) between two sets of clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from evaluation.definitions import set_definition
from evaluation.features import FeatureExtractor
from evaluation.set_distance import SetDistance
from evaluation.video_features import RandomFeatures
from losses.weights import find_weights


class FID(SetDistance):
    """Collects the frames of two sets of clips. Frames of one clip resemble each other: look at the clips as well."""

    name, counted = "FID", "frames"
    fewest = 2048  # a covariance of 2048 features

    def definition(self, count: int) -> str:
        return set_definition("fid", self.extractor.name, "", count, self.quantize)


class InceptionFeatures(FeatureExtractor):
    """Features of each frame from the published weights."""

    name, dimensions, minimum_frames = "pytorch", 2048, 1
    text = "whole frames, bilinear to 299x299 (corners not aligned, no antialiasing), [-1, 1], pool3 of Inception-v3"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from evaluation.inception import FIDInception  # here, because torchvision takes seconds to import

        super().__init__(weights)
        network = FIDInception()
        network.load_weights(weights)
        self.network, self.device = network.eval().requires_grad_(False).to(device), device

    def __call__(self, clips: Tensor) -> Tensor:
        from evaluation.inception import features_of

        return features_of(self.network, clips.transpose(1, 2).flatten(0, 1).to(self.device))


class RandomFrameFeatures(RandomFeatures):
    """The small random network, on each frame twice in place of on clips."""

    minimum_frames = 1

    def __call__(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]
        return super().__call__(frames.expand(-1, -1, 2, -1, -1))


def open_inception(
    weights: Path | str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    allow_random: bool = False,
) -> FeatureExtractor:
    """The feature network, its weights from a file or folder, found by name, or downloaded on request.

    allow_random: a RANDOM network in its place; its results carry that name. Raises UserError in one line.
    """
    device = torch.device(device)
    if allow_random:
        return RandomFrameFeatures(device)
    return InceptionFeatures(find_weights("inception", weights, download=download), device)
