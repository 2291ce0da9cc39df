"""Weights that grow with training: KL warm-up, and the delayed start of an adversarial term."""

from __future__ import annotations


def linear_ramp(step: int, start: int = 0, length: int = 0) -> float:
    """0 before step `start`, then linear to 1 over `length` steps, then 1. A length of 0 is a switch at `start`."""
    if step < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (step - start) / length)
