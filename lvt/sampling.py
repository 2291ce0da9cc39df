"""How a code is drawn from logits, and the random numbers that decide it.

Gumbel-max (Gumbel 1954; Yellott 1977): the code with the highest log-probability plus noise of its own has the
probabilities that the logits say. The noise is a function of the sample's seed and of the place of the code, so a draw
is a function of the logits alone, and one that small changes of the logits rarely change. That is what lets a sampler
guess ahead (`lvt.predictive_sampler`).

Axes: B samples, V codes per codebook, N rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.randomness import derive_seed
from videodata.errors import UserError

SMALLEST = 2.0**-25  # half the step of uniform float32 numbers, in the place of 0, which has no logarithm


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

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Codes int64 (N,) from logits and Gumbel noise (N, V)."""
        return self.draw(logits, noise, torch.zeros(len(logits), 1, device=logits.device))[0]

    def draw(self, logits: Tensor, noise: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 (N,) from logits and Gumbel noise (N, V), and which of them are in doubt, bool (N,): logits that
        differ by up to `error`, float32 (N, 1), might give another code.
        """
        scores = logits.float()
        if self.greedy:
            noisy, sure = scores, None
        else:
            scores, error = scores / self.temperature, error / self.temperature
            noisy, sure = scores + noise, None
            if self.limited(scores.shape[-1]):
                outer, sure = self.borders(scores, error)
                noisy = noisy.masked_fill(scores < outer, float("-inf"))
        best, codes = noisy.topk(min(2, noisy.shape[-1]), -1)
        code, doubt = codes[:, 0], best[:, 0] - best[:, -1] < 2 * error[:, 0]
        if sure is not None:
            doubt = doubt | (scores.gather(-1, code[:, None]) < sure)[:, 0]
        return code, doubt

    def limited(self, count: int) -> bool:
        """Whether some of `count` codes may be left out."""
        return (self.top_k is not None and self.top_k < count) or (self.top_p is not None and self.top_p < 1)

    def borders(self, scores: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Of scores (N, V) that may be wrong by `error`: below the first (N, 1), a code is certainly left out, from the
        second on certainly not. They lie around the middle between the last code that is kept and the next one.
        """
        ordered = scores.sort(-1, descending=True).values
        width = ordered.shape[-1]
        most = min(self.top_k or width, width)
        shares = ordered[:, :most].softmax(-1)
        before = shares.cumsum(-1) - shares  # probability of all likelier codes
        found = []
        for side in (1, -1):
            top_p = 1.0 if self.top_p is None else self.top_p
            kept = (before < top_p + side * 2 * error).sum(-1, keepdim=True).clamp(min=1) if top_p < 1 else most
            kept = torch.as_tensor(kept, device=scores.device).expand(len(scores), 1)
            last, following = ordered.gather(-1, kept - 1), ordered.gather(-1, kept.clamp(max=width - 1))
            middle = torch.where(kept < width, (last + following) / 2, last)
            found.append(middle - side * 2 * error)  # both the border and the code may be wrong
        return found[0], found[1]


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise, float32, of float32 numbers in [0, 1)."""
    return uniform.clamp(min=SMALLEST).log_().neg_().log_().neg_()


def uniform_noise(seeds: Sequence[int], key: Sequence[int | str], shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1), float32 (B, *shape), of which row b is a function of seeds[b] and of the key alone."""
    generators = [torch.Generator().manual_seed(derive_seed(seed, *key)) for seed in seeds]
    return torch.stack([torch.rand(tuple(shape), generator=generator) for generator in generators])


def gumbel_noise(seeds: Sequence[int], key: Sequence[int | str], shape: Sequence[int]) -> Tensor:
    """Gumbel noise, float32 (B, *shape), likewise."""
    return gumbel(uniform_noise(seeds, key, shape))


def sample_seeds(batch: int, seeds: Sequence[int] | None, generator: torch.Generator | None) -> list[int]:
    """One seed per sample: those given, or drawn from the generator (torch's global one for None)."""
    if seeds is None:
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
    if len(seeds) != batch:
        raise UserError(f"{len(seeds)} seeds for {batch} samples: give one per sample")
    return [int(seed) for seed in seeds]
