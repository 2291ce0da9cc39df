"""The first stage, a 2+1D autoencoder that divides height and width by 8, with the second stage behind it.

`Encoder2plus1D(video)` is the complete encoder and `Decoder2plus1D(latent)` the complete decoder. The second stage
belongs to the model (its keys stand beside `encoder.` and `decoder.`), so each holds it as a companion: it moves along,
but is no submodule. Axes: B samples, C channels, T frames, H and W pixels, h and w latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..distributions import DiagonalGaussianDistribution
from ..modules.ae_modules import AttnBlock3D, Downsample, ResnetBlock2plus1D, SpatialConv, Upsample
from ..modules.attention_temporal_videoae import TemporalAttention, Text, TextAttention
from ..modules.utils import Normalize, Slices, arrange, each, join, regroup
from .settings import SpatialSettings

Noise = tuple[Tensor, Tensor]


class Middle(nn.Module):
    """Residual block, attention within frames, attention over time, residual block."""

    def __init__(self, width: int, settings: SpatialSettings, prune_unused: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock2plus1D(width, width, settings.dropout, prune_unused)
        self.attn_1 = AttnBlock3D(width)
        self.attn_1_tmp = TemporalAttention(width)
        self.block_2 = ResnetBlock2plus1D(width, width, settings.dropout, prune_unused)

    def forward(self, x: Slices, temporal: bool) -> Slices:
        x = self.attn_1(self.block_1(x, temporal))
        if temporal:
            x = self.attn_1_tmp(x)
        return self.block_2(x, temporal)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by text attention where there is any."""

    def __init__(
        self, channels: int, width: int, blocks: int, patch: int | None, settings: SpatialSettings, prune_unused: bool
    ) -> None:
        super().__init__()
        inputs = [channels] + [width] * (blocks - 1)
        self.block = nn.ModuleList(
            ResnetBlock2plus1D(incoming, width, settings.dropout, prune_unused) for incoming in inputs
        )
        self.attn = nn.ModuleList(TextAttention(width, patch) for _ in inputs if patch is not None)

    def forward(self, x: Slices, text: Text | None, temporal: bool, run: Callable) -> Slices:
        for index, block in enumerate(self.block):
            x = run(block, x, temporal)
            if self.attn:
                x = run(self.attn[index], x, text)
        return x


class Stage(nn.Module):
    """What the encoder and the decoder share: slices, gradient checkpointing and the companions."""

    def __init__(self, companions: list[nn.Module]) -> None:
        super().__init__()
        self.companions = companions  # a list, so that they are no submodules
        self.slice_frames: int | None = None  # frames per slice; None: by memory
        self.gradient_checkpointing = False
        self.temporal_branches = True  # False: as if those of this stage, and its attention over time, were still zero

    def _apply(self, function: Callable, recurse: bool = True) -> nn.Module:
        for companion in self.companions:
            companion._apply(function, recurse)
        return super()._apply(function, recurse)

    def _without_idle_gradients(self, x: Tensor) -> AbstractContextManager:
        """No gradients are recorded where nothing asks for them, so that the clip can be worked through in slices."""
        asked = x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return nullcontext() if asked else torch.no_grad()

    def _run(self, block: nn.Module, x: Slices, *arguments: object) -> Slices:
        """Apply a block; under gradient checkpointing its activations are computed again in the backward pass."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return block(x, *arguments)
        return [checkpoint(lambda clip: join(block([clip], *arguments)), join(x), use_reentrant=False)]

    def _regroup(self, x: Slices, growth: int = 1) -> Slices:
        return regroup(x, self.slice_frames, growth)

    def _first(self, part: Tensor) -> Tensor:
        return arrange(self.conv_in(part))

    def _output(self, x: Slices, norm: Normalize, conv: SpatialConv) -> Tensor:
        scaling = norm.scaling(x)
        return join(each(lambda part: conv(norm.activate_(part, scaling)), x)).contiguous()


class Encoder2plus1D(Stage):
    """Video (B, 3, T, H, W) in [-1, 1] -> posterior of the latent (B, z, T/4, H/8, W/8)."""

    def __init__(
        self, settings: SpatialSettings, temporal: nn.Module, quant_conv: nn.Module | None, prune_unused: bool = True
    ) -> None:
        super().__init__([module for module in (temporal, quant_conv) if module is not None])
        self.temporal = [temporal]
        self.quant_conv = [quant_conv] if quant_conv is not None else []
        self.z_channels = settings.z_channels
        widths = [settings.ch * factor for factor in settings.ch_mult]
        self.conv_in = SpatialConv(settings.in_channels, settings.ch)
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            incoming = widths[index - 1] if index else settings.ch
            patch = settings.text_patch(index)
            level = Level(incoming, width, settings.num_res_blocks, patch, settings, prune_unused)
            if index < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], settings, prune_unused)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = SpatialConv(widths[-1], 2 * settings.z_channels)

    def spatial_moments(self, video: Tensor, text: Text | None = None, temporal: bool = True) -> Tensor:
        """Moments of the first stage (B, 2z, T, H/8, W/8), log-variance not clamped."""
        growth = max(1, self.conv_in.out_channels // video.shape[1])
        h = each(self._first, self._regroup([arrange(video)], growth))
        for level in self.down:
            h = level(h, text, temporal, self._run)
            if hasattr(level, "downsample"):
                h = self._regroup(level.downsample(h))
        h = self._run(self.mid, h, temporal)
        moments = self._output(self._regroup(h), self.norm_out, self.conv_out)
        for layer in self.quant_conv:
            moments = layer(moments)
        return moments

    def forward(
        self,
        video: Tensor,
        text: Text | None = None,
        sample_posterior: bool = False,
        mask_temporal: bool = False,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ) -> DiagonalGaussianDistribution:
        """Posterior of the latent; the first stage is taken at its mean, or sampled too with `sample_posterior`.

        mask_temporal: image mode, all temporal layers skipped; the latent keeps its T frames. noise: standard normal
        noise for the two samples, in place of drawing it.
        """
        with self._without_idle_gradients(video):
            return self._posterior(video, text, sample_posterior, mask_temporal, generator, noise)

    def _posterior(
        self,
        video: Tensor,
        text: Text | None,
        sample_posterior: bool,
        mask_temporal: bool,
        generator: torch.Generator | None,
        noise: Noise | None,
    ) -> DiagonalGaussianDistribution:
        temporal = self.temporal_branches and not mask_temporal
        first = DiagonalGaussianDistribution(self.spatial_moments(video, text, temporal))
        noise_first, noise_second = noise if noise is not None else (None, None)
        if sample_posterior:
            first.latent = first.sample(noise_first, generator)
        if mask_temporal:
            return first
        (temporal,) = self.temporal
        posterior = DiagonalGaussianDistribution(temporal(first.latent, text))
        posterior.first = first
        if sample_posterior:
            posterior.latent = posterior.sample(noise_second, generator)
        return posterior


class Decoder2plus1D(Stage):
    """Latent (B, z, T/4, H/8, W/8) -> video (B, 3, T, H, W), not clamped."""

    def __init__(
        self, settings: SpatialSettings, temporal: nn.Module, quant_conv: nn.Module | None, prune_unused: bool = True
    ) -> None:
        super().__init__([module for module in (temporal, quant_conv) if module is not None])
        self.temporal = [temporal]
        self.quant_conv = [quant_conv] if quant_conv is not None else []
        self.z_channels = settings.z_channels
        widths = [settings.ch * factor for factor in settings.ch_mult]
        self.conv_in = SpatialConv(settings.z_channels, widths[-1])
        self.mid = Middle(widths[-1], settings, prune_unused)
        self.up = nn.ModuleList()
        for index, width in enumerate(widths):
            incoming = widths[min(index + 1, len(widths) - 1)]
            patch = settings.text_patch(index)
            level = Level(incoming, width, settings.num_res_blocks + 1, patch, settings, prune_unused)
            if index > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = Normalize(widths[0])
        self.conv_out = SpatialConv(widths[0], settings.out_ch)

    def frames(self, h: Tensor, text: Text | None = None, temporal: bool = True) -> Tensor:
        """First-stage latent (B, z, T, h, w) -> video (B, 3, T, H, W)."""
        for layer in self.quant_conv:
            h = layer(h)
        growth = max(1, self.conv_in.out_channels // h.shape[1])
        x = each(self._first, self._regroup([arrange(h)], growth))
        x = self._run(self.mid, x, temporal)
        for level in reversed(self.up):
            x = level(self._regroup(x), text, temporal, self._run)
            if hasattr(level, "upsample"):
                x = level.upsample(self._regroup(x, growth=4))
        return self._output(x, self.norm_out, self.conv_out)

    def forward(self, latent: Tensor, text: Text | None = None, mask_temporal: bool = False) -> Tensor:
        with self._without_idle_gradients(latent):
            if mask_temporal:
                return self.frames(latent, text, temporal=False)
            (temporal,) = self.temporal
            return self.frames(temporal(latent, text), text, self.temporal_branches)
