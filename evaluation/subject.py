"""What an evaluation needs of a model. Each model's folder has its own subjects in `evaluate.py`.

Like the protocol, this module computes nothing and does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videodata.errors import UserError

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from evaluation.report import Score


@dataclass
class Batch:
    """Clips (B, 3, T, H, W) in [-1, 1], their numbers in the data set, and which sample of them is asked for.

    Of a data set whose items are no clips, such as windows of codes, `clips` is what the items are when put together.
    labels: the class to show of each clip, its own unless asked otherwise; None where the data names none.
    """

    clips: Tensor
    items: list[int]
    seed: int
    sample: int = 0
    labels: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class ClipSpec:
    """The clips that a model is made for, as `videodata.open_clips` takes them."""

    frames: int
    size: tuple[int, int]  # (height, width)
    stride: int = 1
    reading: dict[str, Any] = field(default_factory=dict)  # its further arguments


class Subject(ABC):
    """A trained model that makes a clip of each clip it is shown, with frozen weights: the only way to score a model.

    `paired`: what it makes is to equal what it is shown; otherwise only the sets can be compared. `context`: frames at
    the start that are given to it, and not scored. `random`: other seeds give other clips. `visible`: False for a model
    of codes that only has metrics of its own. No method needs to turn gradients off: that is done around them.
    """

    paired = True
    context = 0
    random = False
    visible = True
    classes: tuple[str, ...] = ()  # that it was trained with, and whose names are in batch.labels
    guidance = 1.0  # towards the class of each clip (`training.conditions.guided`); `evaluate` sets it
    asked: tuple[str, ...] | None = None  # metrics of the protocol, which `evaluate` sets; None: all
    window = 0  # frames from one window border to the next; 0: no windows
    metrics: tuple[str, ...] = ("psnr", "ssim")  # what is measured unless asked otherwise
    own_metrics: tuple[str, ...] = ()  # beside those that only look at clips
    clips: ClipSpec | None = None  # what `evaluate.py` shows it unless asked otherwise
    runs: tuple[Path | str, ...] = ()  # its parts: the run folder of each, or a file in it, where trained_on.json lies

    @property
    def task(self) -> str:
        """What the model does: prediction, reconstruction or generation."""
        if not self.paired:
            return "generation"
        return "prediction" if self.context else "reconstruction"

    @abstractmethod
    def make(self, batch: Batch) -> Tensor | None:
        """Clips like batch.clips, on the CPU; row b depends on its number, the seed and the number of the sample alone.

        Numbers for `own_scores` are collected where batch.sample is 0. None where the model is not `visible`.
        """

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        """What costs nothing, by name: clips like those that are shown.

        All reconstructions have "of the mean frame" (`evaluation.metrics.mean_frame`), predictions "last frame
        repeated".
        """
        return {}

    def compared(self, batch: Batch, made: Tensor) -> dict[str, Tensor]:
        """Every row of the table, by name: what was made under the empty name, and what it has to beat.

        To override where a baseline needs what was made, or the batch's numbers. It follows the last `make` of the
        batch, and `batch.clips` is the very tensor that each of these was given: what `make` computed of it, such as
        its codes, may be kept until here, so that no batch is encoded twice.
        """
        return {"": made, **self.baselines(batch.clips)}

    def parts(self, frames: int) -> dict[str, Sequence[int] | None]:
        """Frames that have rows of their own, of the `frames` after the given ones, by name. None: all of them."""
        return {"": None}

    def own_scores(self) -> dict[str, list[Score]]:
        """The model's own metrics by their names, over the clips of all processes since the last call."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What a result should say about the model and about how it was used."""
        return {}

    def made_for(self, frames: int, size: Sequence[int], stride: int = 1, **reading: Any) -> Subject:
        """Set `clips`; gives itself."""
        self.clips = ClipSpec(frames, tuple(size), stride, reading)
        return self


def own_size(args: argparse.Namespace, size: tuple[int, int]) -> tuple[int, int]:
    """The size of a model that makes no other; a protocol of another one names that among its departures.

    Raises UserError for --size of another one.
    """
    if args.size and tuple(args.size) != size and not args.protocol:
        raise UserError(f"--size {' '.join(map(str, args.size))}: this model makes {size[0]} {size[1]} alone")
    return size
