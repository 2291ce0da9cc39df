"""The training loop of all models, from top to bottom: processes, folder, state, data, steps, result."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from training import distributed
from training.explain import LESS_MEMORY, is_out_of_memory
from training.fault_injection import fault_point
from training.loader import batches
from training.recipe import Recipe
from training.run import Run
from training.run_folder import open_run_folder
from training.run_log import open_log
from training.settings import TrainSettings
from training.state import build_state
from training.stopping import StopRequest
from training.update import Updater
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
