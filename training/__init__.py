"""The training engine: one loop for every model. It knows no model; a model gives it a Recipe."""

from training import cli
from training.loop import TrainResult, train
from training.randomness import SampleNoise, derive_seed
from training.recipe import Losses, Recipe, Step
from training.settings import TrainSettings, add_training_arguments, settings_from

__all__ = [
    "Losses",
    "Recipe",
    "SampleNoise",
    "Step",
    "TrainResult",
    "TrainSettings",
    "add_training_arguments",
    "cli",
    "derive_seed",
    "settings_from",
    "train",
]
