"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): each channel is rounded to a few levels, and the
codebook is the grid of all their combinations. There are no parameters and no state.

Axes: B clips, d channels (one per entry of `levels`), K = product of the levels, N tokens, Q residual stages. What
follows the channels, (T', h, w) or anything else, are positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from losses.quantize import Quantizer
from training.distributed import mean_of_processes
from videodata.errors import UserError
from videodata.finite import finite

MARGIN = 1e-3  # the bound reaches this share beyond the outermost levels, so that tanh need not saturate to get there
INVERSE_TEMPERATURE = 100.0  # of the probabilities of codes in the auxiliary loss
LARGEST_CHUNK = 2**22  # probabilities of codes that are in memory at a time
ENTROPIES = ("original", "bounded")


class FSQ(Quantizer):
    """Latents (B, d, ...) -> codes in [-1, 1] and their indices, in float32 whatever the autocast.

    With `num_quantizers` Q above 1, stage q quantises what the stages before it left, on a grid that divides their
    cells into as many parts as there are levels; codes are the sum, and indices get a last axis of Q codebooks. (The
    vector-quantize-pytorch package divides a cell into one part less and lets the outer ones stick out.)
    The other arguments are those of `auxiliary_loss`.
    """

    def __init__(
        self,
        levels: Sequence[int],
        entropy_loss_weight: float = 0.1,
        entropy_loss_annealing_steps: int = 2000,
        entropy_loss_annealing_factor: float = 3.0,
        commitment_loss_weight: float = 0.25,
        entropy: str = "original",
        num_quantizers: int = 1,
    ) -> None:
        super().__init__(math.prod(levels))
        if not levels or min(levels) < 2:
            raise UserError(f"levels {list(levels)}: FSQ needs at least one channel, and 2 levels in each")
        if math.prod(levels) > 2**31 - 1:
            raise UserError(f"levels {list(levels)}: more codes than 32 bits can number")
        if entropy not in ENTROPIES:
            raise UserError(f"unknown entropy {entropy!r}; choose one of {', '.join(ENTROPIES)}")
        if num_quantizers < 1:
            raise UserError(f"num_quantizers {num_quantizers}: must be at least 1")
        self.levels = tuple(int(level) for level in levels)
        self.dim, self.num_quantizers = len(self.levels), num_quantizers
        self.entropy_loss_weight = entropy_loss_weight
        self.entropy_loss_annealing_steps = entropy_loss_annealing_steps
        self.entropy_loss_annealing_factor = entropy_loss_annealing_factor
        self.commitment_loss_weight = commitment_loss_weight
        self.entropy = entropy

    def extra_repr(self) -> str:
        return f"levels={list(self.levels)}, num_quantizers={self.num_quantizers}"

    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.auxiliary_loss(latents, self.step) if self.training else latents.new_zeros(())
        return *self.quantize(latents), loss

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, d, ...) -> (codes (B, d, ...) float32, indices (B, ...) int32, with a last axis Q where Q > 1).

        The gradient passes through the rounding, and through the tanh that bounds the latents. Raises UserError for
        latents that are not numbers, outside training.
        """
        if z.shape[1] != self.dim:
            raise ValueError(f"latents of {z.shape[1]} channels do not fit FSQ with {self.dim}")
        if not self.training:
            finite(z, "latents before the quantiser")
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float().movedim(1, -1))  # (B, ..., d), in units of levels
            integers = self.integers(bounded.detach())  # (B, ..., Q, d)
            codes = self.codes(integers) + (bounded - bounded.detach()) / self.half(z)  # the second term is exactly 0
            indices = self.number(integers)
        return codes.movedim(-1, 1), indices if self.num_quantizers > 1 else indices[..., 0]

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, ...), with a last axis Q where Q > 1 -> codes (B, d, ...) float32.

        Raises UserError for indices outside of the codebook.
        """
        indices = indices if self.num_quantizers > 1 else indices[..., None]
        if indices.shape[-1] != self.num_quantizers:
            raise UserError(f"{indices.shape[-1]} indices per position; this quantiser has {self.num_quantizers}")
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.size):
            raise UserError(
                f"indices from {int(indices.min())} to {int(indices.max())} do not fit a codebook of {self.size}: "
                "they are from another model"
            )
        digits = (indices.long()[..., None] // self.basis(indices)) % self.per_channel(indices)
        return self.codes((digits - self.half(indices)).float()).movedim(-1, 1)

    def bound(self, z: Tensor) -> Tensor:
        """Latents (..., d) brought between the lowest and the highest level: -4 to 3 for 8 levels, -2 to 2 for 5."""
        half_width = [(level - 1) * (1 + MARGIN) / 2 for level in self.levels]
        offset = [(1 - level % 2) / 2 for level in self.levels]
        shift = [math.atanh(off / half) for off, half in zip(offset, half_width, strict=True)]  # 0 stays at a level
        half_width, offset, shift = (torch.tensor(value, device=z.device) for value in (half_width, offset, shift))
        return torch.tanh(z + shift) * half_width - offset

    def integers(self, bounded: Tensor) -> Tensor:
        """Bounded latents (..., d) -> the levels that they are rounded to (half to even): whole numbers (..., Q, d)."""
        stages, scale = [bounded.round()], 1.0
        levels, offset = self.per_channel(bounded), self.offset(bounded)
        low, high = -self.half(bounded), levels - 1 - self.half(bounded)
        rest = bounded - stages[0]  # in [-1/2, 1/2], up to the margin of the bound
        for _ in range(1, self.num_quantizers):
            scale = scale * levels  # cells of this stage per cell of the first
            stages.append((rest * scale - offset).round().clamp(low, high))
            rest = rest - (stages[-1] + offset) / scale
        return torch.stack(stages, dim=-2)

    def codes(self, integers: Tensor) -> Tensor:
        """Levels (..., Q, d) as whole numbers -> codes (..., d): with Q 1 and 8 levels, -1 to 0.75 by 1/4."""
        half, levels, offset = self.half(integers), self.per_channel(integers), self.offset(integers)
        total, scale = integers[..., 0, :], 1.0
        for stage in range(1, self.num_quantizers):
            scale = scale * levels
            total = total + (integers[..., stage, :] + offset) / scale
        return total / half

    def number(self, integers: Tensor) -> Tensor:
        """Levels (..., d) as whole numbers -> indices (...) int32; the first channel is the fastest digit."""
        digits = integers.long() + self.half(integers)
        return (digits * self.basis(integers)).sum(dim=-1).int()

    def per_channel(self, like: Tensor) -> Tensor:
        """Levels of each channel (d,), int64."""
        return torch.tensor(self.levels, device=like.device)

    def half(self, like: Tensor) -> Tensor:
        """Levels below 0 of each channel (d,), int64: also the level whose code is 1."""
        return self.per_channel(like) // 2

    def offset(self, like: Tensor) -> Tensor:
        """How far the middle of each channel's levels is from 0 (d,): 1/2 where their number is even."""
        return (1 - self.per_channel(like) % 2) / 2

    def basis(self, like: Tensor) -> Tensor:
        """Weight of each channel's digit in an index (d,), int64."""
        products = [math.prod(self.levels[:channel]) for channel in range(self.dim)]
        return torch.tensor(products, device=like.device)

    def entropy_weight(self, step: int) -> float:
        """Weight of the entropies at an optimiser step: it falls linearly to its final value."""
        start, steps = self.entropy_loss_annealing_factor * self.entropy_loss_weight, self.entropy_loss_annealing_steps
        if step >= steps:
            return self.entropy_loss_weight
        return start - step / steps * (start - self.entropy_loss_weight)

    def auxiliary_loss(self, z: Tensor, step: int, chunk: int | None = None) -> Tensor:
        """Latents (B, d, ...) before the bound -> a float32 scalar: w (Hs - Hc) + commitment, w from `entropy_weight`.

        Hs: mean entropy of a token's choice of a code, a softmax over all K codes; small when it is decided. Hc:
        entropy of the mean choice over all tokens of all processes; large when all codes are used alike. Commitment:
        mean squared distance of latents and codes. The entropy is that of the first residual stage.

        "original" is the published loss with its weaknesses: the softmax is over 200 <z, c>, which stands for the
        distance only among codes of one length, so that corners are preferred; z has no bound while codes have; and
        probabilities below 1e-5 count as 1e-5, more than 1/K of large codebooks. "bounded": the softmax is over
        -100 |z - c|^2 with the bounded z, and the floor is 1e-12.

        Memory is that of `chunk` tokens times K: chunks are computed again in the backward pass.
        """
        with torch.autocast(z.device.type, enabled=False):
            tokens = z.float().movedim(1, -1).flatten(0, -2)  # (N, d)
            codes = self.quantize(z)[0].detach().movedim(1, -1).flatten(0, -2)
            if self.entropy == "bounded":
                tokens = self.bound(tokens) / self.half(z)
            commitment = (tokens - codes).square().mean()
            weight = self.entropy_weight(step)
            if weight == 0:
                return self.commitment_loss_weight * commitment
            chunk = chunk or max(1, LARGEST_CHUNK // self.size)
            again = {"use_reentrant": False, "preserve_rng_state": False}
            parts = [checkpoint(self.choices, part, **again) for part in tokens.split(chunk)]
            mean_choice = mean_of_processes(sum(part[0] for part in parts) / len(tokens))  # (K,)
            of_sample = sum(part[1] for part in parts) / len(tokens)
            of_codebook = entropy(mean_choice, self.floor)
            return weight * (of_sample - of_codebook) + self.commitment_loss_weight * commitment

    @property
    def floor(self) -> float:
        """What smaller probabilities count as inside the logarithm."""
        return 1e-5 if self.entropy == "original" else 1e-12

    def choices(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n, d) -> the sum over them of the probabilities of all codes (K,), and of their entropies.

        The softmax of a sum over channels is a product of a softmax for each channel.
        """
        joint, apart = tokens.new_ones(len(tokens), 1), tokens.new_zeros(())
        for channel, levels in enumerate(self.levels):
            code = (torch.arange(levels, device=tokens.device) - levels // 2) / (levels // 2)
            if self.entropy == "original":
                logits = 2 * INVERSE_TEMPERATURE * tokens[:, channel, None] * code
            else:
                logits = -INVERSE_TEMPERATURE * (tokens[:, channel, None] - code).square()
            probability = logits.softmax(dim=1)
            apart = apart + entropy(probability, self.floor)
            joint = (joint[:, :, None] * probability[:, None, :]).flatten(1)
        # With the original's floor, the entropy of the product is not the sum of the entropies.
        return joint.sum(dim=0), entropy(joint, self.floor) if self.entropy == "original" else apart


def entropy(probability: Tensor, floor: float) -> Tensor:
    """Sum of -p log p over all entries, in nats; p counts as `floor` inside the logarithm where it is smaller."""
    return -(probability * probability.clamp(min=floor).log()).sum()


class ProjectedFSQ(Quantizer):
    """Latents with D channels on a grid with fewer, by a linear map before it and another one behind.

    Has the keys of the FSQ of the vector-quantize-pytorch package, and none where D is the number of levels.
    """

    def __init__(self, dim: int, levels: Sequence[int], num_quantizers: int = 1) -> None:
        super().__init__(math.prod(levels))
        self.grid = FSQ(levels, entropy_loss_weight=0, commitment_loss_weight=0, num_quantizers=num_quantizers)
        self.num_quantizers = num_quantizers
        maps = {"project_in": nn.Linear(dim, len(levels)), "project_out": nn.Linear(len(levels), dim)}
        self.layer = nn.ModuleDict(maps if dim != len(levels) else {})

    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.layer:
            latents = self.layer["project_in"](latents.movedim(1, -1)).movedim(-1, 1)
        codes, indices = self.grid.quantize(latents)
        return self.project(codes), indices, latents.new_zeros(())

    def lookup(self, indices: Tensor) -> Tensor:
        return self.project(self.grid.lookup(indices))

    def project(self, codes: Tensor) -> Tensor:
        """Codes (B, d, ...) of the grid -> the latents (B, D, ...) that the decoder gets."""
        return self.layer["project_out"](codes.movedim(1, -1)).movedim(-1, 1) if self.layer else codes
