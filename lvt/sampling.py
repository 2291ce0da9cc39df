"""Drawing codes from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videodata.errors import UserError


@dataclass(frozen=True)
class SamplingRule:
    """How a code is chosen: greedy takes the most likely one; otherwise from the `top_k` most likely codes, and from
    the fewest codes that together have probability `top_p`, after dividing logits by `temperature`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, found {self.temperature}; greedy takes the likeliest code")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, found {self.top_p}")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes int64 (B,) from logits (B, V) and one number in [0, 1) each (B,)."""
        if self.greedy:
            return logits.argmax(-1)
        return inverse_cdf(self.probabilities(logits), uniform)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Distribution (B, V) that is drawn from."""
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            smallest = scores.topk(self.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < smallest, float("-inf"))
        shares = scores.softmax(-1)
        if self.top_p is None or self.top_p >= 1:
            return shares
        ordered, order = shares.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier codes
        kept = torch.where(before < self.top_p, ordered, 0.0)
        return torch.zeros_like(shares).scatter(-1, order, kept)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index at which the running sum of the weights (B, V) passes uniform (B,) times their total."""
    running = weights.cumsum(-1)
    index = torch.searchsorted(running, (uniform[:, None] * running[:, -1:]), right=True)[:, 0]
    # Rounding may push the threshold to the very end: stay at the last code that has any weight.
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(index, last)


class SampleStreams:
    """One stream of random numbers per sample, on the CPU, so that neither batch nor device changes a sample."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """The next numbers in [0, 1) of every sample: float32 (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])


def sample_seeds(batch: int, seeds: Sequence[int] | None, generator: torch.Generator | None) -> list[int]:
    """One seed per sample: those given, or drawn from the generator (torch's global one for None)."""
    if seeds is None:
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
    if len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for {batch} samples: give one per sample")
    return [int(seed) for seed in seeds]
