"""The hierarchical transformer-LSTM video VAE: the network, its latents, their posterior and prior.

Axes: B clips, T frames, H W pixels; h w tokens of a level, dim their width. Inside, maps are (B, h, w, dim).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from losses.kl import gaussian_kl
from video_vae.clip_path import ClipDecoder, ClipEncoder
from video_vae.config import VideoVAEConfig
from video_vae.layers import (
    FrameHead,
    FrameStem,
    Maps,
    RecurrentPyramid,
    TimeModulation,
    grid_embedding,
    orthogonal_,
    orthogonal_linear,
)
from videodata.pixels import pad_sides

Moment = tuple[int, int]  # frame t of T

LOG_VAR_RANGE = (-10.0, 4.0)
FIRST_LOG_VAR = -4.0  # so that the first reconstructions get signal through the noise
PRIOR_WIDTH = 64  # channels of the convolutions between the levels of the prior


class TransformerNetwork(nn.Module):
    """A recurrent VAE of clips, float32 (B, 3, T, H, W) in [-1, 1], for any T, H and W.

    The encoder pyramid reads the frames in order; its final states give one latent map per level for the whole clip.
    The decoder pyramid starts from the latents and is unrolled once per frame; the generator pyramid refines a canvas
    for each frame, and the head turns the canvas into pixels.

    `checkpointing`: keep only the recurrent states of each frame and compute the rest again in the backward pass.
    """

    def __init__(self, config: VideoVAEConfig, checkpointing: bool = True) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        dims = [level.dim for level in config.levels]
        self.stem = FrameStem(config.stem_stride, config.stem_dim)
        self.encoder_time = TimeModulation(config.stem_dim)
        self.encoder = RecurrentPyramid(config, config.stem_dim, config.stem_heads, skip=True)
        self.latents = LatentHierarchy(config)
        self.from_latents = nn.ModuleList(
            nn.Sequential(orthogonal_linear(level.latent_dim, level.dim), nn.LayerNorm(level.dim))
            for level in config.levels
        )
        self.canvas = nn.Parameter(torch.zeros(config.canvas_dim))
        self.canvas_time = TimeModulation(config.canvas_dim)
        self.latent_times = nn.ModuleList(TimeModulation(dim) for dim in dims)
        self.decoder = RecurrentPyramid(config, config.canvas_dim, config.canvas_heads, extras=2)
        self.generator = RecurrentPyramid(config, config.canvas_dim, config.canvas_heads, extras=1)
        self.head = FrameHead(config.canvas_dim + dims[0], config.stem_stride, config.head_dim)
        self.clip_encoder = self.clip_decoder = None
        if config.clip_path.times:
            finest = config.levels[0].latent_dim
            self.clip_encoder = ClipEncoder(config.clip_path, config.stem_stride, finest)
            self.clip_decoder = ClipDecoder(config.clip_path, config.stem_stride, finest)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], checkpointing: bool = True) -> TransformerNetwork:
        """Build from the keys of configs/video_vae/*.yaml. Raises UserError for sizes that do not fit together."""
        return cls(VideoVAEConfig.from_dict(config), checkpointing)

    def forward(
        self,
        clip: Tensor,
        noise: Noise | None = None,
        moments: Sequence[Moment] | None = None,
        whole: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clip -> reconstruction of the same shape, and the KL in nats of each level as `kl_1`, ..., each (B,).

        Latents are drawn from the posterior with `noise`; without it they are the posterior's means. `moments` says
        which frame of a longer clip each frame is, where the clip holds only some of them; `whole` is that longer
        clip, which a clip path reads.
        """
        latents, divergences = self.infer(clip, noise, moments, whole)
        terms = {f"kl_{level}": kl for level, kl in enumerate(divergences, start=1)}
        return self.decode(latents, moments), terms

    def encode(self, clip: Tensor, noise: Noise | None = None) -> Latents:
        """The latents of a clip: the posterior's means, or a draw from it with `noise`."""
        return self.infer(clip, noise)[0]

    def posterior(self, clip: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Mean and standard deviation of each level's posterior, each (B, latent_dim_l, h_l, w_l).

        Those of a level are given the means of the coarser ones, where the prior is hierarchical.
        """
        states, finest = self.read(clip)
        levels, _ = self.latents.posterior(states, None, finest)
        return [mean for _, mean, _ in levels], [(0.5 * log_var).exp() for _, _, log_var in levels]

    def infer(
        self,
        clip: Tensor,
        noise: Noise | None = None,
        moments: Sequence[Moment] | None = None,
        whole: Tensor | None = None,
    ) -> tuple[Latents, list[Tensor]]:
        """Latents of a clip and, for each level, their KL from the prior in nats (B,)."""
        frames, size = clip.shape[2], tuple(clip.shape[3:])
        states, finest = self.read(clip, moments, whole)
        levels, divergences = self.latents.infer(states, noise, finest)
        return Latents(levels, frames, size), divergences

    def read(
        self, clip: Tensor, moments: Sequence[Moment] | None = None, whole: Tensor | None = None
    ) -> tuple[Maps, Tensor | None]:
        """The encoder's states after all frames, and what a clip path adds to the finest posterior."""
        frames, size = clip.shape[2], tuple(clip.shape[3:])
        clip = self.pad(clip)
        states = [clip.new_zeros(len(clip), *grid, level.dim) for grid, level in self.levels(size)]
        for index, moment in enumerate(moments or all_moments(frames)):
            states = self.recompute(self.read_frame, clip[:, :, index], moment, states)
        if self.clip_encoder is None:
            return states, None
        return states, self.recompute(self.clip_encoder, clip if whole is None else self.pad(whole))

    def read_frame(self, frame: Tensor, moment: Moment, states: Maps) -> Maps:
        """One step of the encoder: frame (B, 3, H, W) and states -> new states."""
        x = self.stem(frame)
        x = self.encoder_time(x, *moment) + grid_embedding(*x.shape[1:], device=x.device)
        return self.encoder.step(x, states)[1]

    def decode(self, latents: Latents, moments: Sequence[Moment] | None = None) -> Tensor:
        """Latents -> clip (B, 3, T, H, W) in [-1, 1]."""
        embedded = [
            layer(z.permute(0, 2, 3, 1)) for layer, z in zip(self.from_latents, latents.levels, strict=True)
        ]  # each (B, h, w, dim)
        states = generated = embedded
        coefficients = None if self.clip_decoder is None else self.recompute(self.clip_decoder, latents.levels[0])
        (height, width), clip = latents.size, []
        for moment in reversed(moments or all_moments(latents.frames)):  # the last frame is freshest in the latents
            beside = None if coefficients is None else self.clip_decoder.frame(coefficients, *moment)
            states, generated, frame = self.decode_frame(moment, embedded, states, generated, beside)
            clip.append(frame[..., :height, :width])
        return torch.stack(clip[::-1], dim=2)

    def decode_frame(
        self, moment: Moment, embedded: Maps, states: Maps, generated: Maps, beside: Tensor | None = None
    ) -> tuple[Maps, Maps, Tensor]:
        """One step of the decoder, the generator's refinement, and the frame (B, 3, H, W) that comes of it."""
        canvas, states = self.recompute(self.step_decoder, moment, embedded, states, generated)
        generated = states
        for _ in range(self.config.gen_iterations):
            canvas, generated = self.recompute(self.generator.step, canvas, generated, [states])
        frame = self.recompute(self.draw, canvas, generated[0], beside)
        return states, generated, frame

    def step_decoder(self, moment: Moment, embedded: Maps, states: Maps, generated: Maps) -> tuple[Tensor, Maps]:
        """Canvas with position and time through one step of the decoder pyramid."""
        batch, height, width, _ = embedded[0].shape
        where = grid_embedding(height, width, len(self.canvas), self.canvas.device)
        canvas = self.canvas_time(self.canvas + where, *moment).expand(batch, -1, -1, -1)
        recalled = [time(e, *moment) for time, e in zip(self.latent_times, embedded, strict=True)]
        return self.decoder.step(canvas, states, [recalled, generated])

    def draw(self, canvas: Tensor, finest: Tensor, beside: Tensor | None = None) -> Tensor:
        """Refined canvas, the generator's finest state and the clip path's frame -> frame (B, 3, H, W), float32."""
        return self.head(torch.cat([canvas, finest], dim=-1), beside).float()

    def generate(
        self,
        n: int,
        frames: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """n clips (n, 3, frames, H, W) in [-1, 1] drawn from the prior; sample i does not depend on n.

        `size`: (H, W), by default the configuration's image_size.
        """
        noise = GeneratorNoise(n, generator, self.canvas.device)
        return self.decode(self.draw_latents(noise, frames, size or self.config.image_size, temperature))

    def draw_latents(self, noise: Noise, frames: int, size: tuple[int, int], temperature: float = 1.0) -> Latents:
        """Latents of clips of this length and size, drawn from the prior with `noise`."""
        grids = [grid for grid, _ in self.levels(size)]
        return Latents(self.latents.sample(noise, grids, self.canvas, temperature), frames, tuple(size))

    def levels(self, size: tuple[int, int]) -> list[tuple[tuple[int, int], Any]]:
        """((h, w), level configuration) of each level for frames of this size."""
        height, width = (-(-side // self.config.multiple) * self.config.multiple for side in size)
        strides = [self.config.stem_stride * 2**index for index in range(len(self.config.levels))]
        return [((height // s, width // s), level) for s, level in zip(strides, self.config.levels, strict=True)]

    def pad(self, clip: Tensor) -> Tensor:
        """Repeat the last row and column until every level halves evenly."""
        return pad_sides(clip, self.config.multiple)

    def recompute(self, function: Callable, *arguments: Any) -> Any:
        """Call a function, keeping only its arguments for the backward pass when checkpointing is on."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*arguments)
        random = self.training and self.config.dropout > 0
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)


def kept_bytes(config: VideoVAEConfig, batch: int, frames: int, size: Sequence[int]) -> int:
    """Bytes of activations that a training step on clips (batch, 3, frames, *size) keeps when nothing is computed
    again, in float32; counted on tensors without values, for one and for two frames: each more costs the same. It is
    an upper bound: on these attention keeps the scores of all pairs of tokens, as the fused kernel does not.
    """
    with torch.device("meta"):
        network = TransformerNetwork(config, checkpointing=False)
    weights = {StorageWeakRef(parameter.untyped_storage()) for parameter in network.parameters()}

    def kept(count: int) -> int:
        found: dict[StorageWeakRef, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[StorageWeakRef(storage)] = storage.nbytes()
            return tensor

        with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = network(torch.empty(batch, 3, count, *size))
        del result
        return sum(size for storage, size in found.items() if storage not in weights)

    first, second = kept(1), kept(2)
    return first + (frames - 1) * (second - first)


def all_moments(frames: int) -> list[Moment]:
    """Every frame of a clip of this length."""
    return [(t, frames) for t in range(frames)]


@dataclass
class Latents:
    """What a clip is encoded to, and what is needed to decode it."""

    levels: list[Tensor]  # z_l (B, latent_dim_l, h_l, w_l), level 1 (the finest) first
    frames: int  # of the clip
    size: tuple[int, int]  # (H, W) of the clip, before padding

    def map(self, function: Callable[[Tensor], Tensor]) -> Latents:
        """The same clip format with `function` applied to each level."""
        return replace(self, levels=[function(level) for level in self.levels])

    def mix(self, other: Latents, weight: float) -> Latents:
        """Linear interpolation: self at weight 0, other at weight 1."""
        levels = [torch.lerp(a, b, weight) for a, b in zip(self.levels, other.levels, strict=True)]
        return replace(self, levels=levels)


class Noise(Protocol):
    """Anything that draws standard normal noise (B, *shape): `training.SampleNoise`, or `GeneratorNoise`."""

    def normal(self, *shape: int) -> Tensor: ...


class GeneratorNoise:
    """Noise for n samples of which each has its own stream, so that a sample does not depend on the others."""

    def __init__(self, n: int, generator: torch.Generator | None, device: torch.device) -> None:
        source = {} if generator is None else {"generator": generator, "device": generator.device}
        seeds = torch.randint(2**62, (n,), **source)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise (n, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)


class LatentHierarchy(nn.Module):
    """q(z_l | states) and p(z_l), or p(z_l | z of the coarser levels) when the prior is hierarchical.

    The hierarchical posterior is relative to the prior, as in NVAE (Vahdat and Kautz 2020, arXiv 2007.03898).
    """

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.latent_dims = [level.latent_dim for level in config.levels]
        self.posteriors = nn.ModuleList(nn.Linear(level.dim, 2 * level.latent_dim) for level in config.levels)
        for layer, dim in zip(self.posteriors, self.latent_dims, strict=True):
            orthogonal_(layer.weight[:dim])
            nn.init.zeros_(layer.weight[dim:])
            nn.init.zeros_(layer.bias[:dim])
            nn.init.constant_(layer.bias[dim:], FIRST_LOG_VAR)
        if config.clip_path.times:  # which gives the finest means; the states add to them
            nn.init.zeros_(self.posteriors[0].weight)
        self.prior = TopDownPrior(self.latent_dims) if config.prior == "hierarchical" else None

    def infer(
        self, states: list[Tensor], noise: Noise | None, finest: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder states (B, h_l, w_l, dim_l) -> latents (B, latent_dim_l, h_l, w_l) and KL in nats (B,), per level.

        Without noise the latents are the posterior's means. `finest` (B, h_1, w_1, 2 latent_dim_1) is added to mean
        and log-variance of level 1.
        """
        posterior, divergences = self.posterior(states, noise, finest)
        return [z for z, _, _ in posterior], divergences

    def posterior(
        self, states: list[Tensor], noise: Noise | None, finest: Tensor | None = None
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
        """Latents, mean and log-variance of each level, each (B, latent_dim_l, h_l, w_l), and KL in nats (B,)."""
        levels, divergences = self._empty(), self._empty()
        context = None
        for index in reversed(range(len(states))):
            parameters = self.posteriors[index](states[index])
            if index == 0 and finest is not None:
                parameters = parameters + finest
            parameters = parameters.float().permute(0, 3, 1, 2)
            mean, log_var = parameters.chunk(2, dim=1)
            prior_mean, prior_log_var, hidden = self._prior(index, context, like=mean)
            mean, log_var = mean + prior_mean, (log_var + prior_log_var).clamp(*LOG_VAR_RANGE)
            z = mean if noise is None else mean + (0.5 * log_var).exp() * noise.normal(*mean.shape[1:])
            levels[index] = (z, mean, log_var)
            divergences[index] = gaussian_kl(mean, log_var, prior_mean, prior_log_var)
            context = (hidden, z)
        return levels, divergences

    def sample(self, noise: Noise, grids: list[tuple[int, int]], like: Tensor, temperature: float) -> list[Tensor]:
        """Latents drawn from the prior, its standard deviations multiplied by `temperature`."""
        levels = self._empty()
        context = None
        for index in reversed(range(len(grids))):
            epsilon = noise.normal(self.latent_dims[index], *grids[index]).to(like)
            prior_mean, prior_log_var, hidden = self._prior(index, context, like=epsilon)
            levels[index] = prior_mean + (0.5 * prior_log_var).exp() * temperature * epsilon
            context = (hidden, levels[index])
        return levels

    def _prior(self, index: int, context: tuple | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.prior is None or context is None:
            return torch.zeros_like(like), torch.zeros_like(like), None
        return self.prior(index, *context)

    def _empty(self) -> list:
        return [None] * len(self.latent_dims)


class TopDownPrior(nn.Module):
    """p(z_l | coarser levels): small convolutions on the level above, upsampled, and on what that level knew."""

    def __init__(self, latent_dims: list[int]) -> None:
        super().__init__()
        width = PRIOR_WIDTH
        self.hidden = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(above + (width if index + 2 < len(latent_dims) else 0), width, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GELU(),
            )
            for index, above in enumerate(latent_dims[1:])
        )
        self.parameters_of = nn.ModuleList(nn.Conv2d(width, 2 * dim, 1) for dim in latent_dims[:-1])
        for layer in self.parameters_of:  # starts as N(0, 1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, index: int, hidden: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of level `index` (from 0), and features for the next finer level."""
        above = z if hidden is None else torch.cat([hidden, z], dim=1)
        hidden = self.hidden[index](F.interpolate(above, scale_factor=2.0, mode="nearest"))
        mean, log_var = self.parameters_of[index](hidden).float().chunk(2, dim=1)
        return mean, log_var.clamp(*LOG_VAR_RANGE), hidden
