"""The frame-wise VQ-VAE whose codes the transformer models: a frame to a grid of codes, and back.

Codebooks are learned by moving averages as in van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1), with restarts
of unused codes as in Dhariwal et al. 2020 (arXiv 2005.00341, section 3.1). Names of modules and parameters are those of
the published checkpoints.

Axes: N frames, or vectors of all frames; K codes of a codebook; D channels; (h, w) grid of codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.config import DOWNSAMPLING, CodebookConfig, ConvNetConfig, vqvae_config
from lvt.layers import initialize_convolutions
from training import distributed
from training.checkpoint import strict_load
from videodata import pixels
from videodata.errors import UserError
from videodata.finite import finite

ACTIVATIONS = {"": None, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
NETWORKS = {"netE": "encoder", "netG": "decoder", "netC": "quantizer"}  # folder of the published files -> our name
DECAY = 0.99
EPSILON = 1e-5  # of the Laplace smoothing of the counts


class Quantized(NamedTuple):
    """What a training pass gives: frames, the encoder's vectors, the vectors of their codes, the codes."""

    reconstruction: Tensor  # (N, 3, H, W)
    z: Tensor  # (N, D, h, w)
    z_code: Tensor  # (N, D, h, w), after the codebooks' update
    codes: Tensor | None  # (N, h, w) or (N, num, h, w); None when nothing was quantised


class VQVAE(nn.Module):
    """Frames <-> codes at a quarter of the resolution. `model_config` is the MODEL node of a configuration.

    Raises UserError for a configuration that does not fit together.
    """

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = vqvae_config(model_config)
        self.encoder = Encoder(self.config.encoder)
        self.decoder = Decoder(self.config.generator)
        self.quantizer = Quantizer(self.config.codebook)
        shape = (1, -1, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(self.config.pixel_mean).view(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(self.config.pixel_std).view(shape), persistent=False)
        initialize_convolutions(self)

    def normalize(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W), uint8 or in [-1, 1] -> the encoder's input: (x - mean) / std with x in [0, 1]."""
        frames = pixels.as_float(frames)
        return (frames - (2 * self.pixel_mean - 1)) / (2 * self.pixel_std)

    def denormalize(self, frames: Tensor) -> Tensor:
        """The decoder's output (N, 3, H, W) -> [-1, 1]."""
        return (frames * (2 * self.pixel_std) + (2 * self.pixel_mean - 1)).clamp(-1, 1)

    def forward(self, frames: Tensor, quantized: bool = True) -> Quantized:
        """Normalised frames (N, 3, H, W) through encoder, codebooks (unless `quantized` is False) and decoder.

        Gradients pass the quantisation unchanged. In training mode, codebooks with moving averages are updated after
        the codes were chosen and before the vectors of the commitment loss are looked up.
        """
        z = self.encoder(frames)
        if not quantized:
            return Quantized(self.decoder(z), z, z, None)
        learns = self.training and self.config.codebook.ema
        if learns:
            self.quantizer.start_from(z)
        codes = self.quantizer.quantize(z)
        straight_through = z + (self.quantizer.look_up(codes) - z).detach()
        if learns:
            self.quantizer.update(z, codes)
        return Quantized(self.decoder(straight_through), z, self.quantizer.look_up(codes), codes)

    def losses(self, frames: Tensor, out: Quantized) -> dict[str, Tensor]:
        """Terms to add up: reconstruction, commitment, and for trained codebooks the pull on the codes."""
        distance = F.mse_loss if self.config.pixel_loss == "l2" else F.l1_loss
        terms = {
            "reconstruction": self.config.pixel_weight * distance(out.reconstruction, frames),
            "commitment": self.config.codebook.beta * F.mse_loss(out.z, out.z_code.detach()),
        }
        if not self.config.codebook.ema:
            terms["codebook"] = F.mse_loss(out.z_code, out.z.detach())
        return terms

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Frames (N, 3, H, W) or clips (B, T, 3, H, W), uint8 or in [-1, 1], -> codes int64 (..., num, h, w).

        One codebook gives codes without the axis `num`.
        """
        if images.ndim not in (4, 5) or images.shape[-3] != self.config.encoder.in_channels:
            raise UserError(
                f"frames must be (N, {self.config.encoder.in_channels}, H, W) or (B, T, ...), found "
                f"{tuple(images.shape)}"
            )
        flat = images.flatten(0, -4)
        codes = self.quantizer.quantize(self.encoder(self.normalize(flat)))
        return codes.unflatten(0, images.shape[:-3])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, num, h, w) or (B, T, num, h, w) -> frames (N, 3, H, W) or (B, T, 3, H, W) in [-1, 1]."""
        axes = 2 if self.config.codebook.num == 1 else 3  # of the codes of one frame
        flat = codes.reshape(-1, *codes.shape[-axes:])
        return self.decoder(self.quantizer.look_up(flat)).unflatten(0, codes.shape[:-axes])

    def load_original(self, groups: Mapping[str, Mapping[str, Tensor]]) -> VQVAE:
        """Load the published files' state dicts {"netE": ..., "netG": ..., "netC": ...} by their own keys.

        Raises UserError with the keys that are missing, unexpected or misshapen.
        """
        for name in NETWORKS:
            if name not in groups:
                raise UserError(f"the VQVAE needs the weights {', '.join(NETWORKS)}; {name} is missing")
        for name, attribute in NETWORKS.items():
            weights = groups[name]
            if name == "netC" and self.config.codebook.num == 1:
                weights = {f"ve.0.{key}": value for key, value in weights.items()}
            strict_load(getattr(self, attribute), weights, name)
        return self

    def original_state(self) -> dict[str, dict[str, Tensor]]:
        """The weights as the published files hold them: {"netE": ..., "netG": ..., "netC": ...}."""
        groups = {name: dict(getattr(self, attribute).state_dict()) for name, attribute in NETWORKS.items()}
        if self.config.codebook.num == 1:
            groups["netC"] = {key.removeprefix("ve.0."): value for key, value in groups["netC"].items()}
        return groups


@torch.no_grad()
def encode_clips(vqvae: VQVAE, clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W), uint8 or in [-1, 1], -> codes int64 (B, C, T, h, w)."""
    codes = vqvae.encode(clips.transpose(1, 2))  # (B, T, C, h, w), or (B, T, h, w) for one codebook
    return codes[:, None] if codes.ndim == 4 else codes.transpose(1, 2)


@torch.no_grad()
def decode_clips(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Codes int64 (B, C, T, h, w) -> clips (B, 3, T, H, W) in [-1, 1]."""
    frames = codes.transpose(1, 2)  # (B, T, C, h, w)
    if vqvae.config.codebook.num == 1:
        frames = frames[:, :, 0]
    clips = [vqvae.denormalize(vqvae.decode(clip)) for clip in frames]  # one after the other: memory of one clip
    return torch.stack(clips).transpose(1, 2)


class ResidualBlock(nn.Module):
    """y = r + conv1x1(relu(conv3x3(r))) with r = relu(x).

    The skip carries the rectified input: the published weights were trained with a first ReLU that works in place.
    """

    def __init__(self, width: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), same_size(width, hidden, kernel), nn.ReLU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        return rectified + self.block(rectified)


def same_size(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Encoder(nn.Module):
    """Frames (N, in_channels, H, W) -> vectors (N, nf, H / 4, W / 4).

    A vector sees 18 x 18 pixels, and 8 more for each residual block. With KERNEL 1 it sees 10 x 10, with
    STRIDED_KERNEL 2 beside it the 4 x 4 that it stands for: then a code changes only where its own pixels do.
    """

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        width, strided = config.nf, config.strided_kernel
        self.layers = nn.Sequential(
            nn.Conv2d(config.in_channels, width // 2, strided, stride=2, padding=strided // 2 - 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, strided, stride=2, padding=strided // 2 - 1),
            nn.ReLU(),
            same_size(width, width, config.kernel),
            *(ResidualBlock(width, config.res_channels, config.kernel) for _ in range(config.n_layers)),
            *activation(config.out_activation),
        )

    def forward(self, frames: Tensor) -> Tensor:
        if frames.shape[-2] % DOWNSAMPLING or frames.shape[-1] % DOWNSAMPLING:
            raise UserError(f"frames of {tuple(frames.shape[-2:])} pixels: height and width must be multiples of 4")
        return self.layers(frames)


class Decoder(nn.Module):
    """Vectors (N, in_channels, h, w) -> frames (N, out_channels, 4 h, 4 w)."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        width = config.nf
        self.layers = nn.Sequential(
            same_size(config.in_channels, width, config.kernel),
            *(ResidualBlock(width, config.res_channels, config.kernel) for _ in range(config.n_layers)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, config.out_channels, 4, stride=2, padding=1),
            *activation(config.out_activation),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def activation(name: str) -> list[nn.Module]:
    """The output activation as a list of no or one module. Raises UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(f"OUT_ACTIVATION {name!r}: use one of {', '.join(map(repr, ACTIVATIONS))}")
    kind = ACTIVATIONS[name]
    return [] if kind is None else [kind()]


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
        shape = (len(z), *z.shape[2:])
        if not self.training:
            finite(z, "latents before the codebook")
        codes = [book.quantize(part).view(shape) for book, part in zip(self.ve, self.split(z), strict=True)]
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
