"""95 % confidence intervals: over repetitions of a measurement by Student's t, over its clips by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """Where the mean lies with the probability `level`, and how that was found."""

    low: float
    high: float
    method: str
    level: float = LEVEL

    def to_dict(self) -> dict[str, float | str]:
        """Plain types."""
        return asdict(self)


def over_repetitions(values: Sequence[float]) -> Interval | None:
    """Student's t interval for the mean of repeated measurements; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = student_quantile(0.5 + LEVEL / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half, f"Student's t over {len(values)} repetitions")


def over_clips(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval for the mean over clips (Efron 1979); None for fewer than two."""
    if len(values) < 2:
        return None
    clips, draws = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = [clips[draws.integers(len(clips), size=len(clips))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high), f"bootstrap over {len(clips)} clips, {RESAMPLES} resamples")


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile above 1/2 of Student's t with that many degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(freedom // 2):
        total += term
        k = 2 * step + (2 if odd else 1)
        term *= cosine**2 * k / (k + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
