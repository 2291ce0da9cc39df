"""The training engine: one loop for every model. It knows no model; a model gives it a Recipe.

Names are imported when they are first used, because most of them need torch and a script's --help must not.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Losses": "training.recipe",
    "Networks": "training.recipe",
    "Recipe": "training.recipe",
    "SampleNoise": "training.randomness",
    "Step": "training.recipe",
    "TrainResult": "training.loop",
    "TrainSettings": "training.settings",
    "add_training_arguments": "training.settings",
    "derive_seed": "training.randomness",
    "open_pretrained": "training.pretrained",
    "open_tokenizer": "training.tokenizer",
    "pretrained_folder": "training.pretrained",
    "read_tensors": "training.checkpoint",
    "settings_from": "training.settings",
    "train": "training.loop",
    "trained_on": "training.folder",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
