"""The Frechet distance and its statistics, against closed forms and an independent implementation."""

import numpy as np
import pytest
import torch

from evaluation.frechet import GaussianStatistics, frechet_distance
from tests.evaluation.test_mmd import two_sets
from tests.training import processes
from training import distributed


def features(count, dimensions, seed, scale=1.0, shift=0.0):
    """Correlated features, float64 (count, dimensions)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mix * scale + shift


def statistics(values, batch=None):
    collected = GaussianStatistics(values.shape[1])
    for part in values.split(batch or len(values)):
        collected.update(part)
    return collected


def exact(mean, covariance):
    """Statistics with a given mean and covariance."""
    found = GaussianStatistics(len(mean))
    found.count, found.mean, found._rows = 2, mean, [torch.linalg.cholesky(covariance).T]
    return found


TABLE = {  # (n, m, d): by divisors n - 1 and n
    (8, 5, 4): (4.0211964410, 3.7071831108),
    (64, 40, 16): (10.812608065, 10.692704019),
    (200, 120, 64): (37.422734094, 37.249126690),
    (30, 20, 64): (106.47405027, 102.94169380),
    (500, 300, 400): (390.47440140, 389.59193277),
}


@pytest.mark.parametrize("sizes", TABLE, ids=str)
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_sets_of_unequal_size(sizes, batch):
    """Computed elsewhere; the last two lack rank, and keep all digits however they are streamed."""
    a, b = (statistics(features, batch) for features in two_sets(*sizes))
    for divisor, expected in zip(("n-1", "n"), TABLE[sizes], strict=True):
        assert frechet_distance(a, b, divisor) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(b, a, divisor) == pytest.approx(expected, rel=1e-9)


def test_memory_does_not_grow_with_the_number_of_features():
    """No more than twice as many rows as dimensions, however many features there are and in however many parts."""
    values, found = features(900, 12, 6), GaussianStatistics(12)
    for part in values.split(5):
        found = found.update(part)
        assert found.factor.numel() <= 2 * 12 * 12
        assert found.merge(found).factor.numel() <= 2 * 12 * 12
    assert torch.allclose(found.covariance, torch.cov(values.T), rtol=0, atol=1e-9)


def test_diagonal_gaussians_have_a_closed_form():
    """|m - n|^2 + sum (s - t)^2 for standard deviations s and t; the order does not matter."""
    generator = torch.Generator().manual_seed(0)
    m, n, s, t = torch.rand(4, 12, generator=generator, dtype=torch.float64)
    a, b = exact(m, torch.diag(s**2)), exact(n, torch.diag(t**2))
    expected = float(((m - n) ** 2 + (s - t) ** 2).sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [16, 100, 600])
def test_the_distance_equals_the_matrix_root_of_scipy(count):
    """Full and deficient rank, 60 dimensions: the product's root by Schur's method gives the same to 1e-4."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(count, 60, 1), features(count, 60, 2, 1.3, 0.2)
    x, y = a.numpy(), b.numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm((s + 1e-9 * np.eye(60)) @ (t + 1e-9 * np.eye(60)))  # without it a deficient rank has no root
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * np.trace(np.real(root))
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [5, 300, 500])
def test_a_set_is_at_distance_0_from_itself(count):
    """Also for fewer features than dimensions, and in another order."""
    values = features(count, 400, 3)
    other = statistics(values.flip(0), 7)
    assert frechet_distance(statistics(values), other) < 1e-6 * float(other.covariance.trace())


def test_streamed_statistics_equal_those_of_the_whole():
    """Batches of any size, merged in any order, far from the origin."""
    values = features(331, 20, 4, shift=1000.0)
    streamed, merged = statistics(values, 17), statistics(values[200:], 3).merge(statistics(values[:200]))
    for found in (streamed, merged):
        assert found.count == 331
        assert torch.allclose(found.mean, values.mean(0), rtol=0, atol=1e-8)
        assert torch.allclose(found.covariance, torch.cov(values.T), rtol=0, atol=1e-8)


def statistics_of_a_share(values, world):
    found = statistics(values[distributed.rank() :: world], 10).over_processes()
    return torch.cat([found.mean[None], found.covariance])


def test_two_processes_equal_one(tmp_path):
    """Each with its share of the features; both know the whole."""
    values = features(101, 8, 5)
    one = statistics(values)
    found = processes.launch(statistics_of_a_share, 2, tmp_path, values, 2)
    for result in found:
        assert torch.allclose(result, torch.cat([one.mean[None], one.covariance]), rtol=0, atol=1e-8)


def test_too_few_and_broken_features_are_refused():
    """One feature has no covariance, nan no distance."""
    with pytest.raises(ValueError, match="at least 2 features"):
        frechet_distance(statistics(features(1, 4, 0)), statistics(features(3, 4, 0)))
    with pytest.raises(ValueError, match="not finite"):
        GaussianStatistics(2).update(torch.tensor([[0.0, torch.nan]]))
