"""What latent codes are used for and what they cost: usage and perplexity of a codebook, bits of models of its codes.

Usage is counted over all codes of a data set: one batch shows too few of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.report import Score
from training.distributed import all_sum


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
        total.counts = all_sum(self.counts)
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


class BitsPerToken:
    """Collects negative log-likelihoods. One token is one predicted latent code; given ones do not count."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)  # nats, tokens
        self.per_clip: list[float] = []

    def update(self, nats: Tensor, tokens: int) -> BitsPerToken:
        """Nats (B,) of clips that have `tokens` predicted tokens each; gives itself."""
        nats = nats.detach().double().cpu()
        self._sums += torch.tensor([nats.sum(), tokens * len(nats)], dtype=torch.float64)
        self.per_clip += (nats / (tokens * math.log(2))).tolist()
        return self

    def over_processes(self) -> BitsPerToken:
        """The bits of the clips of all processes, a new object; what is per clip stays that of this process."""
        total = BitsPerToken()
        total._sums, total.per_clip = all_sum(self._sums), list(self.per_clip)
        return total

    @property
    def value(self) -> float:
        """Nats / (ln 2 * tokens) over everything; nan before anything is counted."""
        nats, tokens = self._sums.tolist()
        return nats / (math.log(2) * tokens) if tokens else math.nan

    def score(self, tokens_per_frame: int, label: str = "") -> Score:
        """The bits of all clips together; `tokens_per_frame` says what a token stands for."""
        notes = {"tokens": int(self._sums[1]), "tokens_per_frame": tokens_per_frame}
        return Score("bits-per-token", self.per_clip, label, value=self.value, notes=notes)
