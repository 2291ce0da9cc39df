"""Short runs of the tiny GAN for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.training.tiny_gan import TinyClips, TinyGAN
from training import Recipe, TrainResult, TrainSettings, train
from training.checkpoint import load_checkpoint
from training.state import flatten


def settings(folder: Path, **changes: Any) -> TrainSettings:
    """Twelve steps of four samples, three epochs."""
    chosen = {"steps": 12, "batch_size": 4, "ema": 0.9, "log_every": 1, "evaluate_every": 100, "device": "cpu"}
    return TrainSettings(run_dir=folder, **{**chosen, **changes})


def run(folder: Path, recipe: Recipe | None = None, dataset: Any = None, **changes: Any) -> TrainResult:
    """Train the recipe, the tiny GAN if none is given."""
    data = TinyClips() if dataset is None else dataset
    return train(recipe or TinyGAN(), data, settings(folder, **changes), {"model": {"width": 8}})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All trained and averaged tensors of the newest checkpoint."""
    state = load_checkpoint(folder)
    return dict(flatten({"networks": state["networks"], "ema": state["ema"]}))


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of any value; the names must agree."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)
