"""Distances between two sets of clips: FVD of clips (Unterthiner et al. 2018, arXiv 1812.01717), FID of their frames
(Heusel et al. 2017, arXiv 1706.08500), KVD and JEDi by kernels (`evaluation.mmd`), and two that need nothing from
outside: FD-PCA of small clips, and FVD-digits and FVD-shapes of generated ones (`evaluation.factors`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.factors import KINDS as FACTORS
from evaluation.factors import FactorFeatures
from evaluation.frechet import DIVISORS, FeatureSet, GaussianStatistics, frechet_distance
from evaluation.journal import digest_of
from evaluation.metrics import check_range, unit_frames
from evaluation.mmd import KeptFeatures, SecondMoments, jedi, jedi_unbiased, kvd, kvd_of_blocks
from evaluation.networks import FeatureExtractor, open_extractor
from evaluation.protocol import Protocol
from evaluation.report import Score
from evaluation.set_definitions import set_definition
from training.distributed import is_main
from videodata.clips import ClipDataset
from videodata.errors import UserError
from videodata.files import write_file
from videodata.pixels import normalize

logger = logging.getLogger(__name__)

BLOCK = 1000  # clips of a block of KVD, as of a subset of KID
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
    unequal: bool = False,
    divisor: str = "n-1",
) -> float:
    """FVD of two sets of clips, each one array as for `psnr`, or an iterable of such arrays.

    `extractor`: i3d or i3d-torchscript, or an extractor itself; its weights are a file or folder, or found by name, and
    downloaded only when asked for. `unequal`: the sets may differ in size. `divisor`: of covariances, n-1 or n. Raises
    UserError for fewer than 256 clips (unless `force`), for clips that are too short, and when the weights are missing.
    """
    if isinstance(extractor, str):
        extractor = open_extractor(extractor, weights, download, device, allow_random_features)
    distance = FVD(extractor, value_range, quantize, force, unequal, divisor)
    for name, clips in (("real", real), ("generated", generated)):
        for batch in _batches(clips):
            distance.update(**{name: batch})
    return distance.score().mean


def _batches(clips: Clips | Iterable[Clips]) -> Iterable[Clips]:
    if isinstance(clips, Tensor | np.ndarray):
        return torch.as_tensor(clips).split(CLIPS_AT_A_TIME)
    return clips


def open_distances(
    protocol: Protocol,
    reference: ClipDataset | None = None,
    count: int = 0,
    start: int = 0,
    unequal: bool = True,
) -> list[SetDistance]:
    """The distances that are asked for, empty, with their features. Raises UserError for missing weights.

    reference: real clips that FD-PCA finds its components in; count: clips that it will be of; start: first frame.
    unequal: whether the sets may differ in size.
    """
    options = (protocol.download, protocol.device, protocol.allow_random_features)
    networks: dict[tuple[str, ...], Callable[[], FeatureExtractor]] = {  # opened only where asked for, and that once
        ("fvd", "kvd", "kvd-blocks"): lambda: open_extractor(protocol.extractor, protocol.fvd_weights, *options),
        ("fid",): lambda: open_extractor("inception", protocol.fid_weights, *options),
        ("jedi",): lambda: open_extractor("vjepa", protocol.jedi_weights, *options),
        ("fd-pca",): lambda: PooledPCA(reference, count // CLIPS_PER_COMPONENT, start),
        **{(f"fvd-{source}",): partial(FactorFeatures, source, protocol.device) for source in FACTORS},
    }
    found = []
    for metrics, open_network in networks.items():
        kinds = [KINDS[name] for name in metrics if name in protocol.metrics]
        extractor = open_network() if kinds else None
        for kind in kinds:
            found.append(kind(extractor, (-1.0, 1.0), protocol.quantize, protocol.force, unequal, protocol.divisor))
    return found


def by_network(distances: Sequence[SetDistance]) -> list[list[SetDistance]]:
    """Those of the same features together, so that a clip goes through each network once."""
    groups: dict[int, list[SetDistance]] = {}
    for distance in distances:
        groups.setdefault(id(distance.extractor), []).append(distance)
    return list(groups.values())


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
    """Two sets of clips.

    Every other feature of a set is also collected apart: the distance of these half sets shows how far the number
    still falls as clips are added. `unequal`: whether the sets may differ in size; both sizes are part of the id.
    """

    name: str  # as it is printed
    metric: str  # as it begins the id
    counted = "clips"  # what has a feature: clips or frames
    fewest: int  # of these: an estimate from fewer says more about their number than about what they show
    usual = 0  # with fewer there is a warning
    collect: type[FeatureSet] = GaussianStatistics

    def __init__(
        self,
        extractor: FeatureExtractor,
        value_range: tuple[float, float] = (-1.0, 1.0),
        quantize: bool = True,
        force: bool = False,
        unequal: bool = False,
        divisor: str = "n-1",
    ) -> None:
        if extractor.counted != self.counted:
            raise UserError(
                f"{self.name} needs features of {self.counted}; {extractor.name} gives those of {extractor.counted}"
            )
        self.extractor, self.value_range, self.quantize, self.force = extractor, value_range, quantize, force
        self.unequal, self.divisor = unequal, divisor
        self.frames: int | None = None
        self._halves = {
            side: (self.collect(extractor.dimensions), self.collect(extractor.dimensions))
            for side in ("real", "generated")
        }

    @abstractmethod
    def between(self, real: FeatureSet, generated: FeatureSet) -> float:
        """The distance of two sets of features."""

    def definition(self, sizes: tuple[int, int], metric: str | None = None) -> str:
        """The id of the distance of sets with so many features."""
        frames = (self.frames or 0) if self.counted == "clips" else 0
        ddof = DIVISORS[self.divisor] if self.collect is GaussianStatistics else None
        return set_definition(metric or self.metric, self.network, frames, sizes, self.quantize, ddof)

    @property
    def network(self) -> str:
        """The feature network's part of the id."""
        return self.extractor.definition

    def update(self, real: Clips | None = None, generated: Clips | None = None) -> None:
        """Take in a batch of clips of either set or of both.

        Raises UserError for clips that are too short, ValueError for real clips that leave the declared range.
        """
        if real is not None:
            check_range(torch.as_tensor(real), self.value_range)
        for side, clips in (("real", real), ("generated", generated)):
            if clips is not None:
                clips = torch.as_tensor(clips)
                frames = clips.shape[-4 if clips.dtype == torch.uint8 else -3]
                self.add_features(side, self.features(clips), frames)

    def features(self, clips: Clips) -> Tensor:
        """Features (B * n, D) of clips. Raises UserError for a number of frames that the network does not take."""
        clips = torch.as_tensor(clips).detach()
        clips = clips[None] if clips.dtype == torch.uint8 and clips.dim() == 4 else clips
        return torch.cat([self._features(part) for part in clips.split(CLIPS_AT_A_TIME)])

    def _features(self, clips: Tensor) -> Tensor:
        unit = unit_frames(clips, self.value_range, self.quantize)  # (B, T, 3, H, W)
        self.check_frames(unit.shape[1])
        return self.extractor((unit * 2 - 1).float().transpose(1, 2)).cpu()

    def add_features(self, side: str, features: Tensor, frames: int, number: int | None = None) -> None:
        """Take in features (N, D) of one side, real or generated, of clips of so many frames.

        number: of the first in its set, where others are collected elsewhere; default: as many as are here. Raises
        UserError for another number of frames than before.
        """
        if self.frames not in (None, frames):
            raise UserError(
                f"clips of {frames} frames beside clips of {self.frames}: {self.name} compares equal lengths only"
            )
        self.frames = frames
        first, second = self._halves[side]
        odd = (first.count + second.count if number is None else number) % 2
        first.update(features[odd::2])
        second.update(features[1 - odd :: 2])

    def empty(self) -> SetDistance:
        """The same distance of sets that hold nothing yet."""
        return type(self)(self.extractor, self.value_range, self.quantize, self.force, self.unequal, self.divisor)

    def over_processes(self) -> SetDistance:
        """The distance of the sets of all processes, a new object."""
        total = self.empty()
        total.frames = self.frames
        for side, halves in self._halves.items():
            total._halves[side] = tuple(half.over_processes() for half in halves)
        return total

    def check_frames(self, frames: int) -> None:
        """Raises UserError for clips of a length that the network does not take."""
        fewest, step = self.extractor.minimum_frames, self.extractor.frames_step
        if frames < fewest:
            raise UserError(
                f"clips of {frames} frames are too short for {self.name}: {self.extractor.name} needs {fewest}"
            )
        if frames % step:
            raise UserError(f"{self.name} of {frames} frames: {self.extractor.name} takes multiples of {step}")

    def check_count(self, count: int) -> None:
        """Raises UserError for so few features that their distance would mislead."""
        if count < (2 if self.force else self.fewest):
            raise UserError(
                f"{self.name} of {count} {self.counted} measures their number more than their content; give at least "
                f"{self.fewest}, or --force (force=True) to see it all the same"
            )

    def check_sizes(self, real: int, generated: int) -> None:
        """Raises UserError for sets of unequal size, unless that is asked for."""
        if real != generated and not self.unequal:
            raise UserError(
                f"{real} real and {generated} generated {self.counted}: {self.name} compares equally large sets, "
                "or others with --unequal_sets (unequal=True)"
            )

    def caution(self, count: int, frames: int) -> None:
        """Warn of what makes the number hard to compare with others, before the work."""
        if count < self.usual and is_main():
            logger.warning("%s of %d %s: tables have at least %d", self.name, count, self.counted, self.usual)
        usual = self.extractor.usual_frames
        if usual not in (None, frames) and is_main():
            logger.warning("%s of %d frames: its network was trained with %d", self.name, frames, usual)

    def score(self) -> Score:
        """The distance, with everything that it depends on. Raises UserError for too few features or unequal sets."""
        return self.scores()[0]

    def scores(self) -> list[Score]:
        """`score`, and other estimates of it."""
        real, generated = (first.merge(second) for first, second in self._halves.values())
        sizes = real.count, generated.count
        self.check_sizes(*sizes)
        self.check_count(min(sizes))
        halves = [first for first, _ in self._halves.values()]
        half_sizes = {side: half.count for side, half in zip(("real", "generated"), halves, strict=True)}
        notes = {
            "sizes": {"real": real.count, "generated": generated.count},
            "feature_network": self.extractor.facts(),
            "half_sample": None,
        }
        if min(half_sizes.values()) >= 2:
            notes["half_sample"] = {**half_sizes, "value": self.between(*halves)}
        return [Score(self.definition(sizes), [], value=self.between(real, generated), notes=notes)]


class FrechetDistance(SetDistance):
    """Of the Gaussians that have the sets' means and covariances; memory does not grow with the number of clips."""

    def between(self, real: GaussianStatistics, generated: GaussianStatistics) -> float:
        return frechet_distance(real, generated, self.divisor)


class FVD(FrechetDistance):
    """Collects two sets of clips batch by batch, and gives their distance."""

    name, metric = "FVD", "fvd"
    fewest = 256  # a covariance of 400 features


class GeneratedFVD(FVD):
    """The same of clips of a generated source, by the network that knows its factors: no FVD that anybody publishes."""

    fewest = 128  # a covariance of 100 features

    @property
    def name(self) -> str:
        return f"FVD-{self.extractor.name}"


class FID(FrechetDistance):
    """Collects the frames of two sets of clips. Frames of one clip resemble each other: look at the clips as well."""

    name, metric, counted = "FID", "fid", "frames"
    fewest = 2048  # a covariance of 2048 features


class FDPCA(FrechetDistance):
    """Collects two sets of small clips. For models that are trained within minutes; no FVD, and not to be compared with
    one: it sees where things are and how they move and not what they look like.
    """

    name, metric = "FD-PCA", "fd"
    fewest = 2 * CLIPS_PER_COMPONENT


class KVD(SetDistance):
    """The features of FVD by a kernel. Unbiased, so that it can be seen of few clips; it keeps their features."""

    name, metric, collect = "KVD", "kvd", KeptFeatures
    fewest = 2

    def between(self, real: KeptFeatures, generated: KeptFeatures) -> float:
        return kvd(real, generated)


class KVDOfBlocks(KVD):
    """The mean of KVD over disjoint blocks of clips that follow each other, as KID is one over subsets (Binkowski et
    al. 2018, arXiv 1801.01401): its deviation says how sure it is. Blocks have BLOCK clips, with `force` fewer.
    """

    name, fewest = "KVD-blocks", BLOCK

    def scores(self) -> list[Score]:
        (score,) = super().scores()
        real, generated = (in_turn(*halves) for halves in self._halves.values())
        rows = min(BLOCK, real.count, generated.count)
        values = kvd_of_blocks(real, generated, rows)
        definition = self.definition((real.count, generated.count), f"kvd-blocks{rows}")
        spread = stdev(values) if len(values) > 1 else None
        notes = {**score.notes, "half_sample": None, "blocks": values, "deviation_over_blocks": spread}
        return [Score(definition, [], value=fmean(values), notes=notes)]


def in_turn(first: KeptFeatures, second: KeptFeatures) -> KeptFeatures:
    """The features of two sets, one of the first, one of the second, and so on."""
    features = torch.zeros(first.count + second.count, first.dimensions, dtype=torch.float64)
    features[::2], features[1::2] = first.features, second.features
    return KeptFeatures(first.dimensions).update(features)


class JEDi(SetDistance):
    """Features of V-JEPA by a kernel, as the paper's package computes it; its unbiased form has an id of its own."""

    name, metric, collect = "JEDi", "jedi", SecondMoments
    fewest, usual = 256, 2048

    @property
    def network(self) -> str:
        return self.extractor.name  # of one definition; its files stand in the result

    def between(self, real: SecondMoments, generated: SecondMoments) -> float:
        return jedi(real, generated)

    def scores(self) -> list[Score]:
        (plain,) = super().scores()
        real, generated = (first.merge(second) for first, second in self._halves.values())
        unbiased = self.definition((real.count, generated.count), "jedi-unbiased")
        notes = {**plain.notes, "half_sample": None}
        return [plain, Score(unbiased, [], value=jedi_unbiased(real, generated), notes=notes)]


KINDS: dict[str, type[SetDistance]] = {
    "fvd": FVD,
    "kvd": KVD,
    "kvd-blocks": KVDOfBlocks,
    "fid": FID,
    "jedi": JEDi,
    "fd-pca": FDPCA,
}
KINDS |= {f"fvd-{source}": GeneratedFVD for source in FACTORS}


class FeatureCache:
    """Features (N, D) of the clips that `key` describes: data, windows, preprocessing, network. No folder: no cache."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        self.path = None if folder is None else folder.expanduser() / f"{digest_of(key)[:32]}.npy"

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
