"""k-means in pieces that fit in memory, the same in all processes for the same vectors."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_BLOCK = 2**24  # distances that are in memory at a time


@torch.no_grad()
def kmeans(vectors: Tensor, clusters: int, iterations: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centres (K, D) and members per centre (K,) of vectors (N, D), after Lloyd's iterations from random vectors.

    A centre without members stays where it is. With fewer vectors than centres, some centres start at the same vector.
    """
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    centres = vectors[order.repeat(-(-clusters // len(vectors)))[:clusters].to(vectors.device)]
    for _ in range(iterations):
        members = nearest(vectors, centres)
        counts = torch.bincount(members, minlength=clusters).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, members, vectors)
        means = sums / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, centres)
    return centres, torch.bincount(nearest(vectors, centres), minlength=clusters)


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the centre with the smallest Euclidean distance to each vector (N, D)."""
    block = max(1, LARGEST_BLOCK // len(centres))
    norms = centres.square().sum(dim=1)
    return torch.cat([(norms - 2 * part @ centres.T).argmin(dim=1) for part in vectors.split(block)])
