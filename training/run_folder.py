"""A run's folder: made or continued, held by one run at a time, with room on the disk."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from training.files import remove_debris, write_file
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
