"""Quantisers: latents replaced by codes, a regulariser with a loss of its own. One interface for all of them, and the
codebooks that are learned; losses/fsq.py has the grid that is not.

AverageQuantizer   codebook of running means of the latents (VQ-VAE, arXiv 1711.00937, appendix A.1)
ResidualQuantizer  several of them, each for what the ones before it left (SoundStream, arXiv 2107.03312)
SignQuantizer      signs of log2(K) channels, with an entropy loss (MAGVIT-v2, arXiv 2310.05737)

Axes: B batch, D latent channels, N latents, K codes, Q residual stages. What follows the channels, (h, w) or (T, h, w),
are positions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from training.distributed import all_sum, world_size
from training.randomness import derive_seed
from videodata.finite import finite

USAGE_DECAY = 0.97  # per batch; a code that nothing falls on is dead after about 75
PER_CODE = 8  # latents that the reservoir keeps for each code: k-means with fewer finds empty clusters
LARGEST_BLOCK = 2**24  # distances that are in memory at a time


class Quantized(NamedTuple):
    """Latents replaced by codes."""

    latents: Tensor  # (B, D, ...) float32; gradients pass straight through
    indices: Tensor  # (B, ...) int64, with a last axis Q where there are several residual stages
    loss: Tensor  # scalar to add to the training loss; 0 in eval mode


class Quantizer(nn.Module):
    """Latents (B, D, ...) -> Quantized. Computes in float32 whatever the autocast.

    In training mode a call also moves a learned codebook, unless `update` is False.
    """

    needs_start = False  # whether the codebook must begin near the latents, or it may never be used
    decay = 0.0  # of a codebook of running means
    seed = 0  # of draws of latents for the codebook; a recipe sets it, so that a run can be repeated
    step = 0  # optimiser steps so far, for losses whose weight changes; a recipe sets it
    num_quantizers = 1  # indices per position

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, latents: Tensor, update: bool = True) -> Quantized:
        if not self.training:
            finite(latents, "latents before the codebook")
        with torch.autocast(latents.device.type, enabled=False):
            codes, indices, loss = self.to_codes(latents.float(), update)
            if not self.training:  # the straight-through form differs from the codes in the last bits
                codes = self.lookup(indices)
        return Quantized(codes, indices.long(), loss if self.training else zero(latents))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, ...) -> (codes (B, D, ...) float32, indices (B, ...) int32); moves nothing."""
        quantized = self(latents, update=False)
        return quantized.latents, quantized.indices.int()

    def set_decay(self, decay: float) -> None:
        """Set the decay of the running means, where there are any."""

    @abstractmethod
    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, indices and the loss of float32 latents."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, ...) -> the latents that the decoder gets, float32 (B, D, ...)."""

    @property
    def codebook(self) -> Tensor:
        """All codes as the decoder gets them, float32 (K, D); of the first stage where there are several."""
        buffer = next(self.buffers(), None)
        every = torch.arange(self.size, device=None if buffer is None else buffer.device)
        return self.lookup(every[None])[0].T.contiguous()


class SignQuantizer(Quantizer):
    """`lfq`: a power of two of codes, the corners of a cube."""

    def __init__(self, dim: int, size: int, commitment_cost: float) -> None:
        from vector_quantize_pytorch import LFQ  # here, and below: FSQ and whoever quantises nothing start without it

        super().__init__(size)
        self.layer = LFQ(dim=dim, codebook_size=size, commitment_loss_weight=commitment_cost, channel_first=True)

    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.layer(latents))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.layer.indices_to_codes(indices)


class AverageQuantizer(Quantizer):
    """`ema`: running means of the latents, with revival of codes that nothing falls on."""

    needs_start = True

    def __init__(self, dim: int, size: int, commitment_cost: float, decay: float, dead_code_fraction: float) -> None:
        from vector_quantize_pytorch import VectorQuantize

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
        super().__init__(size)
        self.layer = layer
        self.decay = decay  # the one that `set_decay` may lower for a while
        self.revival = CodeRevival(size, dead_code_fraction)
        self.codebook_dim = dim
        self.set_codebook(F.normalize(torch.randn(size, dim), dim=1), torch.ones(size))  # the original's start

    def set_decay(self, decay: float) -> None:
        """Set the decay of the running means."""
        self.layer._codebook.decay = decay

    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        self.layer._codebook.all_reduce_fn = all_sum_
        flat = latents.flatten(2)[..., None]  # (B, D, N, 1): the layer knows maps alone
        codes, indices, loss = self.layer(flat, freeze_codebook=not update)
        codes, indices = codes.view_as(latents), indices.view_as(latents[:, 0])
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
        """Latents (B, D, ...) as they are compared with the codes: (B, ..., D)."""
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


class ResidualQuantizer(Quantizer):
    """`num_quantizers` codebooks of running means; each quantises what those before it left, and codes are the sum."""

    needs_start = True

    def __init__(
        self, num_quantizers: int, dim: int, size: int, commitment_cost: float, decay: float, dead_code_fraction: float
    ) -> None:
        super().__init__(size)
        self.num_quantizers, self.decay, self.codebook_dim = num_quantizers, decay, dim
        stages = [
            AverageQuantizer(dim, size, commitment_cost, decay, dead_code_fraction) for _ in range(num_quantizers)
        ]
        self.stages = nn.ModuleList(stages)

    def set_decay(self, decay: float) -> None:
        for stage in self.stages:
            stage.set_decay(decay)

    def to_codes(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor, Tensor]:
        rest, indices, losses = latents, [], []
        for number, stage in enumerate(self.stages):
            stage.seed = derive_seed("residual stage", number, self.seed)
            codes, of_stage, loss = stage.to_codes(rest, update)
            rest = rest - codes.detach()
            indices.append(of_stage)
            losses.append(loss)
        codes = latents - rest.detach()  # their sum; the gradient passes straight through once, not once a stage
        return codes, torch.stack(indices, dim=-1), torch.stack(losses).sum()

    def bypass(self, latents: Tensor) -> Quantized:
        """What the decoder would get if each latent had a code of its own; moves nothing."""
        unused = torch.zeros_like(latents[:, 0], dtype=torch.long)
        return Quantized(latents.float(), torch.stack([unused] * self.num_quantizers, dim=-1), zero(latents))

    def project(self, latents: Tensor) -> Tensor:
        """Latents (B, D, ...) as they are compared with the codes of the first stage: (B, ..., D)."""
        return latents.float().movedim(1, -1)

    @torch.no_grad()
    def start(self, vectors: Tensor, tokens: int) -> None:
        """Move each codebook to the k-means of what is left of vectors (N, D); `tokens`: latents per training batch."""
        vectors = vectors.float()
        for number, stage in enumerate(self.stages):
            stage.seed = derive_seed("residual stage", number, self.seed)
            stage.start(vectors, tokens)
            codes = stage.layer.codebook
            vectors = vectors - codes[nearest(vectors, codes)]

    def lookup(self, indices: Tensor) -> Tensor:
        parts = [stage.lookup(part) for stage, part in zip(self.stages, indices.unbind(-1), strict=True)]
        return torch.stack(parts).sum(dim=0)

    @property
    def codebook(self) -> Tensor:
        return self.stages[0].codebook


def codebooks_of(quantizer: nn.Module) -> list[Tensor] | None:
    """What the codes of each index of a position stand for, float32 (K, D) each; None for a grid of several stages."""
    if isinstance(quantizer, ResidualQuantizer):
        return [stage.codebook.float() for stage in quantizer.stages]
    return [quantizer.codebook.float()] if quantizer.num_quantizers == 1 else None


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
