"""The quantiser of taming-transformers: an embedding that is learned by gradients.

Axes: N frames, D latent channels, h w positions, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.kmeans import kmeans, nearest
from vqgan.quantize import Quantized, zero
from vqgan.revival import Revived


class LDMQuantizer(nn.Module):
    """Latents (N, D, h, w) -> (their nearest codes (N, D, h, w), indices (N, h, w)), by squared Euclidean distance."""

    needs_start = True

    def __init__(self, size: int, dim: int, commitment_cost: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        self.size, self.codebook_dim, self.commitment_cost = size, dim, commitment_cost
        self.seed = 0  # of the k-means start

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        quantized = self.with_loss(latents)
        return quantized.latents, quantized.indices

    def with_loss(self, latents: Tensor) -> Quantized:
        """Codes, indices and loss. In training mode gradients pass straight through."""
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().movedim(1, -1)  # (N, h, w, D)
            indices = self.nearest_code(vectors)
            codes = self.embedding(indices)
            loss = self.loss(vectors, codes) if self.training else zero(latents)
            if self.training:
                codes = vectors + (codes - vectors).detach()
        return Quantized(codes.movedim(-1, 1), indices, loss)

    @torch.no_grad()
    def nearest_code(self, vectors: Tensor) -> Tensor:
        """Indices (N, h, w) of the codes nearest to vectors (N, h, w, D)."""
        return nearest(vectors.flatten(0, 2), self.embedding.weight).unflatten(0, vectors.shape[:3])

    def loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Codebook and commitment terms of VQ-VAE (arXiv 1711.00937, equation 3).

        The published trainings weight them the other way round: 0.25 for the codebook and 1 for the commitment.
        """
        return F.mse_loss(codes, vectors.detach()) + self.commitment_cost * F.mse_loss(vectors, codes.detach())

    def bypass(self, latents: Tensor) -> Quantized:
        """What the decoder would get if each latent had a code of its own."""
        loss = 0 * self.embedding.weight.sum()  # several processes wait for the gradients of all parameters
        return Quantized(latents.float(), torch.zeros_like(latents[:, 0], dtype=torch.long), loss)

    def project(self, latents: Tensor) -> Tensor:
        """Latents (N, D, h, w) as they are compared with the codes: (N, h, w, D)."""
        return latents.float().movedim(1, -1)

    @torch.no_grad()
    def start(self, vectors: Tensor, tokens: int) -> None:
        """Move the codebook to the k-means of vectors (N, D)."""
        self.embedding.weight.copy_(kmeans(vectors.float(), self.size, seed=self.seed)[0])

    @torch.no_grad()
    def replace(self, revived: Revived) -> None:
        """Let dead codes begin anew."""
        self.embedding.weight[revived.dead] = revived.vectors

    def set_decay(self, decay: float) -> None:
        """Nothing: this codebook is no running mean."""

    @property
    def codebook(self) -> Tensor:
        """All codes, float32 (K, D)."""
        return self.embedding.weight.detach()

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> codes (N, D, h, w)."""
        return self.embedding(indices).movedim(-1, 1)
