"""The quantiser of a VQGAN, by its name in the configuration; losses/quantize.py and losses/fsq.py have them."""

from __future__ import annotations

from collections.abc import Sequence

from losses.fsq import ProjectedFSQ
from losses.quantize import AverageQuantizer, Quantizer, ResidualQuantizer, SignQuantizer
from vqgan.config import fsq_levels_for


def build_quantizer(
    kind: str,
    dim: int,
    size: int,
    commitment_cost: float = 0.25,
    decay: float = 0.99,
    dead_code_fraction: float = 0.1,
    fsq_levels: Sequence[int] | None = None,
    num_quantizers: int = 1,
) -> Quantizer:
    """The quantiser of that kind for latents with `dim` channels, with `size` codes in each of its stages."""
    if kind == "fsq":
        return ProjectedFSQ(dim, fsq_levels or fsq_levels_for(size), num_quantizers)
    if kind == "lfq":
        return SignQuantizer(dim, size, commitment_cost)
    options = dim, size, commitment_cost, decay, dead_code_fraction
    return ResidualQuantizer(num_quantizers, *options) if num_quantizers > 1 else AverageQuantizer(*options)
