"""Distances that compare every feature of two sets with every other by a kernel: squared maximum mean discrepancies
(Gretton et al. 2012). JEDi (Luo et al. 2024, arXiv 2410.05203) and the kernel video distance KVD (Unterthiner et al.
2018, arXiv 1812.01717).

Everything is float64: in float32, JEDi of near-equal sets is a tenth of a percent off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.frechet import FeatureSet
from training.distributed import gather_batches

ROWS_AT_A_TIME = 1024  # of the kernel matrix


class SecondMoments(FeatureSet):
    """Second moments about the origin, and the sum of |x|^4: all that JEDi needs of a set, of whatever size."""

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self._products = torch.zeros(dimensions, dimensions, dtype=torch.float64)  # sum of x x'
        self.fourth = torch.zeros((), dtype=torch.float64)  # sum of |x|^4

    def _add(self, features: Tensor) -> None:
        self._products += features.T @ features
        self.fourth += ((features**2).sum(dim=1) ** 2).sum()
        self.count += len(features)

    def merge(self, other: SecondMoments) -> SecondMoments:
        total = SecondMoments(self.dimensions)
        total._products, total.fourth = self._products + other._products, self.fourth + other.fourth
        total.count = self.count + other.count
        return total

    @property
    def moments(self) -> Tensor:
        """X'X / n, float64 (D, D). Raises ValueError for an empty set."""
        if not self.count:
            raise ValueError("a moment needs at least 1 feature")
        return self._products / self.count


def jedi(a: SecondMoments, b: SecondMoments) -> float:
    """100 [mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)] with k(x, y) = (x.y / D)^2, over all pairs, each feature with
    itself among them: the biased estimate that the paper's package gives.

    It equals 100 |M_X - M_Y|^2 / D^2, of the second moments M. So it is blind to the sign of features, and never
    negative.
    """
    return float(100 * ((a.moments - b.moments) ** 2).sum() / a.dimensions**2)


def jedi_unbiased(a: SecondMoments, b: SecondMoments) -> float:
    """The same without the pairs of a feature with itself: may be negative. Raises ValueError for fewer than two."""
    within = sum(_mean_of_pairs((s.count**2) * (s.moments**2).sum(), s.fourth, s.count) for s in (a, b))
    return float(100 / a.dimensions**2 * (within - 2 * (a.moments * b.moments).sum()))


class KeptFeatures(FeatureSet):
    """The features themselves, 8 bytes for each value: no few numbers stand for a kernel of degree 3."""

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self._parts: list[Tensor] = []

    def update(self, features: Tensor) -> FeatureSet:
        if not len(features):  # keeps its place among the batches of all processes
            self._parts.append(features.detach().double().cpu())
        return super().update(features)

    def _add(self, features: Tensor) -> None:
        self._parts.append(features)
        self.count += len(features)

    def over_processes(self) -> KeptFeatures:
        """The features of all processes, in the order that one process would have them in."""
        total = KeptFeatures(self.dimensions)
        total._parts = gather_batches(self._parts)
        total.count = sum(map(len, total._parts))
        return total

    def merge(self, other: KeptFeatures) -> KeptFeatures:
        total = KeptFeatures(self.dimensions)
        total._parts, total.count = [*self._parts, *other._parts], self.count + other.count
        return total

    @property
    def features(self) -> Tensor:
        """All of them, float64 (N, D)."""
        return torch.cat(self._parts) if self._parts else torch.zeros(0, self.dimensions, dtype=torch.float64)


def kvd(a: KeptFeatures, b: KeptFeatures) -> float:
    """Unbiased squared MMD with k(x, y) = (x.y / D + 1)^3, of all features at once and not scaled.

    Around 0 for equal distributions, below it as often as above: it must not be clamped. Raises ValueError for fewer
    than two features in a set.
    """
    x, y = a.features, b.features
    within = sum(
        _mean_of_pairs(_sum_of_kernel(z, z), _cubic((z**2).sum(dim=1), z.shape[1]).sum(), len(z)) for z in (x, y)
    )
    return float(within - 2 * _sum_of_kernel(x, y) / (len(x) * len(y)))


def kvd_of_blocks(a: KeptFeatures, b: KeptFeatures, rows: int) -> list[float]:
    """`kvd` of the first `rows` features of both sets, of the next ones, and so on as far as both sets reach.

    Raises ValueError for fewer than two rows, and for sets that are smaller than a block.
    """
    count = min(a.count, b.count) // rows if rows > 1 else 0
    if not count:
        raise ValueError(f"no block of {rows} features in sets of {a.count} and {b.count}")
    blocks = [[KeptFeatures(z.dimensions).update(part) for part in z.features.split(rows)[:count]] for z in (a, b)]
    return [kvd(x, y) for x, y in zip(*blocks, strict=True)]


def _mean_of_pairs(total: Tensor, diagonal: Tensor, count: int) -> Tensor:
    """Mean over ordered pairs of different features, of a kernel matrix by its sum and that of its diagonal."""
    if count < 2:
        raise ValueError(f"an unbiased estimate needs at least 2 features, got {count}")
    return (total - diagonal) / (count * (count - 1))


def _sum_of_kernel(x: Tensor, y: Tensor) -> Tensor:
    return sum(_cubic(part @ y.T, x.shape[1]).sum() for part in x.split(ROWS_AT_A_TIME))


def _cubic(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1) ** 3
