"""The moments of a run between its steps: start, report, evaluation, pictures, end of an epoch, saving."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from training import distributed
from training.collapse import CollapseWatch
from training.evaluation import Evaluator
from training.pictures import write_pictures
from training.resume import resume, run_facts
from training.run_folder import check_free_space, write_config
from training.run_log import RunLog
from training.sampler import PositionSampler
from training.saving import Saver
from training.settings import TrainSettings
from training.state import TrainState
from training.update import Update
from videodata.errors import UserError


class Run:
    """A TrainState in its folder, with its data and settings."""

    def __init__(
        self, state: TrainState, dataset: Dataset, validation: Dataset | None, settings: TrainSettings,
        config: dict[str, Any], folder: Path, device: torch.device,
    ) -> None:  # fmt: skip
        self.state = state
        self.settings = settings
        self.folder = folder
        self.length = len(dataset)
        self.config = complete_config(config, settings)
        fingerprint = dataset.fingerprint() if hasattr(dataset, "fingerprint") else None
        self.facts = run_facts(self.config, device, fingerprint)
        self.evaluator = Evaluator(state, dataset, validation, settings, device)
        self.collapse = CollapseWatch()
        self.improved = False  # the last evaluation was the best so far and is not saved yet

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.length / self.settings.batch_size)

    @property
    def epoch(self) -> int:
        """Number of epochs done."""
        return self.state.step // self.steps_per_epoch

    @property
    def ends_epoch(self) -> bool:
        """Whether the step just taken was the last of an epoch."""
        return self.state.step % self.steps_per_epoch == 0

    @property
    def ends(self) -> bool:
        """Whether the step just taken was the last of the run."""
        return self.state.step == self.settings.steps

    @property
    def save_is_due(self) -> bool:
        return self.ends or self.improved or due(self.settings.save_every, self.state.step)

    def sampler(self) -> PositionSampler:
        """The remaining samples of this process."""
        return PositionSampler(
            length=self.length,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            first_step=self.state.step,
            last_step=self.settings.steps,
            first_position=self.state.samples_seen,
            accumulation=self.settings.accumulation,
            rank=distributed.rank(),
            world=distributed.world_size(),
        )

    def start(self) -> None:
        """Resume, see that all processes start alike and that the disk has room, write config.yaml."""
        resume(self.state, self.folder, self.settings, self.facts)
        if distributed.any_process(
            self.state.step != int(distributed.all_mean(torch.tensor(self.state.step).double()))
        ):
            raise UserError(f"{self.folder}: the processes see different checkpoints; use a folder that all share")
        self.saver = Saver(
            self.folder / "checkpoints", self.state.step, self.settings.keep, self.state.recipe.best_metric
        )
        if distributed.is_main():
            check_free_space(self.folder, checkpoint_bytes(self.state), self.settings.keep + 1)
            write_config(self.folder, self.config)

    def report(self, update: Update, log: RunLog) -> None:
        """Log, evaluate and show what is due after a step; one row of the log at most."""
        step, s = self.state.step, self.settings
        row: dict[str, Any] = {}
        if self.ends or due(s.log_every, step):
            row |= training_row(update, self.state)
            self.collapse.look(row)
        evaluates = self.ends or (due(s.evaluate_every, step) if s.evaluate_every else self.ends_epoch)
        if evaluates:
            row |= self.evaluate()
        if self.ends or (due(s.pictures_every, step) if s.pictures_every else evaluates):
            self.show_pictures(log)
        if row:
            log.write({"step": step, "epoch": self.epoch, "samples": self.state.samples_seen, **row})
        log.advance()

    def evaluate(self) -> dict[str, float]:
        """Validation metrics as a row of the log; notes whether they are the best so far."""
        metrics = self.evaluator.metrics()
        if metrics:
            self.improved = distributed.any_process(distributed.is_main() and self.saver.improves(metrics))
            self.state.metrics, self.state.metrics_step = metrics, self.state.step
        return {f"validation/{name}": value for name, value in metrics.items()}

    def show_pictures(self, log: RunLog) -> None:
        """Write the recipe's pictures to samples/step-<step>/ and to the log."""
        pictures = self.evaluator.pictures()
        if pictures and distributed.is_main():
            target = self.folder / "samples" / f"step-{self.state.step:07d}"
            self.saver.attempt("pictures", lambda: log.pictures(write_pictures(target, pictures), self.state.step))

    def end_epoch(self) -> None:
        """Let the recipe write its own files."""
        sharded = self.collect() if self.state.sharded else None  # gathering needs all processes
        if distributed.is_main():
            hook = self.state.recipe.on_epoch_end
            self.saver.attempt("files of the epoch", lambda: hook(self.epoch, lambda: sharded or self.collect()))

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self.improved = False
        if distributed.is_main() or self.state.sharded:
            state = self.collect()
            if distributed.is_main():
                self.saver.save(state)

    def collect(self) -> dict[str, Any]:
        return {**self.state.collect(), **self.facts}


def complete_config(config: dict[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """The configuration with the settings under "training", all as plain types."""
    chosen = {**config.get("training", {}), **asdict(settings)}
    return plain({**config, "training": chosen})


def plain(value: Any) -> Any:
    """Nested dicts, lists, strings, numbers and None; anything else as its string."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or type(value) in (str, int, float, bool) else str(value)


def due(every: int, step: int) -> bool:
    """Whether `step` is one of every `every` steps; never for 0."""
    return every > 0 and step % every == 0


def training_row(update: Update, state: TrainState) -> dict[str, float]:
    """The step's scalars averaged over the processes, and the learning rates."""
    names = sorted(update.scalars)
    row = {}
    if names:
        means = distributed.all_mean(torch.stack([update.scalars[name].float() for name in names])).tolist()
        row = dict(zip(names, means, strict=True))
    rates = {f"lr/{name}": optimizer.param_groups[0]["lr"] for name, optimizer in state.optimizers.items()}
    return {**row, **rates, "skipped_steps": state.skipped_steps}


def checkpoint_bytes(state: TrainState) -> int:
    """Size of a checkpoint with its weights file: weights twice, two moments, averages."""
    weights = sum(p.numel() * p.element_size() for net in state.networks.values() for p in net.parameters())
    return weights * (5 if state.averaged.models else 4)
