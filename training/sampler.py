"""The order of the samples as a function of seed and position, so that there is no order to save or to restore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.randomness import derive_seed

Key = tuple[int, int]  # (index in the dataset, position in the run)


@dataclass
class PositionSampler:
    """Micro-batches of (index, position) for one process, from `first_step` to `last_step`.

    Position p = 0, 1, 2, ... counts the samples of the whole run, and its sample is perm[seed, p // n][p % n]. A step
    covers the next `batch_size` positions, whatever the number of processes and micro-batches; micro-batch a of
    process r is the (a * world + r)-th contiguous share of them.
    """

    length: int  # samples in the dataset
    batch_size: int  # samples per step, over all processes and micro-batches
    seed: int
    first_step: int
    last_step: int
    first_position: int  # position of the first sample of `first_step`
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.last_step):
            for micro in range(self.accumulation):
                yield self.keys(step, micro)

    def keys(self, step: int, micro: int) -> list[Key]:
        """The (index, position) pairs of one micro-batch of this process."""
        size = self.batch_size // (self.world * self.accumulation)
        start = self.first_position + (step - self.first_step) * self.batch_size
        start += (micro * self.world + self.rank) * size
        return [(self.index(position), position) for position in range(start, start + size)]

    def index(self, position: int) -> int:
        """Dataset index of the sample at a position."""
        epoch, offset = divmod(position, self.length)
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}  # the last two suffice
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._orders[epoch] = torch.randperm(self.length, generator=generator)
        return int(self._orders[epoch][offset])
