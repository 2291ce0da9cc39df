"""Frechet distances between two sets of clips: FVD of clips (Unterthiner et al. 2018, arXiv 1812.01717), FID of their
frames (Heusel et al. 2017, arXiv 1706.08500), and FD-PCA of small clips, which needs no weights.

The features of each set are taken as a Gaussian. Everything is float64; mean and covariance are streamed, so that
memory does not grow with the number of features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics import check_range, unit_frames
from evaluation.networks import FeatureExtractor, open_extractor
from evaluation.protocol import Protocol
from evaluation.report import Score, set_definition
from training.distributed import gather_batches
from videodata.clips import ClipDataset
from videodata.errors import UserError
from videodata.files import write_file
from videodata.pixels import normalize

logger = logging.getLogger(__name__)
CLIPS_AT_A_TIME = 8  # through the feature network
POOLED = 8  # pixels of a side that FD-PCA looks at
COMPONENTS = 48  # of FD-PCA at most, and
CLIPS_PER_COMPONENT = 4  # at least: a covariance of fewer says more about their number
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


def _batches(clips: Clips | Iterable[Clips]) -> Iterable[Clips]:
    if isinstance(clips, Tensor | np.ndarray):
        return torch.as_tensor(clips).split(CLIPS_AT_A_TIME)
    return clips


def open_distances(
    protocol: Protocol, reference: ClipDataset | None = None, count: int = 0, start: int = 0
) -> list[SetDistance]:
    """The distances that are asked for, empty, with their features. Raises UserError for missing weights.

    reference: real clips that FD-PCA finds its components in; count: clips that it will be of; start: first frame.
    """
    options = (protocol.download, protocol.device, protocol.allow_random_features)
    found: list[tuple[type[SetDistance], FeatureExtractor]] = []
    if "fvd" in protocol.metrics:
        found.append((FVD, open_extractor(protocol.extractor, protocol.fvd_weights, *options)))
    if "fid" in protocol.metrics:
        found.append((FID, open_extractor("inception", protocol.fid_weights, *options)))
    if "fd-pca" in protocol.metrics:
        found.append((FDPCA, PooledPCA(reference, count // CLIPS_PER_COMPONENT, start)))
    return [kind(extractor, quantize=protocol.quantize, force=protocol.force) for kind, extractor in found]


class PooledPCA(FeatureExtractor):
    """Coefficients of the principal components of small clips: POOLED x POOLED means of all frames, in [-1, 1].

    Fitted on the clips of a data set; `components` at most COMPONENTS, and as many as there are clips for.
    """

    minimum_frames, kept = 1, False

    def __init__(self, reference: ClipDataset, components: int, start: int = 0) -> None:
        super().__init__(None)
        clips = (reference[index][None, :, start:] for index in range(len(reference)))
        pooled = torch.cat([self.pool(normalize(clip) if clip.dtype == torch.uint8 else clip) for clip in clips])
        self.dimensions = max(1, min(COMPONENTS, components, len(pooled) // CLIPS_PER_COMPONENT))
        self.name = f"pca{self.dimensions}"
        self.mean = pooled.mean(dim=0)
        _, values, basis = torch.linalg.svd(pooled - self.mean, full_matrices=False)
        self.basis = basis[: self.dimensions].T
        share = float((values[: self.dimensions] ** 2).sum() / (values**2).sum().clamp(min=1e-12))
        split = getattr(reference, "split", None)
        self.text = (
            f"{self.dimensions} principal components of clips pooled to {POOLED}x{POOLED} pixels, [-1, 1], found in "
            f"{len(pooled)} real clips (split {split}), whose variance they have {share:.0%} of"
        )

    def __call__(self, clips: Tensor) -> Tensor:
        return self.project(self.pool(clips))

    def project(self, pooled: Tensor) -> Tensor:
        """Coefficients (B, dimensions) of what `pool` gives."""
        return (pooled - self.mean) @ self.basis

    @staticmethod
    def pool(clips: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(clips.double().cpu().transpose(1, 2).flatten(0, 1), POOLED).reshape(len(clips), -1)


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
        if extractor.counted != self.counted:
            raise UserError(
                f"{self.name} needs features of {self.counted}; {extractor.name} gives those of {extractor.counted}"
            )
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

    def empty(self) -> SetDistance:
        """The same distance of sets that hold nothing yet."""
        return type(self)(self.extractor, self.value_range, self.quantize, self.force)

    def over_processes(self) -> SetDistance:
        """The distance of the sets of all processes, a new object."""
        total = self.empty()
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


class FVD(SetDistance):
    """Collects two sets of clips batch by batch, and gives their distance."""

    name, counted = "FVD", "clips"
    fewest = 256  # a covariance of 400 features

    def definition(self, count: int) -> str:
        return set_definition("fvd", self.extractor.name, f"{self.frames or 0}f", count, self.quantize)


class FID(SetDistance):
    """Collects the frames of two sets of clips. Frames of one clip resemble each other: look at the clips as well."""

    name, counted = "FID", "frames"
    fewest = 2048  # a covariance of 2048 features

    def definition(self, count: int) -> str:
        return set_definition("fid", self.extractor.name, "", count, self.quantize)


class FDPCA(SetDistance):
    """Collects two sets of small clips. For models that are trained within minutes; no FVD, and not to be compared with
    one: it sees where things are and how they move and not what they look like.
    """

    name, counted = "FD-PCA", "clips"
    fewest = 2 * CLIPS_PER_COMPONENT

    def definition(self, count: int) -> str:
        return set_definition("fd", self.extractor.name, f"{self.frames or 0}f", count, self.quantize)


class GaussianStatistics:
    """Mean and unbiased covariance of features that arrive batch by batch, in any number of processes."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self._scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)  # sum of outer products about the mean

    def update(self, features: Tensor) -> GaussianStatistics:
        """Take in features (N, D), of any floating type and device; gives itself. Raises ValueError for nan."""
        features = features.detach().double().cpu()
        if not torch.isfinite(features).all():
            raise ValueError("features that are not finite have no distance")
        if len(features):
            mean = features.mean(dim=0)
            centred = features - mean
            self._merge(len(features), mean, centred.T @ centred)
        return self

    def merge(self, other: GaussianStatistics) -> GaussianStatistics:
        """The statistics of both sets together, a new object."""
        total = GaussianStatistics(len(self.mean))
        for part in (self, other):
            total._merge(part.count, part.mean, part._scatter)
        return total

    def over_processes(self) -> GaussianStatistics:
        """The statistics of the features of all processes, a new object, the same in each."""
        total = GaussianStatistics(len(self.mean))
        for part in gather_batches([self]):
            total = total.merge(part)
        return total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64 (D, D). Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self._scatter / (self.count - 1)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add a set by its own statistics (Chan, Golub and LeVeque 1979)."""
        if not count:
            return
        total = self.count + count
        shift = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Dowson and Landau 1982), at least 0.

    The trace of the root is the sum of the singular values of S_a^{1/2} S_b^{1/2}; they are the roots of the
    eigenvalues of S_a^{1/2} S_b S_a^{1/2}, without the loss of half the digits that squaring costs where a covariance
    has no full rank. Raises ValueError for fewer than two features in a set.
    """
    shift = ((a.mean - b.mean) ** 2).sum()
    shared = torch.linalg.svdvals(symmetric_root(a.covariance) @ symmetric_root(b.covariance)).sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(float(distance), 0.0)


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class FeatureCache:
    """Features (N, D) of the clips that `key` describes: data, windows, preprocessing, network. No folder: no cache."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self.path = None if folder is None else folder.expanduser() / f"{digest[:32]}.npy"

    def read(self, count: int) -> Tensor | None:
        """The features, where they are known of that many clips."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            features = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError):
            return None  # cut short; they are computed again
        return torch.from_numpy(features) if features.ndim == 2 and len(features) == count else None

    def write(self, features: Tensor) -> None:
        if self.path is None:
            return
        try:
            write_file(self.path, lambda file: np.save(file, features.numpy(), allow_pickle=False))
        except OSError as error:  # no reason to lose an evaluation
            logger.warning("WARN features of the real clips are not kept: %s", error)
