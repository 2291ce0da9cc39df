"""Brownian paths that can be asked at any time, for solvers that take a step back."""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor

from training.randomness import SampleNoise


class BrownianPath:
    """One path per sample, W(0) = 0. Asking twice gives the same value; values between known ones are bridged."""

    def __init__(self, noise: SampleNoise, shape: tuple[int, ...]) -> None:
        self._shape, self._device = shape, noise.device
        self._generators = [torch.Generator(noise.device).manual_seed(seed) for seed in noise.integers(2**62).tolist()]
        zero = torch.zeros(shape, device=self._device)
        self._times = [[0.0] for _ in range(len(noise))]
        self._values = [[zero] for _ in range(len(noise))]

    def halves(self, rows: Tensor, time: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Increments of the samples `rows` over the two halves of [time, time + h], (b, *shape) each."""
        start, end = self._at(rows, time), self._at(rows, time + h)
        middle = self._at(rows, time + h / 2)
        return middle - start, end - middle

    def _at(self, rows: Tensor, times: Tensor) -> Tensor:
        return torch.stack([self._value(row, time) for row, time in zip(rows.tolist(), times.tolist(), strict=True)])

    def _value(self, row: int, time: float) -> Tensor:
        times, values = self._times[row], self._values[row]
        place = bisect.bisect_left(times, time)
        if place < len(times) and times[place] == time:
            return values[place]
        normal = torch.randn(self._shape, generator=self._generators[row], device=self._device)
        left, before = times[place - 1], values[place - 1]
        if place == len(times):
            value = before + math.sqrt(time - left) * normal
        else:
            right, after = times[place], values[place]
            mean = before + (time - left) / (right - left) * (after - before)
            value = mean + math.sqrt((time - left) * (right - time) / (right - left)) * normal
        times.insert(place, time)
        values.insert(place, value)
        return value
