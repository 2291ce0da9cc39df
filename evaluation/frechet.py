"""The Frechet distance of two sets of features, each taken as a Gaussian (Dowson and Landau 1982), and how such sets
are collected batch by batch, in any number of processes.

Everything is float64, and memory does not grow with the number of features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce

import torch
from torch import Tensor

from training.distributed import gather_batches

DIVISORS = {"n-1": 1, "n": 0}  # of a covariance -> how many less than features


class FeatureSet(ABC):
    """What a distance needs to know of features (N, D) that arrive batch by batch."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions, self.count = dimensions, 0

    @abstractmethod
    def _add(self, features: Tensor) -> None:
        """Take in features (N, D), float64, finite, N >= 1, that `count` does not hold yet."""

    @abstractmethod
    def merge(self, other: FeatureSet) -> FeatureSet:
        """Both sets together, a new object."""

    def update(self, features: Tensor) -> FeatureSet:
        """Take in features (N, D), of any floating type and device; gives itself. Raises ValueError for nan."""
        features = features.detach().double().cpu()
        if not torch.isfinite(features).all():
            raise ValueError("features that are not finite have no distance")
        if len(features):
            self._add(features)
        return self

    def over_processes(self) -> FeatureSet:
        """The features of all processes, a new object, the same in each."""
        return reduce(type(self).merge, gather_batches([self]), type(self)(self.dimensions))


class GaussianStatistics(FeatureSet):
    """Mean and covariance.

    The scatter about the mean is kept as a factor F, scatter = F'F: the centred features themselves, and as soon as
    they are more than twice the dimensions the triangle of their QR decomposition. The scatter would hold the squares,
    and lose half of the digits wherever there are fewer features than dimensions.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self._rows: list[Tensor] = []  # of the factor

    def _add(self, features: Tensor) -> None:
        mean = features.mean(dim=0)
        self._merge(len(features), mean, features - mean)

    def merge(self, other: GaussianStatistics) -> GaussianStatistics:
        total = GaussianStatistics(self.dimensions)
        for part in (self, other):
            total._merge(part.count, part.mean, part.factor)
        return total

    @property
    def factor(self) -> Tensor:
        """F (rows, D) with F'F the scatter about the mean, at most 2 D rows."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, self.dimensions, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64 (D, D). Raises ValueError for fewer than two features."""
        scaled = self.scaled_factor()
        return scaled.T @ scaled

    def scaled_factor(self, divisor: str = "n-1") -> Tensor:
        """A (rows, D) with A'A the covariance of that divisor, of at most D rows.

        Raises ValueError for fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        rows = self.factor if len(self.factor) <= self.dimensions else triangle(self.factor)
        return rows / (self.count - DIVISORS[divisor]) ** 0.5

    def _merge(self, count: int, mean: Tensor, rows: Tensor) -> None:
        """Add a set by its own statistics (Chan, Golub and LeVeque 1979); the shift of the mean is one more row."""
        if not count:
            return
        total, shift = self.count + count, mean - self.mean
        self._rows.append(rows)
        if self.count:
            self._rows.append(shift[None] * (self.count * count / total) ** 0.5)
        if sum(map(len, self._rows)) > 2 * self.dimensions:
            self._rows = [triangle(self.factor)]
        self.mean = self.mean + shift * (count / total)
        self.count = total


def triangle(rows: Tensor) -> Tensor:
    """R (at most D, D) with R'R = F'F, of rows F (N, D)."""
    return torch.linalg.qr(rows, mode="r").R


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics, divisor: str = "n-1") -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}), at least 0; divisor: of the covariances, of DIVISORS.

    With S_a = A'A and S_b = B'B the trace of the root is the sum of the singular values of A B': no root is taken of
    anything, so that sets which lack rank have as many digits as others. The sets may differ in size. Raises ValueError
    for fewer than two features in a set.
    """
    first, second = a.scaled_factor(divisor), b.scaled_factor(divisor)
    shift = ((a.mean - b.mean) ** 2).sum()
    shared = torch.linalg.svdvals(first @ second.T).sum()
    return max(float(shift + (first**2).sum() + (second**2).sum() - 2 * shared), 0.0)
