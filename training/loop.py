"""The training loop of all models, from top to bottom: `train`, the moments of a `Run`, and when to leave early."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import Dataset

from training import distributed
from training.checkpoint import Saver, ShardedSaver
from training.cli import LESS_MEMORY, is_out_of_memory
from training.data import PositionSampler, batches, blocks_of
from training.evaluation import Evaluator, write_pictures
from training.folder import (
    check_free_space,
    open_run_folder,
    record_training_data,
    resume,
    run_facts,
    write_config,
)
from training.log import CollapseWatch, RunLog, check_wandb
from training.recipe import Recipe
from training.settings import TrainSettings, check_ranges, check_schedule
from training.state import TrainState, build_state
from training.step import Update, Updater, decided
from videodata.errors import UserError
from videodata.finite import guarded_elsewhere
from videodata.prepare import available_cores
from videodata.provenance import provenance_of

logger = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """How a call of `train` ended."""

    step: int
    epoch: int
    digest: str  # SHA-256 of the trained and the averaged weights
    settings: TrainSettings
    show_command: str | None  # of the recipe
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    finished: bool = True  # False: stopped early, the same command continues

    def told(self, *facts: str) -> str:
        """The last lines of a command that trains: how it ended, and what shows it or goes on."""
        last = f"finished after {self.step} steps"
        if not self.finished:
            last, facts = f"stopped at step {self.step} of {self.settings.steps}; the same command continues", ()
        follows = f"\nnext: {self.show_command}" if self.finished and self.show_command else ""
        return f"{self.settings.run_dir}: {', '.join([last, *facts])}{follows}"

    def scores(self, *names: str) -> list[str]:
        """Of the last evaluation, those of these names; without any, all."""
        chosen = names or sorted(self.metrics)
        return [f"{name} {self.metrics[name]:.4g}" for name in chosen if name in self.metrics]


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
        stack.enter_context(guarded_elsewhere())  # the updater looks at losses and gradients
        # Join the processes and take the run folder; from here on a signal means save and leave.
        device = distributed.join_processes(settings.device, settings.process_timeout)
        check_ranges(settings)
        cores = available_cores()  # more loader processes take time from each other, and torch warns of them
        settings = replace(
            settings, precision=decided(settings.precision, device), workers=min(settings.workers, cores)
        )
        check_sizes(settings, len(dataset))
        check_schedule(settings)
        if settings.wandb:
            check_wandb()  # before there is a folder
        set_determinism(settings)
        stop = stack.enter_context(StopRequest(settings.max_minutes))
        folder = Path(settings.run_dir)
        if distributed.is_main():
            stack.enter_context(open_run_folder(folder))
        distributed.barrier()
        logger.info(first_line(settings, device, dataset))
        for note in recipe.notes:
            logger.warning(note)
        if settings.warmup_steps >= settings.steps:
            logger.warning("WARN the learning rate warms up to the end: use fewer --warmup_steps than steps")

        # Build the state, or take it over from the newest checkpoint.
        state = build_state(recipe, settings, device)
        run = Run(state, dataset, validation, settings, config, folder, device, stop)
        run.start()
        stack.callback(run.saver.close)
        if distributed.is_main():
            run.log = stack.enter_context(closing(RunLog(folder, state.step, settings, run.config, run.saver.attempts)))
        updater = Updater(state, settings, device)

        # Train.
        with batches(dataset, run.sampler(), settings, device) as feed, memory_advice(settings, updater):
            if run.lacks_last_evaluation:
                run.evaluate_now()
            while state.step < settings.steps:
                update = updater.step(feed)
                state.step += 1
                state.samples_seen += settings.batch_size
                run.report(update)
                if run.ends_epoch:
                    run.end_epoch()
                stopping = stop.anywhere()
                if stopping or run.ends or run.improved or due(settings.save_every, state.step):
                    run.save()
                if stopping:
                    logger.info("stopped after step %d by %s", state.step, stop.reason or "another process")
                    break

        # Finish.
        if run.log is not None:
            run.log.flush()
        run.saver.finish()
        digest = state.digest()
        logger.info("final weights sha256=%s", digest)
        finished = state.step >= settings.steps and not run.evaluator.broken_off
        if distributed.is_main():
            run.say_what_was_written()
        show = recipe.show_command(folder)
        return TrainResult(state.step, run.epoch, digest, settings, show, state.metrics, finished)


def check_sizes(settings: TrainSettings, length: int) -> None:
    """Raises UserError when batch, processes, micro-batches and data do not fit together."""
    world, batch = distributed.world_size(), settings.batch_size
    if settings.replicas > 1 and not settings.fsdp:
        raise UserError("--replicas has no effect without --fsdp: leave it out")
    if settings.steps < 1 or batch < 1 or settings.accumulation < 1:
        raise UserError("steps, --batch_size and --accumulation must be at least 1")
    if batch % (world * settings.accumulation):
        raise UserError(
            f"--batch_size {batch} cannot be divided among {world} processes x --accumulation {settings.accumulation}"
        )
    if length < batch:
        raise UserError(f"the data set has {length} samples, fewer than --batch_size {batch}: use a smaller batch")


def first_line(settings: TrainSettings, device: torch.device, dataset: Dataset) -> str:
    """What is about to happen, in one line."""
    data = provenance_of(dataset)
    samples = f"{len(dataset)} samples"
    if data is not None:
        part = f" ({data['split']})" if data["split"] else ""
        samples = f"{len(dataset)} clips of {data['source']}{part}"
    return (
        f"{distributed.described(device)}, {settings.precision}, batch {settings.batch_size}, {settings.steps} steps, "
        f"trained on {samples}, in {settings.run_dir}"
    )


def set_determinism(settings: TrainSettings) -> None:
    """Ask torch for deterministic kernels where it has them."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


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
        config: dict[str, Any], folder: Path, device: torch.device, stop: StopRequest,
    ) -> None:  # fmt: skip
        self.state = state
        self.settings = settings
        self.folder = folder
        self.length, self.blocks = len(dataset), blocks_of(dataset)
        self.config = plain({**config, "engine": asdict(settings)})
        self.provenance = provenance_of(dataset)
        fingerprint = dataset.fingerprint() if hasattr(dataset, "fingerprint") else None
        self.facts = run_facts(self.config, device, fingerprint)
        self.stop = stop
        self.evaluator = Evaluator(state, dataset, validation, settings, device, stop.signalled)
        self.log: RunLog | None = None  # the main process has one
        self.collapse = CollapseWatch()
        self.improved = False  # the last evaluation was the best so far and is not saved yet

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.length / self.settings.batch_size)

    @property
    def epoch(self) -> int:
        return self.state.step // self.steps_per_epoch

    @property
    def ends_epoch(self) -> bool:
        """Whether the step just taken was the last of an epoch."""
        return self.state.step % self.steps_per_epoch == 0

    @property
    def ends(self) -> bool:
        """Whether the step just taken was the last of the run."""
        return self.state.step == self.settings.steps

    def sampler(self) -> PositionSampler:
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
            blocks=self.blocks,
        )

    def start(self) -> None:
        """Resume, see that all processes start alike and that the disk has room, write config.yaml."""
        resume(self.state, self.folder, self.settings, self.facts)
        saver = ShardedSaver if self.state.sharded else Saver
        self.saver = saver(
            self.folder / "checkpoints", self.state.step, self.settings.keep, self.state.recipe.best_metric
        )
        if distributed.is_main():
            weights = sum(p.nbytes for network in self.state.networks.values() for p in network.parameters())
            size = weights * (5 if self.state.averaged.models else 4)  # weights twice, two moments, averages
            check_free_space(self.folder, size, self.settings.keep + 1)
            write_config(self.folder, self.config)
            record_training_data(self.folder, self.provenance)

    def report(self, update: Update) -> None:
        """Log, evaluate and show what is due after a step; one row of the log at most."""
        step, s = self.state.step, self.settings
        row: dict[str, Any] = {}
        if self.ends or due(s.log_every, step):
            row |= training_row(update, self.state)
            self.collapse.look(row)
        evaluates = self.ends or (due(s.evaluate_every, step) if s.evaluate_every else self.ends_epoch)
        if evaluates:
            row |= self.evaluate()
        draws = self.ends or (due(s.pictures_every, step) if s.pictures_every else evaluates)
        pictures = self.evaluator.pictures() if draws and not self.stop.signalled() else {}
        if self.log is None:
            return
        log, folder = self.log, self.folder / "samples" / f"step-{step:07d}"
        if pictures:
            self.saver.attempts.attempt("pictures", lambda: log.pictures(write_pictures(folder, pictures), step))
        if row:
            self.write_row(row)
        log.bar.update()

    def evaluate(self) -> dict[str, float]:
        """Validation metrics as a row of the log; notes whether they are the best so far."""
        metrics = self.evaluator.metrics()
        if metrics:
            self.improved = distributed.any_process(distributed.is_main() and self.saver.improves(metrics))
            self.state.metrics, self.state.metrics_step = metrics, self.state.step
        return {f"validation/{name}": value for name, value in metrics.items()}

    @property
    def lacks_last_evaluation(self) -> bool:
        """Whether the run took its last step before, but was stopped in the evaluation that follows."""
        return self.ends and bool(self.evaluator.validation) and self.state.metrics_step != self.state.step

    def evaluate_now(self) -> None:
        """Evaluate outside of the steps, and keep the result."""
        row = self.evaluate()
        if row:
            self.write_row(row)
            self.save()

    def write_row(self, row: dict[str, float]) -> None:
        """Log numbers of the present step, in the main process."""
        if self.log is not None:
            self.log.write({"step": self.state.step, "epoch": self.epoch, "samples": self.state.samples_seen, **row})

    def end_epoch(self) -> None:
        """Let the recipe write its own files."""
        recipe, gathered = self.state.recipe, None
        if self.state.sharded and recipe.writes_epoch(self.epoch):
            gathered = self.collect()  # needs all processes

        def checkpoint() -> dict[str, Any]:
            if gathered is None and self.state.sharded:
                raise RuntimeError(f"{type(recipe).__name__}.writes_epoch says that epoch {self.epoch} needs no state")
            return gathered or self.collect()

        if distributed.is_main():
            attempt = self.saver.attempts.attempt
            attempt("files of the epoch", lambda: recipe.on_epoch_end(self.epoch, checkpoint))

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self.improved = False
        if distributed.is_main() or self.state.sharded:
            self.saver.save(self.collect(whole=not self.state.sharded))

    def collect(self, whole: bool = True) -> dict[str, Any]:
        return {**self.state.collect(whole), **self.facts}

    def say_what_was_written(self) -> None:
        """The last line of the log."""
        newest = self.saver.kept[0]
        pictures = ", pictures: samples/" if (self.folder / "samples").is_dir() else ""  # none of a short run
        logger.info("wrote %s and %s; curves: metrics.jsonl%s", newest.path, newest.weights.name, pictures)


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


# The last is Ctrl-Break of Windows, which has no SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]


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

    def anywhere(self) -> bool:
        """Whether any process was asked to stop; all of them must ask, and get the same answer."""
        return distributed.any_process(self.requested)

    def signalled(self) -> bool:
        """Whether a signal came to any process. A time limit lets an evaluation end: or else a limit that is shorter
        than the last evaluation would never let a run finish, however often it is called.
        """
        return distributed.any_process(self._signalled)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signalled = True
        self.reason = signal.Signals(number).name
