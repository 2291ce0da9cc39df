"""Intervals over repetitions and over clips."""

import numpy as np
import pytest

from evaluation.report import over_clips, over_repetitions


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (30, 2.0423)])
def test_quantiles_of_students_t(freedom, expected):
    """The printed table, out of the half width of an interval."""
    values = list(range(freedom + 1))
    interval = over_repetitions(values)
    half = (interval.high - interval.low) / 2
    assert half * len(values) ** 0.5 / np.std(values, ddof=1) == pytest.approx(expected, abs=5e-5)


def test_interval_over_repetitions_by_hand():
    """Mean 2, deviation 1 over three values: 2 -+ 4.3027 / sqrt(3)."""
    interval = over_repetitions([1.0, 2.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert "Student" in interval.method and over_repetitions([1.0]) is None


def test_bootstrap_over_clips_covers_the_mean():
    """About as wide as the normal approximation, and the same at each call; 95 % of such intervals hold the truth."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = over_clips(values)
    assert interval == over_clips(values) and interval.low < values.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    samples = np.random.default_rng(1).normal(0, 1, (40, 50))
    covered = sum(found.low < 0 < found.high for found in map(over_clips, samples))
    assert 34 <= covered <= 40
    assert over_clips([1.0]) is None
