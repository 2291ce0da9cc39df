"""Weight files as data: nothing in them is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videodata.errors import UserError


def published_weights(path: Path) -> dict[str, Tensor]:
    """The generator's weights in a published file. Raises UserError."""
    return state_dict_in(read_tensors(path), path)


def state_dict_in(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """What is under `state_dict` (or the content itself), without the `loss.*` keys of the training."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no weights (name -> tensor)")
    return {key: value for key, value in state.items() if not key.startswith("loss.")}


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors and plain types; never runs code from it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; scripts/train_vqgan.py makes one, or name a published one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds objects beside tensors, which could run code; keep only its state_dict in the program "
            "that wrote it: torch.save({'state_dict': ...})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable file of weights; download or train it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not weights (name -> tensor)")
    return content
