"""A direct way of the whole clip to its finest latents and back, beside the recurrent pyramids.

The frames of a clip are first summed over time with cosines of t / T, and come back as sums of them, so that any
number of frames passes. Between these coefficients and the latents lies a linear map of each patch, which starts as a
low-pass (the discrete cosine transform in time, space and colour), and convolutions that start without effect. So the
first steps show the coarse moving picture, and the pyramids learn what it lacks.

Axes: B clips, T frames, H W pixels, h w tokens of the finest level, K cosines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_vae.config import ClipPathConfig

LATENT_GAIN = 2.0  # of pixels in [-1, 1]: latents of about unit variance
GREY_FIRST = 1.0  # colour differences count as if they were so much further from the mean, in units of a whole band


def cosines(moments: Sequence[tuple[int, int]], count: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `count` functions of the cosine transform at frame t of T, for each (t, T): (n, count)."""
    times = torch.tensor([(t + 0.5) / frames for t, frames in moments], device=device)
    waves = torch.cos(math.pi * times[:, None] * torch.arange(count, device=device))
    return torch.cat([waves[:, :1], 2**0.5 * waves[:, 1:]], dim=1)


def cosine_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform of `size` values, one function per row."""
    return cosines([(t, size) for t in range(size)], size).T / size**0.5


def low_pass(rows: int, times: int, stride: int) -> Tensor:
    """The `rows` lowest frequencies of patches of K temporal coefficients: orthonormal (rows, 3 * K, stride, stride).

    Rows beyond the number of values in a patch are 0.
    """
    with torch.device("cpu"):  # also where a network is built on the meta device
        colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
        colors /= colors.norm(dim=1, keepdim=True)
        space = cosine_matrix(stride)
        bands = torch.arange(stride) / stride
        distance = (
            torch.tensor([0.0, GREY_FIRST, GREY_FIRST])[:, None, None, None].square()
            + (torch.arange(times) / times)[None, :, None, None].square()
            + bands[None, None, :, None].square()
            + bands[None, None, None, :].square()
        )  # (3, K, stride, stride), of a function from the mean
        order = distance.flatten().argsort(stable=True)[:rows]
        weight = torch.zeros(rows, 3, times, stride, stride)
        for row, which in enumerate(order.tolist()):
            color, time, vertical, horizontal = map(int, torch.unravel_index(torch.tensor(which), distance.shape))
            patch = torch.outer(space[vertical], space[horizontal])
            weight[row, :, time] = colors[color][:, None, None] * patch
        return weight.flatten(1, 2)


class ResidualConvolutions(nn.Module):
    """Map (B, width, h, w) -> the same shape: norm, SiLU and a 3x3 convolution, twice, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def trunk(first: nn.Module, config: ClipPathConfig, last: nn.Conv2d) -> nn.Sequential:
    """Residual convolutions between two layers, of which the last starts at 0."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    blocks = [ResidualConvolutions(config.width) for _ in range(config.depth)]
    return nn.Sequential(first, *blocks, nn.GroupNorm(1, config.width), nn.SiLU(), last)


class ClipEncoder(nn.Module):
    """Clip (B, 3, T, H, W) in [-1, 1] -> what it adds to mean and log-variance of the finest latents (B, h, w, 2 C)."""

    def __init__(self, config: ClipPathConfig, stride: int, latent_dim: int) -> None:
        super().__init__()
        self.times = config.times
        channels = 3 * config.times
        self.linear = nn.Conv2d(channels, latent_dim, stride, stride=stride, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(LATENT_GAIN * low_pass(latent_dim, config.times, stride))
        first = nn.Conv2d(channels, config.width, stride, stride=stride)
        self.layers = trunk(first, config, nn.Conv2d(config.width, 2 * latent_dim, 3, padding=1))

    def forward(self, clip: Tensor) -> Tensor:
        frames = clip.shape[2]
        waves = cosines([(t, frames) for t in range(frames)], self.times, clip.device)
        x = torch.einsum("bcthw,tk->bckhw", clip, waves / frames).flatten(1, 2)  # (B, 3 K, H, W)
        x = x.contiguous(memory_format=torch.channels_last)
        mean, log_var = self.layers(x).chunk(2, dim=1)
        return torch.cat([self.linear(x) + mean, log_var], dim=1).permute(0, 2, 3, 1)


class ClipDecoder(nn.Module):
    """Finest latents (B, C, h, w) -> the temporal coefficients of the clip (B, 3, K, H, W), and frames out of them."""

    def __init__(self, config: ClipPathConfig, stride: int, latent_dim: int) -> None:
        super().__init__()
        self.times, self.stride = config.times, stride
        values = 3 * config.times * stride**2
        self.linear = nn.Conv2d(latent_dim, values, 1)
        with torch.no_grad():  # the encoder's transpose; a pixel shuffle wants (channel, row, column)
            rows = low_pass(latent_dim, config.times, stride).flatten(1) / LATENT_GAIN
            self.linear.weight.copy_(rows.T[..., None, None])
        nn.init.zeros_(self.linear.bias)
        first = nn.Conv2d(latent_dim, config.width, 3, padding=1)
        self.layers = trunk(first, config, nn.Conv2d(config.width, values, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.linear(z) + self.layers(z), self.stride)
        return x.unflatten(1, (3, self.times))

    def frame(self, coefficients: Tensor, t: int, frames: int) -> Tensor:
        """Frame t of T, before it is squashed to [-1, 1]: (B, 3, H, W)."""
        waves = cosines([(t, frames)], self.times, coefficients.device)[0]
        return torch.einsum("bckhw,k->bchw", coefficients.float(), waves)
