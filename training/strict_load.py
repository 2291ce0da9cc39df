"""Weights into a module, all or nothing, with a readable report of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training import parallel
from videodata.errors import UserError

SHOWN = 10  # keys per kind of mismatch that the report names


def strict_load(module: nn.Module, state_dict: Mapping[str, Tensor], source: object) -> None:
    """Load weights into the module. Raises UserError naming missing, unexpected and misshapen keys; then nothing is
    loaded. Complete tensors load into sharded modules too.
    """
    report = mismatch_report(module, state_dict)
    if report:
        raise UserError(f"{source} does not fit the model: {report}")
    own = module.state_dict()
    with torch.no_grad():
        module.load_state_dict({key: parallel.like(value, own[key]) for key, value in state_dict.items()})


def mismatch_report(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape, in one line; empty when all fits."""
    own = module.state_dict()
    shapes = [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
        for key, value in state_dict.items()
        if key in own and isinstance(value, Tensor) and value.shape != own[key].shape
    ]
    parts = {
        "missing": [key for key in own if key not in state_dict],
        "unexpected": [key for key in state_dict if key not in own],
        "other shape": shapes,
    }
    return "; ".join(f"{kind}: {first_of(keys)}" for kind, keys in parts.items() if keys)


def first_of(keys: list[str]) -> str:
    """The first keys, and how many more there are."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
