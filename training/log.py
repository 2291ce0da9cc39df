"""What a run reports: metrics.jsonl (the record), TensorBoard, wandb, lines with throughput and ETA, a warning when a
codebook collapses.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.settings import TrainSettings
from videodata.errors import UserError
from videodata.files import write_file

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class RunLog:
    """The log of the main process; the others have none."""

    def __init__(self, folder: Path, first_step: int, settings: TrainSettings, config: Row) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.settings = settings
        self.wandb = start_wandb(folder, config) if settings.wandb else None
        keep_rows(folder / "metrics.jsonl", first_step)
        self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8", newline="\n")
        self.board = SummaryWriter(str(folder / "log"), purge_step=first_step + 1)
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
        self.file.write(json.dumps(plain) + "\n")
        self.file.flush()
        scalars = {name: value for name, value in row.items() if name not in ("step", "epoch", "samples")}
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
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
            self.board.add_image(name, strip, step, dataformats="HWC")
            if self.wandb:
                import wandb

                self.wandb.log({name: wandb.Image(strip)}, step=step)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        self.board.close()
        if self.wandb:
            self.wandb.finish()


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, and a row that was cut off: the resumed run writes them again."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    write_file(path, "".join(kept))


def start_wandb(folder: Path, config: Row) -> Any:
    """A wandb run that a resumed run continues. Raises UserError without the package."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the wandb package: pip install wandb, or leave the flag out") from error
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
