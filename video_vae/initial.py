"""First weights: every path from pixels to latents and back starts as a near-isometry.

A product of independent random matrices passes a few directions and crushes the rest, so that a chain of layers learns
the few first; a product of orthogonal ones treats all alike (Saxe et al. 2014, arXiv 1312.6120).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RESIDUAL_GAIN = 0.2  # of layers that end a residual branch: blocks start close to the identity


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float = 1.0) -> None:
    """Fill a weight (out, in), or a part of one, with an orthogonal matrix; variance grows by gain squared."""
    fresh = torch.empty(weight.shape)
    nn.init.orthogonal_(fresh, gain * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)
    weight.copy_(fresh)


def orthogonal_linear(dim_in: int, dim_out: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer whose output has the variance of its input, times gain squared."""
    layer = nn.Linear(dim_in, dim_out, bias=bias)
    orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
