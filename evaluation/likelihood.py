"""Bits per dimension of models that give their data a probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.report import Score
from training.distributed import all_sum


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
