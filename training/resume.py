"""Which checkpoint a run continues from, and whether it may."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from training import distributed
from training.checkpoint import checkpoints_in, migrate, newest_checkpoint, read_state
from training.settings import TrainSettings
from training.state import TrainState
from videodata.errors import UserError

logger = logging.getLogger(__name__)
SHOWN = 10
FREE_KEYS = frozenset(
    {
        *("steps", "num_epochs", "epochs", "max_minutes", "run_dir", "device", "resume", "allow_config_change"),
        *("accumulation", "compile", "fsdp", "workers", "loader_timeout", "process_timeout", "max_bad_steps"),
        *("save_every", "keep", "log_every", "evaluate_every", "evaluate_batches", "pictures_every", "wandb"),
        *("debug", "command"),
    }
)  # the last part of a key; a resumed run may change these because the samples and the model stay the same


def resume(state: TrainState, folder: Path, settings: TrainSettings, facts: dict[str, Any]) -> bool:
    """Continue from the newest valid checkpoint of the folder; False when there is none.

    `facts` are those of this run, as its checkpoints will hold them. Raises UserError for a folder that holds a run
    (resume=never), holds nothing but damaged checkpoints, or belongs to another recipe, model or configuration.
    """
    checkpoints = folder / "checkpoints"
    if settings.resume == "never":
        if checkpoints_in(checkpoints) or (folder / "metrics.jsonl").exists():
            raise UserError(f"{folder}: holds a run already; use --resume auto to continue it, or another folder")
        return False
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        if checkpoints_in(checkpoints):
            raise UserError(f"{checkpoints}: every checkpoint is damaged; remove them to start over, or restore one")
        return False
    checkpoint = migrate(read_state(newest.path), newest.path)
    if checkpoint["recipe"] != state.recipe.name:
        raise UserError(
            f"{newest.path}: is of recipe {checkpoint['recipe']!r}, not {state.recipe.name!r}; use another folder"
        )
    check_config(checkpoint["config"], facts["config"], settings.allow_config_change, state.recipe.free_keys, folder)
    state.load(checkpoint, newest.path)
    warn_of_changes(checkpoint, facts)
    logger.info("continuing %s at step %d", newest.path, state.step)
    return True


def check_config(old: dict[str, Any], new: dict[str, Any], allowed: bool, free: frozenset[str], folder: Path) -> None:
    """Refuse a changed configuration: always below "model", elsewhere unless `allowed` or the key is free."""
    changes = {
        key: values for key, values in config_changes(old, new).items() if key.split(".")[-1] not in FREE_KEYS | free
    }
    if not changes:
        return
    of_model = [key for key in changes if key == "model" or key.startswith("model.")]
    if of_model:
        raise UserError(f"{folder}: its run has another model ({table(changes, of_model)}); use another run folder")
    if not allowed:
        lines = table(changes, list(changes))
        raise UserError(f"{folder}: the configuration changed ({lines}); add --allow-config-change to continue")
    for key in changes:
        logger.warning("WARN configuration changed: %s", table(changes, [key]))


def table(changes: dict[str, tuple[Any, Any]], keys: list[str]) -> str:
    """ "key: old -> new" of the first keys, in one line."""
    lines = [f"{key}: {changes[key][0]!r} -> {changes[key][1]!r}" for key in keys]
    return ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def config_changes(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of every difference between two nested configurations; None where a key is absent."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix: (old, new)}
    changes = {}
    for key in [*old, *(key for key in new if key not in old)]:
        changes |= config_changes(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    return changes


def warn_of_changes(checkpoint: dict[str, Any], facts: dict[str, Any]) -> None:
    """Say what makes the continued run differ, in its last bits or in its data, from an uninterrupted one."""
    for name in ("torch", "device_type", "world_size"):
        if checkpoint[name] != facts[name]:
            text = "WARN %s was %s and is %s: the run continues, but not bit-exact"
            logger.warning(text, name, checkpoint[name], facts[name])
    if checkpoint["fingerprint"] != facts["fingerprint"]:
        logger.warning("WARN the data set is not the one of the checkpoint (other files, sizes or contents)")


def run_facts(config: dict[str, Any], device: torch.device, fingerprint: str | None) -> dict[str, Any]:
    """What a checkpoint tells about its run beside its state."""
    return {
        "config": config,
        "fingerprint": fingerprint,
        "torch": torch.__version__.split("+")[0],
        "device_type": device.type,
        "world_size": distributed.world_size(),
    }
