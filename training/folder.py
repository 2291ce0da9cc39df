"""A run's folder: made or continued, held by one run at a time; and whether its checkpoint may be continued."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from training import distributed
from training.checkpoint import checkpoints_in, first_of, newest_checkpoint, read_state
from training.optim import learning_rate_scale
from training.settings import FLAGS, TrainSettings
from training.sharded import is_sharded, remove_unfinished
from training.state import TrainState
from training.writing import LogFile
from videodata.errors import UserError
from videodata.files import (
    free_space,
    lock_file,
    read_json,
    readable_size,
    remove_debris,
    require_room,
    write_file,
    write_json,
)
from videodata.provenance import UNKNOWN, together

logger = logging.getLogger(__name__)

TRAINED_ON = "trained_on.json"


@contextmanager
def open_run_folder(folder: Path) -> Iterator[None]:
    """Make the run folder, lock it for the length of the block, remove what a killed run left, log to train.log.

    Raises UserError when it cannot be written, when another run holds it, or when it holds models of another training.
    """
    checkpoints = folder / "checkpoints"
    if (folder / TRAINED_ON).is_file() and not (folder / "config.yaml").is_file():  # a run writes the latter first
        raise UserError(f"{folder}: holds models of another training; use another folder")
    with lock_file(folder, "training in", lock=folder / "run.lock"):
        checkpoints.mkdir(exist_ok=True)
        with log_file(folder / "train.log"):
            for place in (folder, checkpoints, *(folder / "samples").glob("*")):  # not below: there may be other runs
                for name in remove_debris(place):
                    logger.info("removed unfinished file %s", name)
            for name in remove_unfinished(checkpoints):
                logger.info("removed unfinished checkpoint %s", name)
            yield


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Add what this project's modules log to a file, too."""
    try:
        handler = LogFile(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another run folder") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    engine = logging.getLogger(__package__)
    level = engine.level
    if not engine.isEnabledFor(logging.INFO):
        engine.setLevel(logging.INFO)
    try:
        yield
    finally:
        engine.setLevel(level)
        logging.getLogger().removeHandler(handler)
        handler.close()


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the complete configuration to config.yaml."""
    write_file(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def record_training_data(folder: Path, provenance: dict[str, Any] | None) -> None:
    """Add what is trained on to trained_on.json, also that it is unknown.

    A run that goes on with other data was trained on both.
    """
    before = read_json(folder / TRAINED_ON)
    write_json(folder / TRAINED_ON, together(([before] if before else []) + [provenance or UNKNOWN]))


def trained_on(run: str | Path) -> dict[str, Any] | None:
    """What the run was trained on, {"source", "split", "fingerprint", "ids"} and, of several data sets, "parts" of
    the same form. None where its folder does not say, or says that it is unknown.

    `run` is a run folder or one of its checkpoints.
    """
    run = Path(run)
    folder = run if run.is_dir() and not is_sharded(run) else run.parent
    places = (folder, folder.parent) if folder.name == "checkpoints" else (folder,)
    record = next((found for place in places if (found := read_json(place / TRAINED_ON)) is not None), None)
    return None if record == UNKNOWN else record


def check_free_space(folder: Path, checkpoint_bytes: int, kept: int) -> None:
    """Raises UserError when not even one checkpoint fits on the disk; warns when those to keep may not."""
    size = readable_size(checkpoint_bytes)
    require_room(
        folder, checkpoint_bytes, UserError, f"a checkpoint needs {size}", "; free space or choose another folder"
    )
    free = free_space(folder)[0]
    if free < kept * checkpoint_bytes:
        left = readable_size(free)
        logger.warning("WARN %s: %d checkpoints of %s are to be kept, %s are free", folder, kept, size, left)


FREE_KEYS = frozenset(
    {
        *("steps", "num_epochs", "epochs", "max_minutes", "run_dir", "device", "resume", "allow_config_change"),
        *("accumulation", "compile", "fsdp", "replicas", "workers", "loader_timeout", "process_timeout"),
        *("max_bad_steps", "save_every", "keep", "log_every", "evaluate_every", "evaluate_batches", "pictures_every"),
        *("wandb", "debug", "command"),
    }
)  # the last part of a key; a resumed run may change these because the samples and the model stay the same


def resume(state: TrainState, folder: Path, settings: TrainSettings, facts: dict[str, Any]) -> bool:
    """Continue from the newest valid checkpoint of the folder; False when there is none.

    `facts` are those of this run, as its checkpoints will hold them. Raises UserError for a folder that holds a run
    (resume=never), holds nothing but damaged checkpoints, or belongs to another recipe, model or configuration.
    """
    checkpoints = folder / "checkpoints"
    there = [entry.step for entry in checkpoints_in(checkpoints)]
    if not distributed.all_agree(there):
        raise UserError(f"{folder}: the processes see different checkpoints; use a folder that all share")
    if settings.resume == "never":
        if there or (folder / "metrics.jsonl").exists():
            raise UserError(f"{folder}: holds a run already; use --resume auto to continue it, or another folder")
        return False
    newest = newest_checkpoint(checkpoints, together=True)
    if newest is None:
        if there:
            raise UserError(f"{checkpoints}: every checkpoint is damaged; remove them to start over, or restore one")
        return False
    checkpoint = read_state(newest.path, state.examples() if state.sharded else None)
    if checkpoint["recipe"] != state.recipe.name:
        raise UserError(
            f"{newest.path}: is of recipe {checkpoint['recipe']!r}, not {state.recipe.name!r}; use another folder"
        )
    check_config(checkpoint["config"], facts["config"], settings.allow_config_change, state.recipe.free_keys, folder)
    if checkpoint["step"] > settings.steps:
        raise UserError(
            f"{folder}: has taken {checkpoint['step']} steps, more than the {settings.steps} that are asked for; ask "
            "for more, delete that folder to train anew, or use another one"
        )
    state.load(checkpoint, newest.path)
    warn_of_changes(checkpoint, facts)
    warn_of_rate(checkpoint, settings)
    logger.info("continuing %s at step %d", newest.path, state.step)
    return True


def check_config(old: dict[str, Any], new: dict[str, Any], allowed: bool, free: frozenset[str], folder: Path) -> None:
    """Refuse a changed configuration: always below "model", elsewhere unless `allowed` or the key is free."""
    found, free = config_changes(with_engine(old), new), FREE_KEYS | free
    changes = {key: values for key, values in found.items() if not free & {key, key.split(".")[-1]}}
    if not changes:
        return
    of_model = [key for key in changes if key == "model" or key.startswith("model.")]
    if of_model:
        raise UserError(
            f"{folder}: its run has another model ({table(changes, of_model)}); delete that folder to "
            "train it anew, or use another run folder"
        )
    if not allowed:
        lines = table(changes, list(changes))
        raise UserError(f"{folder}: the configuration changed ({lines}); add --allow-config-change to continue")
    for key in changes:
        logger.warning("WARN configuration changed: %s", table(changes, [key]))


def with_engine(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run of before the engine's settings had a key of their own: they stood in `training`."""
    if "engine" in config:
        return config
    stored = config.get("training", {})
    engine = {entry.name: stored.get(entry.name, entry.default) for entry in FLAGS}
    engine["milestones"] = list(engine["milestones"])
    own = {key: value for key, value in stored.items() if key not in {*engine, *FREE_KEYS}}
    return {**config, "training": own or None, "engine": engine}


def table(changes: dict[str, tuple[Any, Any]], keys: list[str]) -> str:
    """ "key: old -> new" of the first keys, in one line."""
    return first_of([f"{key}: {changes[key][0]!r} -> {changes[key][1]!r}" for key in keys])


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


def warn_of_rate(checkpoint: dict[str, Any], settings: TrainSettings) -> None:
    """Say how the learning rate of the next step changes, where its schedule follows the number of steps."""
    before = checkpoint["config"].get("engine", {}).get("steps", settings.steps)
    rates = [
        learning_rate_scale(
            checkpoint["step"], total, settings.warmup_steps, settings.schedule, milestones=settings.milestones,
            warmup=settings.warmup, warmup_start=settings.warmup_start,
        )
        for total in (before, settings.steps)
    ]  # fmt: skip
    if abs(rates[0] - rates[1]) > 0.01:
        logger.warning(
            "WARN --schedule %s: with %d steps in place of %d, the learning rate goes from %.3g to %.3g of its maximum",
            settings.schedule, settings.steps, before, *rates,
        )  # fmt: skip


def run_facts(config: dict[str, Any], device: torch.device, fingerprint: str | None) -> dict[str, Any]:
    """What a checkpoint tells about its run beside its state."""
    return {
        "config": config,
        "fingerprint": fingerprint,
        "torch": torch.__version__.split("+")[0],
        "device_type": device.type,
        "world_size": distributed.world_size(),
    }


def link_folder(inner: Path, outer: Path) -> None:
    """Make `outer`, and let the run folder's `inner` lead there, so that the loop writes to the documented place."""
    if inner.is_symlink() or inner.exists():
        return
    outer.mkdir(parents=True, exist_ok=True)
    inner.parent.mkdir(parents=True, exist_ok=True)
    try:
        inner.symlink_to(os.path.relpath(outer.resolve(), inner.parent.resolve()), target_is_directory=True)
    except OSError as error:
        if not hasattr(error, "winerror"):
            raise
        import _winapi  # Windows lets only some users make links, but everybody junctions

        _winapi.CreateJunction(str(outer.resolve()), str(inner))
