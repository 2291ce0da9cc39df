"""When a run's state goes to disk, which checkpoints stay, and what happens when the disk refuses."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoint, checkpoints_in, save_checkpoint
from videodata.errors import UserError

logger = logging.getLogger(__name__)
ATTEMPTS = 3  # failures in a row after which training without a checkpoint is pointless
MANIFEST_FACTS = ("recipe", "torch", "device_type", "world_size", "metrics", "metrics_step", "samples_seen")


class Saver:
    """Saves the states of a run; keeps the newest `keep` and the best by `metric`, such as ("psnr", "max")."""

    def __init__(self, folder: Path, first_step: int, keep: int, metric: tuple[str, str] | None) -> None:
        self.folder = folder
        self.keep = max(1, keep)
        self.metric = metric
        self.kept = [checkpoint for checkpoint in checkpoints_in(folder) if checkpoint.step <= first_step]
        self.failures: Counter[str] = Counter()  # in a row, by what was to be written
        self.missing: dict[str, OSError] = {}  # what could not be written, at its last attempt

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those that need not stay. A full disk is a warning until it repeats."""
        facts = {name: state[name] for name in MANIFEST_FACTS}
        saved: list[Checkpoint] = []
        self.attempt("checkpoint", lambda: saved.append(save_checkpoint(self.folder, state, facts)))
        if saved:
            self.kept = [saved[0], *(entry for entry in self.kept if entry.step != saved[0].step)]
            self.prune()

    def attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write something; training goes on without it, unless nothing could be written for ATTEMPTS times."""
        try:
            write()
        except OSError as error:
            self.failures[what] += 1
            self.missing[what] = error
            logger.warning("WARN %s not saved: %s; training goes on", what, error)
            if self.failures[what] >= ATTEMPTS:
                raise UserError(
                    f"{self.folder}: no {what} saved in {ATTEMPTS} attempts ({error}); free space"
                ) from error
        else:
            self.failures[what] = 0
            self.missing.pop(what, None)

    def finish(self) -> None:
        """Raises UserError when the last attempt to write something failed."""
        for what, error in self.missing.items():
            raise UserError(f"{self.folder}: the last {what} could not be saved ({error}); free space and run again")

    def prune(self) -> None:
        """Delete what is neither among the newest nor the best."""
        best = self.best()
        for checkpoint in self.kept[self.keep :]:
            if checkpoint is not best:
                checkpoint.delete()
        self.kept = [entry for number, entry in enumerate(self.kept) if number < self.keep or entry is best]

    def best(self) -> Checkpoint | None:
        """The kept checkpoint with the best metric, the earliest of equals."""
        scored = [(score, entry) for entry in reversed(self.kept) if (score := self.score(entry.manifest)) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def improves(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics beat those of all kept checkpoints."""
        score = self.score({"metrics": metrics, "metrics_step": 0, "step": 0})
        best = self.best()
        return score is not None and (best is None or score > self.score(best.manifest))

    def score(self, manifest: dict[str, Any]) -> float | None:
        """The metric as larger-is-better; None when it was not measured at the very step of the checkpoint."""
        if self.metric is None or manifest.get("metrics_step") != manifest["step"]:
            return None
        name, direction = self.metric
        value = manifest["metrics"].get(name)
        return None if value is None else (value if direction == "max" else -value)


def best_checkpoint(run_dir: str | Path, metric: tuple[str, str]) -> Path | None:
    """The checkpoint of a run folder with the best metric, such as ("psnr", "max"); None where none was measured."""
    best = Saver(Path(run_dir) / "checkpoints", 2**62, 1, metric).best()
    return best.path if best else None
