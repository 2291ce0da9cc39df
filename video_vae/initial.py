"""First weights: every path from pixels to latents and back starts as a near-isometry.

A product of independent random matrices passes a few directions and crushes the rest, so that a chain of layers learns
the few first; a product of orthogonal ones treats all alike (Saxe et al. 2014, arXiv 1312.6120).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RESIDUAL_GAIN = 0.2  # of layers that end a residual branch: blocks start close to the identity


@torch.no_grad()
def orthogonal_parts(weight: Tensor, outputs: Sequence[int], inputs: Sequence[int], gain: float = 1.0) -> None:
    """Fill a weight (sum(outputs), sum(inputs)) with an orthogonal matrix per pair of parts.

    Parts of the input add up, so each is scaled by 1 / sqrt(number of parts): the sum keeps the variance.
    """
    scale = gain / len(inputs) ** 0.5
    for rows in weight.split(list(outputs), dim=0):
        for part in rows.split(list(inputs), dim=1):
            fresh = torch.empty(part.shape)
            nn.init.orthogonal_(fresh, gain=scale * max(1.0, part.shape[0] / part.shape[1]) ** 0.5)
            part.copy_(fresh)


def orthogonal_linear(dim_in: int, dim_out: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer whose output has the variance of its input, times gain squared."""
    layer = nn.Linear(dim_in, dim_out, bias=bias)
    orthogonal_parts(layer.weight, [dim_out], [dim_in], gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
