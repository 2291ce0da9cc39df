"""The transformer block of the video VAE: attention over the tokens of one map, steered by context maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_vae.initial import RESIDUAL_GAIN, orthogonal_, orthogonal_linear
from videodata.errors import UserError

HIDDEN = 2  # width of the hidden layer, in widths of the block


class ContextBlock(nn.Module):
    """Pre-norm transformer block on a map (B, h, w, dim) with context maps (B, h, w, *) of the same grid.

    The contexts, brought to one map c, enter twice: added to the token, and as a gate 1 + W c on queries, keys and
    values. The additive path is what lets local detail through; the gate alone would average it over all tokens. A
    depthwise convolution tells each token of its neighbours. Queries and keys are normalised per head (Henry et al.
    2020, arXiv 2010.04245). The first `strong` contexts count fully from the start, the others are learnt.
    """

    def __init__(
        self, dim: int, heads: int, context_dims: Sequence[int] = (), dropout: float = 0.0, strong: int = 0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"{heads} attention heads do not divide the width {dim}")
        self.heads = heads
        self.context = nn.Linear(sum(context_dims), dim) if context_dims else None
        self.gate = nn.Linear(dim, 3 * dim) if context_dims else None
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_norm = nn.LayerNorm(dim // heads, bias=False)
        self.key_norm = nn.LayerNorm(dim // heads, bias=False)  # a bias would drop out in the softmax
        self.attention_out = orthogonal_linear(dim, dim, RESIDUAL_GAIN)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            orthogonal_linear(dim, HIDDEN * dim),
            nn.GELU(),
            orthogonal_linear(HIDDEN * dim, dim, RESIDUAL_GAIN),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.local.weight, std=RESIDUAL_GAIN / 3)
        if self.context is not None:
            for index, part in enumerate(self.context.weight.split(list(context_dims), dim=1)):
                orthogonal_(part, 1.0 if index < strong else RESIDUAL_GAIN)
            nn.init.zeros_(self.context.bias)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, contexts: Sequence[Tensor] = ()) -> Tensor:
        """Map x (B, h, w, dim) -> (B, h, w, dim)."""
        gate = None
        if self.context is not None:
            shift = self.context(torch.cat(contexts, dim=-1))
            x, gate = x + shift, self.gate(shift)
        x = x + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.dropout(self.attend(x, gate))
        return x + self.mlp(x)

    def attend(self, x: Tensor, gate: Tensor | None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x))
        if gate is not None:
            qkv = qkv * (1 + gate)
        qkv = qkv.flatten(1, 2).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, dim / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, dim / heads)
        attended = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        return self.attention_out(attended.transpose(1, 2).reshape(x.shape))
