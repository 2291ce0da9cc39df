"""What a run reports: metrics.jsonl (the record), TensorBoard, wandb, lines with throughput and ETA, a warning when a
codebook collapses.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.settings import TrainSettings
from training.writing import Attempts, GrowingFile
from videodata.errors import UserError
from videodata.files import parse_json, write_file

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class RunLog:
    """The log of the main process; the others have none."""

    def __init__(self, folder: Path, first_step: int, settings: TrainSettings, config: Row, attempts: Attempts) -> None:
        self.settings, self.attempts = settings, attempts
        self.wandb = start_wandb(folder, config) if settings.wandb else None
        keep_rows(folder / "metrics.jsonl", first_step)
        self.rows = GrowingFile(folder / "metrics.jsonl")
        self.board = Board(folder / "log", first_step)
        self.bar = tqdm(
            total=settings.steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self.first_step, self.started = first_step, time.monotonic()

    def write(self, row: Row) -> None:
        """Record the numbers of one step; `row["step"]` grows from call to call."""
        step = row["step"]
        rate = (step - self.first_step) / max(1e-9, time.monotonic() - self.started)
        row = {**row, "samples_per_second": round(rate * self.settings.batch_size, 3)}
        # JSON has no word for a float that is not finite
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        written = self.attempts.attempt("metrics.jsonl", lambda: self.rows.add(json.dumps(plain) + "\n"), waits=True)
        scalars = {name: value for name, value in row.items() if name not in ("step", "epoch", "samples")}
        if written:  # else there is no room for these either
            self.board.scalars(scalars, step)
        if self.wandb:
            self.wandb.log(scalars, step=step)
        self.show(row, rate)

    def show(self, row: Row, rate: float) -> None:
        """One line for people: losses and metrics, speed and remaining time."""
        step, steps = row["step"], self.settings.steps
        shown = {k: v for k, v in row.items() if k.startswith(("loss/", "train/", "validation/"))}
        numbers = "  ".join(f"{name.split('/', 1)[1]} {value:.4g}" for name, value in shown.items())
        left = timedelta(seconds=round((steps - step) / max(rate, 1e-9)))
        speed = f"{row['samples_per_second']:.1f} samples/s  ETA {left}"
        self.bar.clear()
        logger.info("step %d/%d  epoch %d  %s  %s", step, steps, row["epoch"], numbers, speed)
        self.bar.refresh()

    def pictures(self, strips: dict[str, np.ndarray], step: int) -> None:
        """Show strips, uint8 (H, W, 3)."""
        for name, strip in strips.items():
            self.board.picture(name, strip, step)
            if self.wandb:
                import wandb

                self.wandb.log({name: wandb.Image(strip)}, step=step)

    def flush(self) -> None:
        """Write what the disk has refused so far, if anything."""
        self.attempts.attempt("metrics.jsonl", lambda: self.rows.add(""), waits=True)

    def close(self) -> None:
        self.bar.close()
        with suppress(OSError):  # said by `Attempts.finish` where the run has come to its end
            self.rows.close()
        self.board.close()
        if self.wandb:
            self.wandb.finish()


class Board:
    """TensorBoard's files: a copy of the numbers, so that a disk which refuses them costs no more than a gap.

    TensorBoard writes in a thread of its own, which ends at the first error; then a new file is begun.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder, self.purge_step = folder, first_step + 1
        self.writer: Any = None
        self.excepthook, threading.excepthook = threading.excepthook, self.hear
        self.call(lambda writer: None)

    def call(self, write: Callable[[Any], object]) -> None:
        """Let `write(SummaryWriter)` write, if the disk allows it."""
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes time to import

        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.folder), purge_step=self.purge_step)
                self.purge_step = None  # a later file hides nothing of this one
            write(self.writer)
        except OSError as error:
            logger.debug("%s: %s", self.folder, error)
            self.drop()

    def scalars(self, values: Row, step: int) -> None:
        def write(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self.call(write)

    def picture(self, name: str, strip: np.ndarray, step: int) -> None:
        self.call(lambda writer: writer.add_image(name, strip, step, dataformats="HWC"))

    def drop(self) -> None:
        """Close the file, whatever became of it."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def hear(self, failure: threading.ExceptHookArgs) -> None:
        """An exception in a thread: that of TensorBoard comes back at the next call, and needs no traceback."""
        if not isinstance(failure.exc_value, OSError) or "tensorboard" not in type(failure.thread).__module__:
            self.excepthook(failure)

    def close(self) -> None:
        self.drop()
        threading.excepthook = self.excepthook


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, and a row that was cut off: the resumed run writes them again."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            if parse_json(line)["step"] <= last_step:
                kept.append(line + "\n")
    write_file(path, "".join(kept))


def check_wandb() -> None:
    """Raises UserError without the package."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError("--wandb needs the wandb package: pip install wandb, or leave the flag out") from error


def start_wandb(folder: Path, config: Row) -> Any:
    """A wandb run that a resumed run continues."""
    import wandb

    name = Path(folder).resolve().name
    return wandb.init(dir=str(folder), id=name, name=name, resume="allow", config=config)


TERM = "train/code_usage"  # the share of its codes that a batch uses, for recipes with a codebook
LEAST = 0.01
PATIENCE = 100  # logs in a row


class CollapseWatch:
    """Warns once each time that `train/code_usage` stays below 1 % for 100 logs in a row."""

    def __init__(self) -> None:
        self.low = 0

    def look(self, row: Mapping[str, float]) -> None:
        """Take note of a row of the log."""
        if TERM not in row:
            return
        self.low = self.low + 1 if row[TERM] < LEAST else 0
        if self.low == PATIENCE:
            logger.warning(
                "WARN the codebook has collapsed: under %d %% of its codes were used in %d logs in a row; train with "
                "a quantiser that revives unused codes, a lower learning rate or a smaller codebook",
                round(100 * LEAST), PATIENCE,
            )  # fmt: skip
