"""Codes that nothing falls on are given to latents that need one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

USAGE_DECAY = 0.97  # per batch; a code that nothing falls on is dead after about 75


class Revived(NamedTuple):
    """Which codes begin anew, and where."""

    dead: Tensor  # (K,) bool
    vectors: Tensor  # (number of dead codes, D)
    hits: float  # per code and batch, if all codes were used alike


class CodeRevival(nn.Module):
    """Finds dead codes and draws latents of the batch for them (Jukebox, arXiv 2005.00341).

    `usage` is a running mean of each code's hits, 1 if all were used alike; a code is dead when it falls below
    `fraction`. All processes count and draw over the whole batch, so that they agree.
    """

    def __init__(self, codes: int, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.register_buffer("usage", torch.ones(codes))

    @torch.no_grad()
    def forward(self, vectors: Tensor, indices: Tensor, seed: int) -> Revived | None:
        """Count the codes `indices` of a batch's latents `vectors` (..., D); gives what is to change, if anything is.

        A code that begins anew has its usage back at 1 and so the time to be found.
        """
        if self.fraction <= 0:
            return None
        hits = all_sum_(torch.bincount(indices.reshape(-1), minlength=len(self.usage)).float())
        per_code = hits.mean()
        self.usage.lerp_(hits / per_code, 1 - USAGE_DECAY)
        dead = self.usage < self.fraction
        count = int(dead.sum())
        if not count:
            return None
        self.usage[dead] = 1.0
        return Revived(dead, draw(vectors.flatten(0, -2), count, seed), float(per_code))


def draw(vectors: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the vectors (N, D) of all processes; some repeatedly when there are fewer."""
    pool = gather(vectors.float().contiguous())
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return pool[order.repeat(-(-count // len(pool)))[:count].to(pool.device)]


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(vectors: Tensor) -> Tensor:
    """The vectors (N, D) of all processes, in the order of the processes; each has equally many."""
    if world_size() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(world_size())]
    dist.all_gather(parts, vectors)
    return torch.cat(parts)


def all_sum_(values: Tensor) -> Tensor:
    """Add up over the processes, in place; gives its argument."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
