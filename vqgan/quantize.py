"""The quantiser: three kinds of codebook behind one interface, built on vector-quantize-pytorch.

ema  codebook of running means of the latents (VQ-VAE, arXiv 1711.00937, appendix A.1)
fsq  a fixed grid, no codebook to collapse (arXiv 2309.15505)
lfq  signs of log2(K) channels, with an entropy loss (MAGVIT-v2, arXiv 2310.05737)

Axes: B batch, D latent channels, h w positions, N = B*h*w latents, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

from training.distributed import all_sum, world_size
from videodata.finite import finite
from vqgan.config import fsq_levels_for

USAGE_DECAY = 0.97  # per batch; a code that nothing falls on is dead after about 75
PER_CODE = 8  # latents that the reservoir keeps for each code: k-means with fewer finds empty clusters
LARGEST_BLOCK = 2**24  # distances that are in memory at a time


class Quantized(NamedTuple):
    """Latents replaced by codes."""

    latents: Tensor  # (B, D, h, w) float32; gradients pass straight through
    indices: Tensor  # (B, h, w) int64
    loss: Tensor  # scalar to add to the training loss; 0 in eval mode


class Quantizer(nn.Module):
    """Latents (B, D, h, w) -> Quantized. Computes in float32 whatever the autocast.

    In training mode a call also moves the codebook (`ema`), unless `update` is False.
    """

    needs_start = False  # whether the codebook must begin near the latents, or it may never be used
    decay = 0.0  # of a codebook of running means
    seed = 0  # of draws of latents for the codebook; a recipe sets it, so that a run can be repeated

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        self.layer = layer
        self.size = size

    def forward(self, latents: Tensor, update: bool = True) -> Quantized:
        if not self.training:
            finite(latents, "latents before the codebook")
        with torch.autocast(latents.device.type, enabled=False):
            codes, indices, *losses = self.quantize(latents.float(), update)
            if not self.training:  # the straight-through form differs from the codes in the last bits
                codes = self.lookup(indices)
        loss = losses[0] if losses and self.training else zero(latents)
        return Quantized(codes, indices.long(), loss)

    def set_decay(self, decay: float) -> None:
        """Set the decay of the running means, where there are any."""

    def quantize(self, latents: Tensor, update: bool) -> tuple[Tensor, ...]:
        """The layer's own result: codes, indices and, for some layers, a loss."""
        return self.layer(latents)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> the latents that the decoder gets, float32 (B, D, h, w)."""
        return self.layer.indices_to_codes(indices)

    @property
    def codebook(self) -> Tensor:
        """All codes as the decoder gets them, float32 (K, D)."""
        every = torch.arange(self.size, device=next(self.buffers()).device)
        return self.lookup(every[None, None])[0, :, 0].T.contiguous()


class AverageQuantizer(Quantizer):
    """`ema`: running means of the latents, with revival of codes that nothing falls on."""

    needs_start = True

    def __init__(self, dim: int, size: int, commitment_cost: float, decay: float, dead_code_fraction: float) -> None:
        layer = VectorQuantize(
            dim=dim,
            codebook_size=size,
            decay=decay,
            eps=1e-5,
            commitment_weight=commitment_cost,
            accept_image_fmap=True,
            rotation_trick=False,
            kmeans_init=False,
            threshold_ema_dead_code=0,  # CodeRevival does it: the library's counts fall too slowly at decay 0.99
        )
        super().__init__(layer, size)
        self.decay = decay  # the one that `set_decay` may lower for a while
        self.revival = CodeRevival(size, dead_code_fraction)
        self.codebook_dim = dim
        self.set_codebook(F.normalize(torch.randn(size, dim), dim=1), torch.ones(size))  # the original's start

    def set_decay(self, decay: float) -> None:
        """Set the decay of the running means."""
        self.layer._codebook.decay = decay

    def quantize(self, latents: Tensor, update: bool) -> tuple[Tensor, ...]:
        self.layer._codebook.all_reduce_fn = all_sum_
        codes, indices, loss = self.layer(latents, freeze_codebook=not update)
        if self.training and update:
            self.revive(latents, indices)
        return codes, indices, loss

    @torch.no_grad()
    def revive(self, latents: Tensor, indices: Tensor) -> None:
        """Move the codes that have had too few hits for a while to latents of the batch."""
        revived = self.revival(self.project(latents), indices, self.seed)
        self.seed += 1
        if revived is None:
            return
        book, few = self.layer._codebook, self.revival.fraction * revived.hits  # few, so that new hits move the code
        book.embed[0][revived.dead] = revived.vectors
        book.embed_avg[0][revived.dead] = revived.vectors * few
        book.cluster_size[0][revived.dead] = few

    def bypass(self, latents: Tensor) -> Quantized:
        """What the decoder would get if each latent had a code of its own; moves nothing."""
        return Quantized(latents.float(), torch.zeros_like(latents[:, 0], dtype=torch.long), zero(latents))

    def project(self, latents: Tensor) -> Tensor:
        """Latents (B, D, h, w) as they are compared with the codes: (B, h, w, D)."""
        return latents.float().movedim(1, -1)

    @torch.no_grad()
    def start(self, vectors: Tensor, tokens: int) -> None:
        """Move the codebook to the k-means of vectors (N, D); `tokens`: latents per training batch."""
        centres, counts = kmeans(vectors.float(), self.size, seed=self.seed)
        self.set_codebook(centres, counts * (tokens / len(vectors)))

    @torch.no_grad()
    def set_codebook(self, codes: Tensor, hits: Tensor) -> None:
        """Set the codes (K, D) and the running mean (K,) of the hits per batch that they stand for."""
        book = self.layer._codebook
        book.embed[0].copy_(codes)
        book.embed_avg[0].copy_(codes * hits[:, None])
        book.cluster_size[0].copy_(hits)
        self.revival.usage.fill_(1.0)

    def lookup(self, indices: Tensor) -> Tensor:
        return self.layer.codebook[indices].movedim(-1, 1)


def build_quantizer(
    kind: str,
    dim: int,
    size: int,
    commitment_cost: float = 0.25,
    decay: float = 0.99,
    dead_code_fraction: float = 0.1,
    fsq_levels: Sequence[int] | None = None,
) -> Quantizer:
    """The quantiser of that kind for latents with `dim` channels and `size` codes."""
    if kind == "ema":
        return AverageQuantizer(dim, size, commitment_cost, decay, dead_code_fraction)
    if kind == "fsq":
        return Quantizer(FSQ(levels=list(fsq_levels or fsq_levels_for(size)), dim=dim), size)
    return Quantizer(LFQ(dim=dim, codebook_size=size, commitment_loss_weight=commitment_cost), size)


def zero(like: Tensor) -> Tensor:
    """A float32 scalar 0 on the device of `like`."""
    return like.new_zeros((), dtype=torch.float32)


class Revived(NamedTuple):
    """Which codes begin anew, and where."""

    dead: Tensor  # (K,) bool
    vectors: Tensor  # (number of dead codes, D)
    hits: float  # per code and batch, if all codes were used alike


class CodeRevival(nn.Module):
    """Finds dead codes and draws latents of the batch for them (Jukebox, arXiv 2005.00341).

    `usage` is a running mean of each code's hits, 1 if all were used alike; a code is dead when it falls below
    `fraction`. All processes count and draw over the whole batch, so that they agree.
    """

    def __init__(self, codes: int, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.register_buffer("usage", torch.ones(codes))

    @torch.no_grad()
    def forward(self, vectors: Tensor, indices: Tensor, seed: int) -> Revived | None:
        """Count the codes `indices` of a batch's latents `vectors` (..., D); gives what is to change, if anything is.

        A code that begins anew has its usage back at 1 and so the time to be found.
        """
        if self.fraction <= 0:
            return None
        hits = all_sum(torch.bincount(indices.reshape(-1), minlength=len(self.usage)).float())
        per_code = hits.mean()
        self.usage.lerp_(hits / per_code, 1 - USAGE_DECAY)
        dead = self.usage < self.fraction
        count = int(dead.sum())
        if not count:
            return None
        self.usage[dead] = 1.0
        return Revived(dead, draw(vectors.flatten(0, -2), count, seed), float(per_code))


def draw(vectors: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the vectors (N, D) of all processes; some repeatedly when there are fewer."""
    pool = gather(vectors.float().contiguous())
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return pool[order.repeat(-(-count // len(pool)))[:count].to(pool.device)]


class LatentReservoir(nn.Module):
    """A ring of the newest latents of all processes; part of the checkpoint, so that a resumed run starts alike."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(PER_CODE * codes, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # latents seen so far
        self.register_buffer("used", torch.zeros((), dtype=torch.bool))  # the codebook has started

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> None:
        """Take in latents (..., dim)."""
        new = gather(vectors.flatten(0, -2).float().contiguous())[-len(self.vectors) :]
        places = (self.count + torch.arange(len(new), device=new.device)) % len(self.vectors)
        self.vectors[places] = new
        self.count += len(new)

    def newest(self) -> Tensor:
        """What is kept, (N, dim)."""
        return self.vectors[: int(self.count.clamp(max=len(self.vectors)))]


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


def gather(vectors: Tensor) -> Tensor:
    """The vectors (N, D) of all processes, in the order of the processes; each has equally many."""
    if world_size() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(world_size())]
    dist.all_gather(parts, vectors)
    return torch.cat(parts)


def all_sum_(values: Tensor) -> Tensor:
    """Add up over the processes, in place, as vector-quantize-pytorch wants it; gives its argument."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
