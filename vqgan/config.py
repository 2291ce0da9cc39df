"""What defines a VQGAN's weights and their shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from videodata.errors import UserError

QUANTIZERS = ("ema", "fsq", "lfq")
UPSAMPLINGS = ("transpose", "nearest")


@dataclass(frozen=True)
class VQGANConfig:
    """Encoder, quantiser and decoder. Raises UserError for values that do not fit together."""

    hidden_dims: tuple[int, ...] = (64, 128, 256, 512)  # channels from full resolution to the lowest
    latent_dim: int = 32
    num_embeddings: int = 512  # codes
    downsample_factor: int = 4  # pixels per latent position, along each side; a power of two
    quantizer: str = "ema"
    commitment_cost: float = 0.25
    decay: float = 0.99  # of the codebook's running means
    dead_code_fraction: float = 0.1  # share of the mean usage below which a code is revived; 0: never
    fsq_levels: tuple[int, ...] = ()  # quantizer fsq: levels per channel; empty: chosen for num_embeddings
    attention_heads: int = 4
    upsample: str = "transpose"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise UserError(f"unknown quantizer {self.quantizer!r}; choose one of {', '.join(QUANTIZERS)}")
        if self.upsample not in UPSAMPLINGS:
            raise UserError(f"unknown upsampling {self.upsample!r}; choose one of {', '.join(UPSAMPLINGS)}")
        if not self.hidden_dims or self.downsample_factor not in (allowed := self.possible_factors()):
            raise UserError(
                f"downsample_factor {self.downsample_factor} needs more than {len(self.hidden_dims)} hidden_dims; "
                f"choose one of {', '.join(map(str, allowed))}, or give more hidden_dims"
            )
        if self.quantizer == "fsq" and self.fsq_levels and math.prod(self.fsq_levels) != self.num_embeddings:
            raise UserError(
                f"fsq_levels {self.fsq_levels} make {math.prod(self.fsq_levels)} codes, not num_embeddings "
                f"{self.num_embeddings}; set num_embeddings to their product"
            )
        if self.quantizer == "fsq" and not self.fsq_levels:
            fsq_levels_for(self.num_embeddings)
        if self.quantizer == "lfq" and self.num_embeddings & (self.num_embeddings - 1):
            raise UserError(f"quantizer lfq needs a power of two of codes, found num_embeddings {self.num_embeddings}")

    def possible_factors(self) -> list[int]:
        """Downsampling factors that this many widths allow."""
        return [2**halvings for halvings in range(len(self.hidden_dims))]

    @property
    def halvings(self) -> int:
        """How often the resolution is halved; the first transitions between widths do it."""
        return self.downsample_factor.bit_length() - 1

    def attends(self, level: int) -> bool:
        """Whether the transition `level` from one width to the next one has attention: the last one, at the latents."""
        return level == len(self.hidden_dims) - 2


def fsq_levels_for(size: int) -> list[int]:
    """Levels of 8, 4 and 16 that multiply to a power of two, such as 8 8 8 for 512. Raises UserError for others."""
    bits = size.bit_length() - 1
    if size != 2**bits or bits < 4:
        raise UserError(f"quantizer fsq with {size} codes needs fsq_levels whose product is {size}")
    eights, rest = divmod(bits, 3)
    return {0: [8] * eights, 1: [8] * (eights - 1) + [4, 4], 2: [8] * eights + [4]}[rest]
