"""Vector quantisation with one codebook, or several that share the channels, learned by moving averages.

Moving averages as in van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1); restarts of unused codes as in
Dhariwal et al. 2020 (arXiv 2005.00341, section 3.1).

Axes: N vectors, K codes, D channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.model_config import CodebookConfig
from training import distributed

DECAY = 0.99
EPSILON = 1e-5  # of the Laplace smoothing of the counts


class CodeVectors(nn.Module):
    """The vectors (K, D) of a codebook: a parameter, or a buffer when moving averages set them."""

    def __init__(self, size: int, dim: int, trained: bool) -> None:
        super().__init__()
        values = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if trained:
            self.weight = nn.Parameter(values)
        else:
            self.register_buffer("weight", values)


class Codebook(nn.Module):
    """K codes of D numbers. `quantize` finds the nearest, `look_up` gives their vectors, `update` learns them."""

    def __init__(self, size: int, dim: int, ema: bool, init_from_data: bool = True, restart_below: float = 0.0) -> None:
        super().__init__()
        self.ema, self.init_from_data, self.restart_below = ema, init_from_data, restart_below
        self.embedding = CodeVectors(size, dim, trained=not ema)
        if ema:
            self.register_buffer("running_size", torch.zeros(size))
            self.register_buffer("running_sum", self.embedding.weight.clone())  # memory of its own

    @torch.no_grad()
    def quantize(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code (squared Euclidean distance, the first one on a tie): (N, D) -> int64 (N,)."""
        codes = self.embedding.weight.float()
        with torch.autocast(vectors.device.type, enabled=False):
            products = vectors.float() @ codes.t()  # (N, K)
        return (codes.square().sum(1) - 2 * products).argmin(1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Vectors of the codes: int64 (...) -> (..., D)."""
        return F.embedding(indices, self.embedding.weight)

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move each code towards the mean of its vectors (N, D), over all processes of the run."""
        vectors = vectors.float()
        size, total = self.running_size, self.running_sum
        one_hot = F.one_hot(indices, len(size)).to(vectors.dtype)  # (N, K): a product is the same each time, unlike
        counts = distributed.all_sum(one_hot.sum(0))  # adding by index on a GPU
        sums = distributed.all_sum(one_hot.t() @ vectors)
        size.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        total.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        everything = size.sum()
        smoothed = (size + EPSILON) / (everything + len(size) * EPSILON) * everything
        self.embedding.weight.copy_(total / smoothed[:, None])
        if self.restart_below > 0:
            self.replace((size < self.restart_below) & (counts == 0), vectors)

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Begin a codebook that was never updated from vectors of a batch, each counted once."""
        if self.ema and self.init_from_data and not bool(self.running_size.any()):
            self.replace(torch.ones_like(self.running_size, dtype=torch.bool), vectors.float())

    def replace(self, chosen: Tensor, vectors: Tensor) -> None:
        """Set the codes of the mask (K,) to random vectors of the batch of all processes."""
        fresh = random_rows(vectors, len(chosen))  # (K, D)
        self.running_size.masked_fill_(chosen, 1.0)
        self.running_sum.copy_(torch.where(chosen[:, None], fresh, self.running_sum))
        self.embedding.weight.copy_(torch.where(chosen[:, None], fresh, self.embedding.weight))


class Quantizer(nn.Module):
    """`num` codebooks side by side, each for its share of the channels, in order.

    Codes are (N, h, w) for one codebook and (N, num, h, w) for several.
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.num = config.num
        options = (config.size, config.dim // config.num, config.ema, config.init_from_data, config.restart_below)
        self.ve = nn.ModuleList(Codebook(*options) for _ in range(config.num))

    def quantize(self, z: Tensor) -> Tensor:
        """Channels first vectors (N, D, h, w) -> codes."""
        codes = [book.quantize(part).view(shape_of(z)) for book, part in zip(self.ve, self.split(z), strict=True)]
        return codes[0] if self.num == 1 else torch.stack(codes, 1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes -> vectors (N, D, h, w)."""
        each = [codes] if self.num == 1 else codes.unbind(1)
        return torch.cat([book.look_up(c) for book, c in zip(self.ve, each, strict=True)], -1).permute(0, 3, 1, 2)

    def start_from(self, z: Tensor) -> None:
        """Begin codebooks that were never updated from the vectors (N, D, h, w)."""
        for book, part in zip(self.ve, self.split(z), strict=True):
            book.start_from(part)

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Learn from the vectors (N, D, h, w) and their codes."""
        each = [codes] if self.num == 1 else codes.unbind(1)
        for book, part, own in zip(self.ve, self.split(z), each, strict=True):
            book.update(part, own.reshape(-1))

    def usage(self, codes: Tensor) -> dict[str, Tensor]:
        """Mean over the codebooks: perplexity of these codes, and how many occur of those that could."""
        each = [codes] if self.num == 1 else list(codes.unbind(1))
        size = len(self.ve[0].embedding.weight)
        counts = torch.stack([torch.bincount(c.reshape(-1), minlength=size) for c in each]).double()
        share = counts / counts.sum(1, keepdim=True)
        entropy = -torch.xlogy(share, share).sum(1)
        used = (counts > 0).sum(1) / min(size, each[0].numel())
        return {"perplexity": entropy.exp().mean(), "code_usage": used.double().mean()}

    def split(self, z: Tensor) -> list[Tensor]:
        """The vectors (N h w, D / num) of each codebook."""
        return [part.reshape(-1, part.shape[-1]) for part in z.detach().permute(0, 2, 3, 1).chunk(self.num, -1)]


def shape_of(z: Tensor) -> tuple[int, int, int]:
    """(N, h, w) of vectors (N, D, h, w)."""
    return z.shape[0], z.shape[2], z.shape[3]


def random_rows(vectors: Tensor, count: int) -> Tensor:
    """`count` different rows of (N, D), or drawn with repetition where there are fewer.

    With several processes, N counts the rows of all of them in the order of the processes, and the main one's random
    numbers decide: the same rows as one process with all samples would draw.
    """
    own = len(vectors)
    order = torch.randperm(own * distributed.world_size(), device=vectors.device)
    order = order.repeat(-(-count // len(order)))[:count]
    if distributed.world_size() == 1:
        return vectors[order]
    dist.broadcast(order, src=0)
    place = order - distributed.rank() * own
    mine = (place >= 0) & (place < own)
    return distributed.all_sum(torch.where(mine[:, None], vectors[place.clamp(0, own - 1)], 0.0))
