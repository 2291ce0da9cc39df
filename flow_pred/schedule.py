"""The learning rate of both predictors: linear warm-up from 0, then the square root of the steps that are left."""

from __future__ import annotations


def learning_rate(step: int, base: float, end: float, warmup: int, total: int) -> float:
    """Rate at optimiser step 0, 1, ...: 0 at first, `base` after `warmup` steps, `end` from `total` on."""
    if step < warmup:
        return base * step / warmup
    if step >= total:
        return end
    return (base - end) * (1 - (step - warmup) / (total - warmup)) ** 0.5 + end
