"""The second stage: a prior fitted to the latents that a trained video VAE gives its training clips.

No N(0, 1) of the usual size covers what the encoder makes of clips, so that samples from it are noise; a second
generative model of the latents does (Dai and Wipf 2019, arXiv 1903.05789). Here it is a Gaussian with a full
covariance, and a flow that leads its draws to the latents by flow matching (Lipman et al. 2022, arXiv 2210.02747) along
x_t = cos(a) x_0 + sin(a) x_1, a = t pi / 2 (Albergo and Vanden-Eijnden 2022, arXiv 2209.15571). Both ends have the same
mean and covariance, so the best velocity that a linear network can give is 0: a flow that has learnt nothing gives the
Gaussian, and whatever it learns is what the Gaussian lacks. Both describe the means of the posteriors: draws from them
add noise that no flow can foretell, most of the variance where the KL weighs much.

Axes: B clips, D numbers of all latents of a clip, level after level; N tokens, places of the latent maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import attention
from training.conditions import ClassEmbedding, guided
from video_vae.config import PriorConfig
from video_vae.model import Noise

TIME_FEATURES = 64  # sines and cosines of t
OVERSAMPLED, ITERATIONS = 16, 4  # of the search for principal directions
SMALLEST_SCALE = 1e-4  # of a latent's deviation: channels that the encoder does not use stay finite


class LatentPrior(nn.Module):
    """The Gaussian of the latents, and the flow's transformer over their tokens with its adaptive norms (DiT, Peebles
    and Xie 2022, arXiv 2212.09748).

    Everything between `fit` and `split` is in units of each channel's deviation: float32 (B, D).
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, total = config.width, sum(self.sizes)
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("scale", torch.ones(total))
        self.register_buffer("directions", torch.zeros(config.directions, total))
        self.register_buffer("rest", torch.ones(total))  # deviation beside the directions
        self.patches = [
            1 if height % config.patch or wide % config.patch else config.patch for _, height, wide in config.levels
        ]
        shapes = [(c * p**2, h * w // p**2) for (c, h, w), p in zip(config.levels, self.patches, strict=True)]
        self.places = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count, width)) for _, count in shapes)
        self.inputs = nn.ModuleList(nn.Linear(channels, width) for channels, _ in shapes)
        self.outputs = nn.ModuleList(nn.Linear(width, channels) for channels, _ in shapes)
        self.code = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = ClassEmbedding(len(config.classes), width) if config.classes else None
        grids = [(h // p, w // p) for (_, h, w), p in zip(config.levels, self.patches, strict=True)]
        self.blocks = nn.ModuleList(
            FlowBlock(width, config.heads, grids if config.neighbours else ()) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        for layer in self.outputs:  # starts as the Gaussian
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def tables(self) -> list[nn.Parameter]:
        """The matrices that are none, for Muon."""
        return [*self.places, *([self.classes.table.weight] if self.classes else [])]

    @torch.no_grad()
    def fit(self, means: Tensor, noise: Tensor) -> None:
        """Mean and covariance of posterior means (N, D), in units that count the posteriors' variance (D,) too.

        With those units a channel that the encoder leaves to noise is a constant, and an error of the flow weighs as
        much as it stands out from the noise that the decoder was trained with.

        The covariance is that of probabilistic principal components (Tipping and Bishop 1999): the strongest
        directions, their variances less that of the average one beside them, and for each latent what is left of its
        own. So it has full rank however few the clips are; of N clips at most N / 2 directions are taken for real.
        """
        self.mean.copy_(means.mean(0))
        levels = zip((means.var(0, unbiased=False) + noise).split(self.sizes), self.config.levels, strict=True)
        channels = [part.view(shape[0], -1) for part, shape in levels]
        scales = [(part.mean(1, keepdim=True).sqrt() + SMALLEST_SCALE).expand_as(part) for part in channels]
        self.scale.copy_(torch.cat([scale.flatten() for scale in scales]))
        centred = (means - self.mean) / self.scale
        wanted = min(len(self.directions), len(means) // 2, len(self.mean))
        self.directions.zero_()
        if wanted:
            values, vectors = principal_directions(centred, wanted)
            others = (centred.square().sum() / len(centred) - values.sum()).clamp_min(0)
            average = others / max(1, len(self.mean) - wanted)
            self.directions[:wanted] = (values - average).clamp_min(0).sqrt()[:, None] * vectors
        left = centred.square().mean(0) - self.directions.square().sum(0)
        self.rest.copy_(left.clamp_min(0).sqrt())

    @property
    def sizes(self) -> list[int]:
        """Numbers of each level."""
        return [channels * height * width for channels, height, width in self.config.levels]

    def normalized(self, latents: Tensor) -> Tensor:
        """Latents (B, D) in units of each channel's deviation."""
        return (latents - self.mean) / self.scale

    def split(self, x: Tensor) -> list[Tensor]:
        """The latents z_l (B, C_l, h_l, w_l) of each level, out of x (B, D) in units of each channel's deviation."""
        parts = (x * self.scale + self.mean).split(self.sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.config.levels, strict=True)]

    def start(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """A draw of the Gaussian (B, D), its deviations multiplied by `temperature`."""
        strong = noise.normal(len(self.directions)) @ self.directions
        return temperature * (strong + self.rest * noise.normal(len(self.rest)))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity (B, D) at x (B, D) and time t (B,), of clips of these classes (B,) where there are classes."""
        code = self.code(time_features(t))
        if self.classes is not None:
            code = code + self.classes(labels)
        parts = zip(self.inputs, self.tokens_of(x), self.places, strict=True)
        tokens = torch.cat([layer(part) + place for layer, part, place in parts], dim=1)  # (B, N, width)
        for block in self.blocks:
            tokens = block(tokens, code)
        levels = self.norm(tokens).split([len(place) for place in self.places], dim=1)
        velocity = self.numbers_of([layer(level) for layer, level in zip(self.outputs, levels, strict=True)])
        return 0.5 * math.pi * velocity

    def tokens_of(self, x: Tensor) -> list[Tensor]:
        """x (B, D) as tokens (B, N_l, C_l * patch^2) of each level."""
        parts = zip(x.split(self.sizes, dim=1), self.config.levels, self.patches, strict=True)
        return [F.pixel_unshuffle(part.view(-1, *shape), patch).flatten(2).mT for part, shape, patch in parts]

    def numbers_of(self, tokens: list[Tensor]) -> Tensor:
        """The inverse of `tokens_of`."""
        parts = zip(tokens, self.config.levels, self.patches, strict=True)
        maps = [part.mT.unflatten(2, (h // p, w // p)) for part, (_, h, w), p in parts]
        return torch.cat([F.pixel_shuffle(m, p).flatten(1) for m, p in zip(maps, self.patches, strict=True)], dim=1)

    def flow(self, x: Tensor, steps: int, labels: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """Where a draw of the Gaussian (B, D) is led: midpoint steps, each of two evaluations."""
        if labels is None and self.classes is not None:
            labels = torch.full((len(x),), self.classes.none, device=x.device)

        def velocity(x: Tensor, time: float) -> Tensor:
            t = torch.full((len(x),), time, device=x.device)
            if self.classes is None:
                return self(x, t)
            return guided(lambda given: self(x, t, given), labels, self.classes.none, guidance)

        for step in range(steps):
            middle = x + velocity(x, step / steps) / (2 * steps)
            x = x + velocity(middle, (step + 0.5) / steps) / steps
        return x


class FlowBlock(nn.Module):
    """Self-attention and a hidden layer; the code (B, width) scales and shifts what each is given.

    With `grids`, the sides (h, w) of each map of tokens, the hidden layer sees a token's neighbours through a 3x3
    convolution: strokes go on from place to place wherever they are, which need not be learned for each place.
    """

    def __init__(self, width: int, heads: int, grids: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.heads, self.grids = heads, tuple(grids)
        self.neighbours = nn.Conv2d(width, width, 3, padding=1) if grids else None
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Linear(width, 4 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Tokens (B, N, width) -> the same shape."""
        scale, shift, scale_2, shift_2 = self.modulation(F.silu(code))[:, None].chunk(4, dim=-1)
        given = self.norms[0](x) * (1 + scale) + shift
        query, key, value = self.qkv(given).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attention_out(attention(query, key, value).transpose(1, 2).flatten(2))
        given = self.norms[1](x) * (1 + scale_2) + shift_2
        return x + self.hidden(given if self.neighbours is None else self.convolved(given))

    def convolved(self, x: Tensor) -> Tensor:
        """Tokens (B, N, width) -> the same shape, each map of them convolved."""
        parts = zip(x.split([h * w for h, w in self.grids], dim=1), self.grids, strict=True)
        return torch.cat([self.neighbours(part.mT.unflatten(2, grid)).flatten(2).mT for part, grid in parts], dim=1)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t (B,) in [0, 1]: (B, TIME_FEATURES)."""
    rates = torch.exp(torch.linspace(0, math.log(100.0), TIME_FEATURES // 2, device=t.device))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def interpolate(start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The path from draws of the Gaussian to latents (B, D) at times t (B,), and its velocity."""
    angle = 0.5 * math.pi * t[:, None]
    return angle.cos() * start + angle.sin() * end, 0.5 * math.pi * (angle.cos() * end - angle.sin() * start)


def principal_directions(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (count,) of the covariance of centred rows (N, D), and their vectors (count, D).

    By subspace iteration from a fixed random start (Halko et al. 2011, algorithm 4.4).
    """
    generator = torch.Generator().manual_seed(0)
    more = min(count + OVERSAMPLED, *centred.shape)
    basis = torch.randn(centred.shape[1], more, generator=generator).to(centred)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    _, values, vectors = torch.linalg.svd(centred @ basis, full_matrices=False)
    return (values.square() / len(centred))[:count], (vectors @ basis.T)[:count]
