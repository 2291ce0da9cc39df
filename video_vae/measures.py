"""What the latents of a clip cost."""

from __future__ import annotations

import math

from torch import Tensor


def kl_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The KL terms of the network, nats (B,), as bits: `kl_bits_1`, ... per level, and their sum `kl_bits`."""
    bits = {name.replace("kl_", "kl_bits_"): kl / math.log(2) for name, kl in terms.items()}
    return {**bits, "kl_bits": sum(bits.values())}
