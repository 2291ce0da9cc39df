"""Predicts the codes of a position one codebook after the other, each given the ones before.

Axes: C codebooks, V codes per codebook, D width, E embedding width; P any number of positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lvt.model_config import TransformerConfig


class ChannelHead(nn.Module):
    """logits_k = P_k(relu(U_k [y, onehot(code_0), ..., onehot(code_k-1)])), y the normalised features.

    The products with one-hot vectors are rows picked from the transposed weight. SHARE_P uses one P for all
    codebooks; SHARE_EMBEDDINGS compares P(...) with the code embeddings of the decoder.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.nc, self.nv, self.width = config.nc, config.nv, config.d
        self.share_embeddings = config.share_embeddings
        self.layer_norm = nn.LayerNorm(config.d)
        self.U = nn.ModuleList(nn.Linear(config.d + k * config.nv, config.d) for k in range(config.nc))
        if config.share_embeddings:
            self.P = nn.Linear(config.d, config.de)
        elif config.share_p:
            self.P = nn.Linear(config.d, config.nv)
        else:
            self.P = nn.ModuleList(nn.Linear(config.d, config.nv) for _ in range(config.nc))

    def forward(self, features: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> list[Tensor]:
        """Features (..., D), codes int64 (..., C), the decoder's code embeddings -> C logits (..., V)."""
        y = self.layer_norm(features)
        return [self.logits(k, self.hidden(k, y, codes), embeddings[k].weight) for k in range(self.nc)]

    def hidden(self, k: int, y: Tensor, codes: Tensor) -> Tensor:
        """U_k of the normalised features (..., D) and the codes before codebook k."""
        layer = self.U[k]
        hidden = F.linear(y, layer.weight[:, : self.width], layer.bias)
        for earlier in range(k):
            start = self.width + earlier * self.nv
            hidden = hidden + F.embedding(codes[..., earlier], layer.weight[:, start : start + self.nv].t())
        return hidden

    def logits(self, k: int, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Logits (..., V) of codebook k from U_k's output; embedding (V, E) is the decoder's for this codebook."""
        layer = self.P[k] if isinstance(self.P, nn.ModuleList) else self.P
        scores = layer(F.relu(hidden))
        return F.linear(scores, embedding) if self.share_embeddings else scores
