"""What latent codes are used for and what they cost: usage and perplexity of a codebook, bits of models of its codes.

Usage is counted over all codes of a data set: one batch shows too few of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.report import Score
from training.distributed import all_sum
from videodata.finite import finite


def code_usage(indices: Tensor, size: int) -> Tensor:
    """Of the codes that a batch of indices (any shape) could use, the share that occurs: a float32 scalar."""
    counts = torch.bincount(indices.reshape(-1).long(), minlength=size)
    return (counts > 0).sum() / min(size, indices.numel())


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each sample uses each code: codes (B, ...) -> (B, size), to be summed over a data set."""
    codes = codes.reshape(len(codes), -1).long()
    counts = torch.zeros(len(codes), size, device=codes.device)
    return counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype))


class CodebookUsage:
    """Counts code indices. `perplexity` is exp(entropy) of the counts: the number of codes in use if all were equal."""

    def __init__(self, size: int, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64) if counts is None else counts.long()

    def update(self, indices: Tensor) -> CodebookUsage:
        """Count indices of any shape, 0 <= index < size; gives itself."""
        counts = torch.bincount(indices.reshape(-1).long(), minlength=len(self.counts))
        if len(counts) > len(self.counts):
            raise ValueError(f"index {len(counts) - 1} of a codebook with {len(self.counts)} codes")
        self.counts += counts.cpu()
        return self

    def over_processes(self) -> CodebookUsage:
        """The usage over the data of all processes, a new object."""
        return CodebookUsage(len(self.counts), all_sum(self.counts))

    @property
    def used(self) -> int:
        """Number of codes that occur."""
        return int((self.counts > 0).sum())

    @property
    def used_share(self) -> float:
        """Of the codes that could occur, fewer than there are where few are counted, those that do."""
        return self.used / max(1, min(len(self.counts), int(self.counts.sum())))

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
        nats = finite(nats, "likelihoods of clips").detach().double().cpu()
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
