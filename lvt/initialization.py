"""Fresh weights."""

from __future__ import annotations

import math

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def initialize_convolutions(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every convolution and linear layer."""
    for layer in module.modules():
        if isinstance(layer, CONVOLUTIONS):
            nn.init.xavier_uniform_(layer.weight)
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
