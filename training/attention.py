"""Attention of all models, by the kernel that is fastest for a pass: torch's fused one, or plain products of matrices.

On a CPU the fused kernel is slow where gradients follow: in bfloat16 its backward pass takes two to seven times as long
as the products' (torch 2.14, AVX-512 BF16), and of a bias it has no gradient at all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 512  # tokens; the products keep the scores of all pairs, and from about 2000 on they are no faster


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(A) + bias) v, for q, k, v of (..., N, A) and a bias (or None) that broadcasts to (..., N, N).

    dropout: of the weights; the caller says 0 outside of training.
    """
    if not by_products(query, bias):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    weights = (scores if bias is None else scores + bias).softmax(-1).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def by_products(query: Tensor, bias: Tensor | None = None) -> bool:
    """Whether attention with these queries (..., N, A) is faster by products of matrices."""
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if bias is not None and bias.requires_grad:
        return True
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return half == torch.bfloat16 and query.shape[-2] <= LONGEST


class TransformerLayer(nn.TransformerEncoderLayer):
    """torch's pre-norm layer for tokens (B, N, D), its keys and its numbers, with the attention of this module."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__(width, heads, hidden, dropout, activation=nn.GELU(), batch_first=True, norm_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        if not by_products(tokens):
            return super().forward(tokens)
        tokens = tokens + self.dropout1(self.attend(self.norm1(tokens)))
        hidden = self.dropout(self.activation(self.linear1(self.norm2(tokens))))
        return tokens + self.dropout2(self.linear2(hidden))

    def attend(self, tokens: Tensor) -> Tensor:
        """Self-attention of (B, N, D)."""
        layer = self.self_attn
        together = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)
        query, key, value = together.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = attention(query, key, value, dropout=layer.dropout if self.training else 0.0)
        return layer.out_proj(seen.transpose(1, 2).flatten(2))
