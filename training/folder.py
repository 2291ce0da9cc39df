"""A run's folder: made or continued, held by one run at a time; and whether its checkpoint may be continued."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from training import distributed
from training.checkpoint import checkpoints_in, migrate, newest_checkpoint, read_state
from training.files import remove_debris, write_file
from training.settings import TrainSettings
from training.state import TrainState
from videodata.errors import UserError

logger = logging.getLogger(__name__)

_held: set[int] = set()  # descriptors of locks that belong to this process and not to the loader workers it forks


@contextmanager
def open_run_folder(run_dir: Path) -> Iterator[Path]:
    """Make the run folder, lock it for the length of the block, remove what a killed run left, log to train.log.

    Raises UserError when it cannot be written or when another run holds it.
    """
    folder = Path(run_dir)
    checkpoints = folder / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: run folder cannot be written ({error.strerror}); choose another one") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"{folder}: another run is using this folder; wait for it, or choose another one") from error
    _held.add(descriptor)
    try:
        with log_file(folder / "train.log"):
            for name in remove_debris(folder) + remove_debris(checkpoints):
                logger.info("removed unfinished file %s", name)
            yield folder
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _release_in_child() -> None:
    """A worker that outlives a killed run must not keep the folder locked."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Add what this project's modules log to a file, too."""
    try:
        handler = logging.FileHandler(path)
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
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_file(folder / "config.yaml", lambda file: file.write(text.encode()))


def check_free_space(folder: Path, checkpoint_bytes: int, kept: int) -> None:
    """Raises UserError when not even one checkpoint fits on the disk; warns when those to keep may not."""
    free = shutil.disk_usage(folder).free
    size, left = f"{checkpoint_bytes / 1e6:.1f} MB", f"{free / 1e6:.1f} MB"
    if free < checkpoint_bytes:
        raise UserError(f"{folder}: a checkpoint needs {size}, {left} are free; free space or choose another folder")
    if free < kept * checkpoint_bytes:
        logger.warning("WARN %s: %d checkpoints of %s are to be kept, %s are free", folder, kept, size, left)


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
