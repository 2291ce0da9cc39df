"""The training loop of all models, from top to bottom: `train`, the moments of a `Run`, and when to leave early."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import Dataset

from training import distributed
from training.checkpoint import Saver
from training.cli import LESS_MEMORY, is_out_of_memory
from training.data import PositionSampler, batches
from training.evaluation import Evaluator, write_pictures
from training.fault_injection import fault_point
from training.folder import check_free_space, open_run_folder, resume, run_facts, write_config
from training.log import CollapseWatch, RunLog, open_log
from training.recipe import Recipe
from training.settings import TrainSettings
from training.state import TrainState, build_state
from training.step import Update, Updater
from videodata.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """How a call of `train` ended."""

    step: int
    epoch: int
    digest: str  # SHA-256 of the trained and the averaged weights
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    finished: bool = True  # False: stopped early, the same command continues


def train(
    recipe: Recipe,
    dataset: Dataset,
    settings: TrainSettings,
    config: dict[str, Any],
    validation: Dataset | None = None,
) -> TrainResult:
    """Train the recipe's networks in `settings.run_dir`, or continue the run that this folder holds.

    `config` is the complete configuration as plain values; its part "model" must stay as it is when a run continues.
    An epoch is ceil(len(dataset) / batch_size) steps. Raises UserError for what the user can put right and
    NonFiniteAbort (status 3) when the numbers stay non-finite.
    """
    with ExitStack() as stack:
        # Join the processes and take the run folder; from here on a signal means save and leave.
        device = distributed.join_processes(settings.device, settings.process_timeout)
        check_sizes(settings, len(dataset))
        set_determinism(settings)
        stop = stack.enter_context(StopRequest(settings.max_minutes))
        folder = stack.enter_context(take_folder(Path(settings.run_dir)))

        # Build the state, or take it over from the newest checkpoint.
        state = build_state(recipe, settings, device)
        stack.callback(recipe.networks.update, state.networks)  # the caller gets its own networks back
        run = Run(state, dataset, validation, settings, config, folder, device)
        run.start()
        log = stack.enter_context(open_log(folder, state.step, settings, run.config))
        updater = Updater(state, settings, device)

        # Train.
        recipe.networks.update(state.wrapped)
        with batches(dataset, run.sampler(), settings, device) as feed, memory_advice(settings, updater):
            while state.step < settings.steps:
                update = updater.step(feed)
                state.step += 1
                state.samples_seen += settings.batch_size
                fault_point("in_step", state.step)
                run.report(update, log)
                if run.ends_epoch:
                    run.end_epoch()
                stopping = distributed.any_process(stop.requested)
                if stopping or run.save_is_due:
                    run.save()
                if stopping:
                    logger.info("stopped after step %d by %s", state.step, stop.reason or "another process")
                    break

        # Finish.
        run.saver.finish()
        digest = state.digest()
        logger.info("final weights sha256=%s", digest)
        return TrainResult(state.step, run.epoch, digest, state.metrics, finished=state.step >= settings.steps)


def check_sizes(settings: TrainSettings, length: int) -> None:
    """Raises UserError when batch, processes, micro-batches and data do not fit together."""
    world, batch = distributed.world_size(), settings.batch_size
    if settings.steps < 1 or batch < 1 or settings.accumulation < 1:
        raise UserError("steps, --batch_size and --accumulation must be at least 1")
    if batch % (world * settings.accumulation):
        raise UserError(
            f"--batch_size {batch} cannot be divided among {world} processes x --accumulation {settings.accumulation}"
        )
    if length < batch:
        raise UserError(f"the data set has {length} samples, fewer than --batch_size {batch}: use a smaller batch")


def set_determinism(settings: TrainSettings) -> None:
    """Ask torch for deterministic kernels where it has them."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


@contextmanager
def take_folder(run_dir: Path) -> Iterator[Path]:
    """The run folder, locked by the main process and ready for the others."""
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(open_run_folder(run_dir))
        distributed.barrier()
        yield run_dir


@contextmanager
def memory_advice(settings: TrainSettings, updater: Updater) -> Iterator[None]:
    """Turn running out of memory into one line that names the sizes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with --batch_size {settings.batch_size}, --accumulation {settings.accumulation} and "
            f"micro-batches of shape {updater.batch_shape}: {LESS_MEMORY}; the run folder can be continued"
        ) from error


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


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context in which the first signal asks the run to save and leave, and a second one ends it at once."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.reason: str | None = None
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes > 0 else float("inf")
        self._signalled = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @property
    def requested(self) -> bool:
        """Whether a signal came or the time is over."""
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason = "time limit"
        return self.reason is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signalled = True
        self.reason = signal.Signals(number).name
