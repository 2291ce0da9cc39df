"""A trained tokenizer by its run folder, its checkpoint, its folder of `save_pretrained`, or a published file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch

from tokenizer3d.model import Tokenizer3D
from tokenizer3d.weights import CONFIG_FILE, WEIGHTS_FILE
from training.checkpoint import DAMAGE, METADATA, check_form, load_checkpoint, model_settings, strict_load
from videodata.errors import UserError, said_by


def load_model(
    path: str | Path, device: torch.device | str = "cpu", version: str | None = None
) -> tuple[Tokenizer3D, dict[str, Any]]:
    """The tokenizer, in eval mode, and the configuration of its run; {} where the file is of none.

    version: of a published file whose name does not tell it. Raises UserError.
    """
    path = Path(path)
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
    """Whether a file is a checkpoint of a training here, or the weights beside it. Raises UserError if damaged."""
    if path.suffix != ".safetensors":
        return path.stem.startswith("step-") or not path.is_file()  # the error of a missing file is one for all
    check_form(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return METADATA in (file.metadata() or {})
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error
