"""Checkpoints on disk: each is complete and verified, or ignored.

run_dir/checkpoints/step-0001000.pt               training state: tensors and plain types, read with weights_only=True
run_dir/checkpoints/step-0001000.json             manifest, written last: SHA-256, step, metrics; without it the .pt
                                                  does not count
run_dir/checkpoints/weights-0001000.safetensors   weights alone (averaged where there are averages), keys
                                                  "<network>.<key>", metadata recipe, step, config (JSON)
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.fault_injection import fault_point
from training.files import canonical, sha256_of, write_file, write_json
from training.strict_load import strict_load
from training.weights_file import load_weights, write_weights
from videodata.errors import UserError

__all__ = ["Checkpoint", "checkpoints_in", "load_checkpoint", "newest_checkpoint", "save_checkpoint", "strict_load"]

logger = logging.getLogger(__name__)
FORMAT = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # format n -> function to format n + 1


@dataclass
class Checkpoint:
    """A checkpoint that has its manifest; `verify` tells whether the bytes are still those that were written."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def weights(self) -> Path:
        return weights_path(self.path.parent, self.step)

    def damage(self) -> str | None:
        """What is wrong with the file, or None."""
        try:
            size = self.path.stat().st_size
            if size != self.manifest["size"]:
                return f"has {size} bytes in place of {self.manifest['size']}"
            return None if sha256_of(self.path) == self.manifest["sha256"] else "does not have its SHA-256"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def delete(self) -> None:
        """Remove it; the manifest goes first, so that an interruption leaves no manifest without its file."""
        for path in (self.path.with_suffix(".json"), self.path, self.weights):
            path.unlink(missing_ok=True)


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.pt"


def weights_path(folder: Path, step: int) -> Path:
    return folder / f"weights-{step:07d}.safetensors"


def save_checkpoint(folder: Path, state: dict[str, Any], facts: dict[str, Any]) -> Checkpoint:
    """Write the state of a step, verify what is on the disk, and only then its manifest with `facts`.

    Raises OSError when the disk refuses or returns other bytes; earlier checkpoints are untouched.
    """
    step = state["step"]
    fault_point("before_save", step)
    write_weights(weights_path(folder, step), state)
    fault_point("after_weights", step)
    path = state_path(folder, step)
    written = write_file(
        path,
        lambda file: torch.save(canonical({"format": FORMAT, **state}), file),
        lambda: fault_point("in_save", step),
    )
    fault_point("before_manifest", step)
    if sha256_of(path) != written:
        raise OSError(5, "the disk returns other bytes than were written", str(path))
    manifest = {"format": FORMAT, "file": path.name, "step": step, "sha256": written, "size": path.stat().st_size}
    write_json(path.with_suffix(".json"), {**manifest, **facts})
    fault_point("after_save", step)
    return Checkpoint(path, {**manifest, **facts})


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """All checkpoints of a folder that have a manifest, newest first. Others are reported and left alone."""
    found = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            manifest = json.loads(path.with_suffix(".json").read_text())
            found.append(Checkpoint(path, {**manifest, "step": int(manifest["step"]), "size": int(manifest["size"])}))
        except FileNotFoundError:
            logger.warning("%s: ignored, its saving was interrupted (no manifest)", path)
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: ignored, its manifest is damaged", path)
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is undamaged; damaged ones are reported."""
    for checkpoint in checkpoints_in(folder):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        logger.warning("WARN %s: damaged, it %s; the previous checkpoint is used", checkpoint.path, damage)
    return None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The training state of a checkpoint file, or of the newest valid checkpoint of a run folder.

    Keys: format, recipe, step, samples_seen, networks {name: state dict}, optimizers, ema {name: state dict}, config
    and more; tensors on the CPU. A weights .safetensors gives recipe, step, networks and config alone.
    Raises UserError for a missing, damaged, foreign or newer file.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        newest = newest_checkpoint(folder)
        if newest is None:
            raise UserError(f"{path}: holds no valid checkpoint; train first, or name a checkpoint file")
        path = newest.path
    elif not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train first, or name another file")
    elif path.suffix == ".safetensors":
        return load_weights(path)
    else:
        check_manifest(path)
    return migrate(read_state(path), path)


def check_manifest(path: Path) -> None:
    """Compare a checkpoint file with the manifest beside it, where there is one."""
    manifest = path.with_suffix(".json")
    if not manifest.is_file():
        return
    try:
        damage = Checkpoint(path, json.loads(manifest.read_text())).damage()
    except (ValueError, KeyError) as error:
        raise UserError(f"{manifest}: damaged; remove it to read {path.name} unverified") from error
    if damage:
        raise UserError(f"{path}: damaged, it {damage}; use another checkpoint of {path.parent}")


def read_state(path: Path) -> dict[str, Any]:
    """A torch.save file of tensors and plain types; never runs code from it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a checkpoint of tensors and plain types, or cut off; nothing was loaded"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a training state")
    return state


def migrate(state: dict[str, Any], source: object) -> dict[str, Any]:
    """Bring a state to the present format. Raises UserError for a foreign file and for a newer format."""
    if not isinstance(state.get("format"), int) or not isinstance(state.get("networks"), dict):
        raise UserError(f"{source}: not a checkpoint of this project (no format number or networks)")
    if state["format"] > FORMAT:
        raise UserError(
            f"{source}: has format {state['format']}, this version reads up to {FORMAT}; update the project"
        )
    while state["format"] < FORMAT:
        if state["format"] not in MIGRATIONS:
            raise UserError(f"{source}: format {state['format']} can no longer be read; use an older version")
        state = {**MIGRATIONS[state["format"]](state), "format": state["format"] + 1}
    return state
