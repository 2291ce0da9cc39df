"""What a model gives to the training loop: its networks, its optimisers, and how a batch becomes losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.randomness import SampleNoise

Networks = dict[str, nn.Module]


@dataclass
class Losses:
    """One optimiser's share of a step: the scalar to minimise and the scalars to log beside it."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Step:
    """Where the run stands while a batch is turned into losses, metrics or pictures."""

    index: int  # optimiser step, counted from 0
    total_steps: int
    noise: SampleNoise  # per-sample noise keyed by (seed, position); use it for latents, times and start indices
    device: torch.device
    training: bool = True


class Recipe(ABC):
    """A model's training recipe. The loop owns everything else (devices, precision, checkpoints, logs).

    `networks` are trained and stored: the modules themselves, for looking at a weight. Compute with the argument
    `networks` of each method and nothing else: in `losses` the loop may have wrapped them for several processes, in
    `evaluate` and `pictures` they have the averaged weights where there are any, and are in eval mode. A frozen network
    (a perceptual loss, an autoencoder under a predictor) is an ordinary attribute listed in `frozen`: it is moved to
    the device, kept in eval mode and left out of checkpoints.
    """

    name: ClassVar[str]  # stored in each checkpoint; a checkpoint of another recipe is refused
    best_metric: ClassVar[tuple[str, str] | None] = None  # ("psnr", "max"): the checkpoint kept as best
    ema_networks: ClassVar[tuple[str, ...]] = ()  # networks that get averaged weights when EMA is on
    find_unused_parameters: ClassVar[bool] = False  # for networks that skip parameters in some steps
    shard_types: ClassVar[tuple[type, ...]] = ()  # module types that --fsdp shards as one unit each, such as a block
    forward_methods: ClassVar[tuple[str, ...]] = ()  # methods beside forward that compute with weights (--fsdp)
    # Own configuration keys that a resumed run may change: their last parts, or whole, as "a.b".
    free_keys: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, networks: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.networks = networks
        self.optimizers = optimizers  # in the order in which they step
        self.frozen: list[nn.Module] = []
        self.notes: list[str] = []  # said after the first line of the training

    @abstractmethod
    def losses(self, batch: Any, step: Step, networks: Networks) -> Iterator[Losses | None]:
        """Yield the losses of this batch, one per optimiser and in the order of `optimizers`.

        Write it as a generator function. The loop takes the first item while only the first optimiser's parameters
        require gradients, runs its backward pass, resumes the function with only the second's, and so on; all
        optimisers step after the last yield, and only if every loss and gradient is finite. Yield None to leave
        an optimiser untouched in this step.
        """

    def evaluate(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Per-sample validation metrics, name -> (B,), averaged over the validation set and over processes; what is
        to be summed instead, such as the counts of codes, name -> (B, N), goes to `summarize`.

        It keeps nothing: processes that have too few batches repeat others, whose values do not count.
        """
        return {}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Validation metrics that are no mean over samples, from the sums (N,) of what `evaluate` gave as (B, N)."""
        return {}

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Pictures for the log, name -> frames (N, 3, H, W) or clips (N, 3, T, H, W) in [-1, 1]."""
        return {}

    def show_command(self, run_dir: Path) -> str | None:
        """The command that shows what the run in this folder has learnt; `TrainResult.told` ends with it."""
        return None

    def on_epoch_end(self, epoch: int, checkpoint: Callable[[], dict[str, Any]]) -> None:  # noqa: B027
        """Called on the main process after epoch 1, 2, ...; `checkpoint()` makes the complete training state."""

    def writes_epoch(self, epoch: int) -> bool:
        """Whether `on_epoch_end` needs the state of this epoch: only then is one that is sharded gathered for it."""
        return type(self).on_epoch_end is not Recipe.on_epoch_end
