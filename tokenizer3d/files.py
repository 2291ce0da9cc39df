"""A trained tokenizer by its run folder, its checkpoint, its folder of `save_pretrained`, or a published file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tokenizer3d.model import Tokenizer3D
from tokenizer3d.weights import CONFIG_FILE, WEIGHTS_FILE, notes_of
from training.checkpoint import load_checkpoint, model_settings, strict_load
from training.pretrained import is_pretrained, open_pretrained
from videodata.errors import UserError


def load_model(
    path: str | Path, device: torch.device | str = "cpu", version: str | None = None
) -> tuple[Tokenizer3D, dict[str, Any]]:
    """The tokenizer, in eval mode, and the configuration of its run; {} where the file is of none.

    version: of a published file whose name does not tell it. Raises UserError.
    """
    path = Path(path)
    if is_pretrained(path):
        return open_pretrained(path, device)
    if path.is_dir() and (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        return Tokenizer3D.from_pretrained(path).to(device), {}
    if not path.is_dir() and (version is not None or not is_of_a_run(path)):
        return Tokenizer3D.from_single_file(path, version).to(device), {}
    checkpoint = load_checkpoint(path)
    if checkpoint["recipe"] != "tokenizer3d":
        raise UserError(f"{path}: is a checkpoint of {checkpoint['recipe']!r}, not of a 3-D tokenizer")
    weights = {**checkpoint["networks"], **checkpoint["ema"]}["tokenizer"]
    model = Tokenizer3D.from_config(model_settings(checkpoint["config"], path))
    strict_load(model, weights, path)
    return model.to(device).eval(), checkpoint["config"]


def is_of_a_run(path: Path) -> bool:
    """Whether a file is a checkpoint of a training here, or the weights beside it."""
    if not path.is_file():
        return True  # the error of a missing file is one for all
    if path.suffix == ".safetensors":
        return path.stem.startswith("weights-") and not notes_of(path)
    return path.stem.startswith("step-")
