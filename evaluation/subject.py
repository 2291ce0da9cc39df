"""What an evaluation needs of a model. Each model's folder has its own in `evaluate.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evaluation.report import Score


@dataclass
class Batch:
    """Clips (B, 3, T, H, W) in [-1, 1], their numbers in the data set, and which sample of them is asked for."""

    clips: Tensor
    items: list[int]
    seed: int
    sample: int = 0


class Subject(ABC):
    """A trained model that makes a clip of each clip it is shown, with frozen weights.

    `paired`: what it makes is to equal what it is shown; otherwise only the sets can be compared. `context`: frames at
    the start that are given to it, and not scored. `random`: other seeds give other clips.
    """

    paired = True
    context = 0
    random = False
    own_metrics: tuple[str, ...] = ()  # beside those that only look at clips
    window = 0  # frames from one window border to the next; 0: no windows

    @abstractmethod
    def make(self, batch: Batch) -> Tensor:
        """Clips like batch.clips, on the CPU; row b depends on its number, the seed and the number of the sample alone.

        Numbers for `own_scores` are collected where batch.sample is 0.
        """

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        """What costs nothing, by name: clips like those that are shown."""
        return {}

    def own_scores(self) -> dict[str, list[Score]]:
        """The model's own metrics by their names, over the clips of all processes since the last call."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What a result should say about the model and about how it was used."""
        return {}
