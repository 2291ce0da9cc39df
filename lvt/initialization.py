"""Fresh weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from videodata.errors import UserError


def initialize_convolutions(module: nn.Module, kind: str = "xavier_uniform") -> None:
    """Random weights and zero biases for every convolution and linear layer, as INIT_TYPE says.

    "normal" has the standard deviation (1.04 times all dimensions of the weight but the last)^(-1/2), the original's.
    Raises UserError for another kind.
    """
    if kind not in ("xavier_uniform", "normal"):
        raise UserError(f"MODEL.INIT_TYPE {kind!r}: use xavier_uniform or normal")
    for layer in module.modules():
        name, weight = type(layer).__name__, getattr(layer, "weight", None)
        if weight is None or not ("Conv" in name or "Linear" in name):
            continue
        if kind == "normal":
            nn.init.normal_(weight, std=1 / math.sqrt((1 + 0.2**2) * math.prod(weight.shape[:-1])))
        else:
            nn.init.xavier_uniform_(weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialize_heads(weight: torch.Tensor, kind: str) -> None:
    """Normal weights (heads, D, head width) of a query, key or value projection.

    "matrix": the Xavier standard deviation of the D -> heads * head width matrix that they are. "tensor": that of the
    original, which counts the fans on the three-dimensional tensor and so starts several times smaller.
    """
    heads, width, head_width = weight.shape
    fans = width + heads * head_width if kind == "matrix" else (width + heads) * head_width
    weight.normal_(std=math.sqrt(2 / fans))
