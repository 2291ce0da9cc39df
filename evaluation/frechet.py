"""Frechet distance of two sets of features, each taken as a Gaussian: the distance behind FVD and FID.

Everything is float64. Mean and covariance are streamed, so that memory does not grow with the number of features.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
        parts = [self]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self)
        total = GaussianStatistics(len(self.mean))
        for part in parts:
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
