"""Position-keyed randomness: every random number is a function of the seed and of a position, never of history.

So a checkpoint holds no generator state, a resumed run draws what the uninterrupted one would have drawn, and one
process and two processes see the same samples with the same noise.
"""

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """Hash a key such as (seed, "augment", position) to an unsigned 63-bit seed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SampleNoise:
    """Noise for one batch in which row b depends only on (seed, position of sample b), whatever else is in the batch.

    Each call continues the streams of all samples, so two calls give different noise.
    """

    def __init__(self, seed: int, positions: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [
            torch.Generator(self.device).manual_seed(derive_seed(seed, "noise", int(position)))
            for position in positions
        ]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise, float32 (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform noise in [0, 1), float32 (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=g, device=self.device) for g in self._generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), int64 (B, *shape)."""
        return torch.stack([torch.randint(high, shape, generator=g, device=self.device) for g in self._generators])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a recipe's library may draw from it
    torch.manual_seed(seed)
