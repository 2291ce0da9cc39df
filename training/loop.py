"""The training loop of all models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from training.recipe import Recipe
from training.settings import TrainSettings


@dataclass
class TrainResult:
    """How a call of `train` ended."""

    step: int
    epoch: int
    digest: str  # SHA-256 of the trained weights
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    finished: bool = True  # False: stopped early, the same command continues


def train(
    recipe: Recipe,
    dataset: Dataset,
    settings: TrainSettings,
    config: dict[str, Any],
    validation: Dataset | None = None,
) -> TrainResult:
    """Train the recipe's networks."""
    raise NotImplementedError("the loop is being written")
