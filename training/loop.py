"""The training loop of all models, from top to bottom: processes, folder, state, data, steps, result."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from training import distributed
from training.evaluation import Evaluator
from training.explain import LESS_MEMORY, is_out_of_memory
from training.fault_injection import fault_point
from training.loader import batches
from training.pictures import write_pictures
from training.recipe import Recipe
from training.resume import resume, run_facts
from training.run_folder import check_free_space, open_run_folder, write_config
from training.run_log import RunLog, open_log
from training.sampler import PositionSampler
from training.saving import Saver
from training.settings import TrainSettings
from training.state import TrainState, build_state
from training.stopping import StopRequest
from training.update import Update, Updater
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
        # Join the processes and take the run folder; a signal from here on means save and leave.
        device = stack.enter_context(distributed.processes(settings.device, settings.process_timeout))
        check_sizes(settings, dataset)
        set_determinism(settings)
        stop = stack.enter_context(StopRequest(settings.max_minutes))
        folder = stack.enter_context(take_folder(Path(settings.run_dir)))

        # Build the state, or take it over from the newest checkpoint.
        state = build_state(recipe, settings, device)
        config = complete_config(config, settings)
        fingerprint = dataset.fingerprint() if hasattr(dataset, "fingerprint") else None
        facts = run_facts(config, device, fingerprint)
        run = Run(state, settings, facts, folder)
        stack.callback(recipe.networks.update, state.networks)  # the caller gets its own networks back
        run.start()

        # Train.
        log = stack.enter_context(open_log(folder, state.step, settings, config))
        recipe.networks.update(state.wrapped)
        updater = Updater(state, settings, device)
        evaluator = Evaluator(state, dataset, validation, settings, device)
        keys = sampler(dataset, settings, state)
        steps_per_epoch = math.ceil(len(dataset) / settings.batch_size)
        with batches(dataset, keys, settings, device) as feed, memory_advice(settings, updater):
            while state.step < settings.steps:
                update = updater.step(feed)
                state.step += 1
                state.samples_seen += settings.batch_size
                fault_point("in_step", state.step)
                last = state.step == settings.steps
                ends_epoch = state.step % steps_per_epoch == 0
                epoch = state.step // steps_per_epoch

                row = {}
                if due(settings.log_every, state.step) or last:
                    row |= training_row(update, state)
                if last or (due(settings.evaluate_every, state.step) if settings.evaluate_every else ends_epoch):
                    row |= run.evaluate(evaluator)
                    run.show_pictures(evaluator, log, force=not settings.pictures_every or last)
                elif due(settings.pictures_every, state.step):
                    run.show_pictures(evaluator, log, force=True)
                if row:
                    log.write({"step": state.step, "epoch": epoch, "samples": state.samples_seen, **row})
                log.advance()

                if ends_epoch:
                    run.end_epoch(epoch)
                stopping = distributed.any_process(stop.requested)
                if stopping or last or run.improved or due(settings.save_every, state.step):
                    run.save()
                if stopping:
                    logger.info("stopped after step %d by %s", state.step, stop.reason or "another process")
                    break

        # Finish.
        run.saver.finish()
        digest = state.digest()
        logger.info("final weights sha256=%s", digest)
        finished = state.step >= settings.steps
        return TrainResult(state.step, state.step // steps_per_epoch, digest, state.metrics, finished)


class Run:
    """The moments of a run between its steps: start, evaluation, pictures, end of an epoch, saving."""

    def __init__(self, state: TrainState, settings: TrainSettings, facts: dict[str, Any], folder: Path) -> None:
        self.state = state
        self.settings = settings
        self.facts = facts
        self.folder = folder
        self.improved = False

    def start(self) -> None:
        """Resume, see that all processes start alike and that the disk has room, write config.yaml."""
        resume(self.state, self.folder, self.settings, self.facts)
        if distributed.any_process(self.state.step != int(distributed.all_mean(torch.tensor(float(self.state.step))))):
            raise UserError(f"{self.folder}: the processes see different checkpoints; use a folder that all share")
        self.saver = Saver(
            self.folder / "checkpoints", self.state.step, self.settings.keep, self.state.recipe.best_metric
        )
        if distributed.is_main():
            check_free_space(self.folder, checkpoint_bytes(self.state), self.settings.keep + 1)
            write_config(self.folder, self.facts["config"])

    def evaluate(self, evaluator: Evaluator) -> dict[str, float]:
        """Validation metrics as a row of the log; notes whether they are the best so far."""
        metrics = evaluator.metrics()
        if metrics:
            self.improved = distributed.any_process(distributed.is_main() and self.saver.improves(metrics))
            self.state.metrics, self.state.metrics_step = metrics, self.state.step
        return {f"validation/{name}": value for name, value in metrics.items()}

    def show_pictures(self, evaluator: Evaluator, log: RunLog, force: bool) -> None:
        """Write the recipe's pictures to samples/step-<step>/ and to the log."""
        if not (force or due(self.settings.pictures_every, self.state.step)):
            return
        pictures = evaluator.pictures()
        if pictures and distributed.is_main():
            target = self.folder / "samples" / f"step-{self.state.step:07d}"
            self.saver.attempt("pictures", lambda: log.pictures(write_pictures(target, pictures), self.state.step))

    def end_epoch(self, epoch: int) -> None:
        """Let the recipe write its own files."""
        sharded = self.collect() if self.state.sharded else None  # gathering needs all processes
        if distributed.is_main():
            hook = self.state.recipe.on_epoch_end
            self.saver.attempt("files of the epoch", lambda: hook(epoch, lambda: sharded or self.collect()))

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self.improved = False
        if distributed.is_main() or self.state.sharded:
            state = self.collect()
            if distributed.is_main():
                self.saver.save(state)

    def collect(self) -> dict[str, Any]:
        return {**self.state.collect(), **self.facts}


def check_sizes(settings: TrainSettings, dataset: Dataset) -> None:
    """Raises UserError when batch, processes, micro-batches and data do not fit together."""
    world, length, batch = distributed.world_size(), len(dataset), settings.batch_size
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


def sampler(dataset: Dataset, settings: TrainSettings, state: TrainState) -> PositionSampler:
    """The remaining samples of this process."""
    return PositionSampler(
        length=len(dataset),
        batch_size=settings.batch_size,
        seed=settings.seed,
        first_step=state.step,
        last_step=settings.steps,
        first_position=state.samples_seen,
        accumulation=settings.accumulation,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )


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
