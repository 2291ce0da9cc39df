"""Weights alone, as .safetensors: what to share, and enough to rebuild the model without the run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.files import TEMPORARY, sync_folder
from videodata.errors import UserError

METADATA = "run"  # the one entry of the file's metadata: a JSON object
FACTS = ("recipe", "step", "config")


def write_weights(path: Path, state: dict[str, Any]) -> None:
    """Write the weights of a training state atomically, the averaged ones where there are averages.

    Raises OSError when the disk refuses.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    facts = {"averaged": sorted(state["ema"]), **{key: state.get(key) for key in FACTS}}
    try:
        # one entry, because the format writes several in an order that differs from process to process
        save_file(tensors_to_share(state), temporary, metadata={METADATA: json.dumps(facts)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(5, f"cannot be written ({error})", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def tensors_to_share(state: dict[str, Any]) -> dict[str, Tensor]:
    """ "<network>.<key>" -> tensor. Tied weights are stored once per key, because the format knows no sharing."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weights in {**state["networks"], **state["ema"]}.items():
        for key, value in weights.items():
            tied = value.untyped_storage().data_ptr() in seen
            seen.add(value.untyped_storage().data_ptr())
            tensors[f"{name}.{key}"] = value.clone() if tied else value.contiguous()
    return tensors


def load_weights(path: str | Path) -> dict[str, Any]:
    """recipe, step, config and networks {name: state dict} of a weights file. Raises UserError for a bad one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        stored = json.loads(metadata[METADATA])
        facts = {key: stored[key] for key in FACTS}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({error})") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not a weights file of this project (no recipe and config in it)") from error
    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        network, key = name.split(".", 1)
        networks.setdefault(network, {})[key] = tensor
    return {**facts, "networks": networks, "ema": {}}
