"""How many codes of a codebook a data set uses. Counted over all its codes: one batch shows too few of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from evaluation.report import Score


def code_usage(indices: Tensor, size: int) -> Tensor:
    """Of the codes that a batch of indices (any shape) could use, the share that occurs: a float32 scalar."""
    counts = torch.bincount(indices.reshape(-1).long(), minlength=size)
    return (counts > 0).sum() / min(size, indices.numel())


class CodebookUsage:
    """Counts code indices. `perplexity` is exp(entropy) of the counts: the number of codes in use if all were equal."""

    def __init__(self, size: int) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64)

    def update(self, indices: Tensor) -> CodebookUsage:
        """Count indices of any shape, 0 <= index < size; gives itself."""
        counts = torch.bincount(indices.reshape(-1).long(), minlength=len(self.counts))
        if len(counts) > len(self.counts):
            raise ValueError(f"index {len(counts) - 1} of a codebook with {len(self.counts)} codes")
        self.counts += counts.cpu()
        return self

    def over_processes(self) -> CodebookUsage:
        """The usage over the data of all processes, a new object."""
        total = CodebookUsage(len(self.counts))
        total.counts += self.counts
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total.counts)
        return total

    @property
    def used(self) -> int:
        """Number of codes that occur."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy in nats; 0 before anything is counted."""
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        shares = shares[shares > 0]
        return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0

    def scores(self, label: str = "") -> list[Score]:
        """Share of the codes that occur, and perplexity, over everything counted."""
        notes = {"codes": len(self.counts), "codes_used": self.used, "tokens": int(self.counts.sum())}
        share = self.used / len(self.counts)
        return [
            Score("codebook-usage", [], label, value=share, notes=notes),
            Score("codebook-perplexity", [], label, value=self.perplexity, notes=notes),
        ]
