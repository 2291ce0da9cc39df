"""VideoVAE+ (arXiv 2412.17805): the whole autoencoder, its two stages joined, with tiling for clips of any size.

Axes: B samples, T frames, H and W pixels, z latent channels; a latent is (B, z, T/4, H/8, W/8).
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Saving, load_checkpoint, load_image_checkpoint
from ..distributions import DiagonalGaussianDistribution
from ..errors import VVAEError
from ..modules.ae_modules import TemporalBranch, pointwise
from ..modules.attention_temporal_videoae import TemporalAttention, Text
from ..modules.t5 import Captions
from ..tiling import FRAMES, LATENT, PIXEL, PIXELS, TiledCoding, Tiling, check_video
from .autoencoder import Decoder2plus1D, Encoder2plus1D, Noise
from .autoencoder_temporal import DecoderTemporal1DCNN, EncoderTemporal1DCNN
from .settings import ModelSettings, SpatialSettings, TemporalSettings, from_mapping

logger = logging.getLogger(__name__)
PUBLISHED_GROUPS = ModelSettings.norm_groups

# Keys of the published configurations that describe the training or are never used.
IGNORED_OPTIONS = {
    "monitor", "video_key", "image_key", "input_dim", "lossconfig", "img_video_joint_train", "logdir",
    "colorize_nlabels", "test_args",
}  # fmt: skip


class AutoencoderKL2plus1D_1dcnn(Saving, TiledCoding, Captions, nn.Module):
    """Video autoencoder: `encode` gives the posterior of a latent, `decode` the video of a latent.

    Built from `model.params` of a configuration file (`instantiate_from_config`). `ckpt_path`: weights to load; when
    the file is missing the weights stay random, with a warning; with `strict_ckpt` that is an error. `ckpt_path_2d`: an
    image autoencoder to start from. `prune_unused` leaves out parameters that nothing uses.
    """

    spatial_compression_ratio = PIXELS
    temporal_compression_ratio = FRAMES

    def __init__(
        self,
        ckpt_path: str | Path | None = None,
        ckpt_path_2d: str | Path | None = None,
        strict_ckpt: bool = False,
        prune_unused: bool = True,
        ignore_keys_3d: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = from_mapping(ModelSettings, settings, "model.params", IGNORED_OPTIONS)
        spatial = from_mapping(SpatialSettings, self.config.ddconfig, "ddconfig")
        temporal = from_mapping(TemporalSettings, self.config.ppconfig, "ppconfig", ["z_channels"])
        self.config.check_widths(spatial, temporal)
        weights = self.find_weights(ckpt_path, strict_ckpt)
        with torch.device("meta") if weights is not None else nullcontext():
            self._build(spatial, temporal, prune_unused)
        self._tiling: Tiling | None = None
        self._slicing = False
        self._range_checked = False
        if weights is not None:
            load_checkpoint(self, weights)
        if ckpt_path_2d is not None:
            load_image_checkpoint(self, ckpt_path_2d)

    def _build(self, spatial: SpatialSettings, temporal: TemporalSettings, prune_unused: bool) -> None:
        channels, factors = spatial.z_channels, tuple(temporal.attn_temporal_factor)
        if temporal.ch != (self.config.embed_dim if self.config.use_quant_conv else channels):
            raise VVAEError(f"ppconfig.ch {temporal.ch} must be the number of latent channels")
        if self.config.use_quant_conv:
            self.quant_conv = pointwise(2 * channels, 2 * self.config.embed_dim)
            self.post_quant_conv = pointwise(self.config.embed_dim, channels)
        self.encoder_temporal = EncoderTemporal1DCNN(temporal.ch, temporal.hidden_channel, factors)
        self.decoder_temporal = DecoderTemporal1DCNN(temporal.ch, temporal.hidden_channel, factors)
        quant, post_quant = getattr(self, "quant_conv", None), getattr(self, "post_quant_conv", None)
        self.encoder = Encoder2plus1D(spatial, self.encoder_temporal, quant, prune_unused)
        self.decoder = Decoder2plus1D(spatial, self.decoder_temporal, post_quant, prune_unused)
        self.encoder.z_channels = self.decoder.z_channels = temporal.ch
        if self.config.norm_groups != PUBLISHED_GROUPS:
            self._set_groups(self.config.norm_groups)

    def _set_groups(self, groups: int) -> None:
        """Fewer groups for narrow layers: with a channel each, a norm takes the clip's colours away. No weight tells
        how many there are, so that a buffer does."""
        self.register_buffer("norm_groups", torch.tensor(groups, device="cpu"))
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = min(groups, module.num_channels)

    # ------------------------------------------------------------------------------------------------ encode, decode

    def encode(
        self,
        video: Tensor,
        text_embeddings: Tensor | None = None,
        text_attn_mask: Tensor | None = None,
        sample_posterior: bool = False,
        mask_temporal: bool = False,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ) -> DiagonalGaussianDistribution:
        """Posterior of the latent of a clip (B, 3, T, H, W) or (3, T, H, W) in [-1, 1].

        The result also unpacks to `(latent, posterior)`. Both stages are taken at their mean, or sampled with
        `sample_posterior` (noise from `generator`, or given for the two stages). mask_temporal: image mode. T must be
        a multiple of 4, H and W of 8: VVAEError, a ValueError, otherwise.
        """
        video = video.unsqueeze(0) if video.dim() == 4 else video
        check_video(video, image=mask_temporal)
        self._warn_of_wrong_range(video)
        text = self.prepare_text(text_embeddings, text_attn_mask, video)

        options = (sample_posterior, mask_temporal, generator)
        if not self._slicing or len(video) == 1:
            return self._encode(video, text, noise, *options)
        parts = [self._encode(*sample, *options) for sample in split_batch(video, text, noise)]
        posterior = DiagonalGaussianDistribution(torch.cat([part.parameters for part in parts]))
        posterior.latent = torch.cat([part.latent for part in parts])
        return posterior

    def _encode(
        self,
        video: Tensor,
        text: Text | None,
        noise: Noise | None,
        sample_posterior: bool,
        mask_temporal: bool,
        generator: torch.Generator | None,
    ) -> DiagonalGaussianDistribution:
        """In one piece, or in tiles where tiling is on and the clip is larger than a tile."""
        options = (text, sample_posterior, mask_temporal, generator)
        cuts = self.plan(video.shape[2:], PIXEL, mask_temporal)
        if cuts is None:
            return self.encoder(video, *options, noise)
        if noise is not None:
            raise VVAEError("noise cannot be given for an encoding in tiles; pass a generator")
        moments = self.code_tiles(
            lambda part: self.encoder(part, *options).parameters, video, cuts, mask_temporal, decode=False
        )
        posterior = DiagonalGaussianDistribution(moments.to(video.dtype))
        if sample_posterior:
            posterior.latent = posterior.sample(generator=generator)
        return posterior

    def decode(
        self,
        latent: Tensor,
        text_embeddings: Tensor | None = None,
        text_attn_mask: Tensor | None = None,
        mask_temporal: bool = False,
        clamp: bool = False,
        return_dict: bool = False,
    ) -> Tensor | SimpleNamespace:
        """Video (B, 3, 4t, 8h, 8w) of a latent (B, z, t, h, w) or (z, t, h, w), in [-1, 1] but for overshoot.

        clamp: cut the overshoot. return_dict: the video as attribute `sample` of the result.
        """
        latent = latent.unsqueeze(0) if latent.dim() == 4 else latent
        if latent.dim() != 5 or latent.shape[1] != self.decoder.z_channels:
            raise VVAEError(f"a latent must be (B, {self.decoder.z_channels}, t, h, w), found {tuple(latent.shape)}")
        text = self.prepare_text(text_embeddings, text_attn_mask, latent)

        samples = split_batch(latent, text) if self._slicing else [(latent, text, None)]
        parts = [self._decode(part, own, mask_temporal) for part, own, _ in samples]
        video = parts[0] if len(parts) == 1 else torch.cat(parts)
        video = video.clamp(-1.0, 1.0) if clamp else video
        return SimpleNamespace(sample=video) if return_dict else video

    def _decode(self, latent: Tensor, text: Text | None, mask_temporal: bool) -> Tensor:
        cuts = self.plan(latent.shape[2:], LATENT, mask_temporal)
        if cuts is None:
            return self.decoder(latent, text, mask_temporal)
        video = self.code_tiles(
            lambda part: self.decoder(part, text, mask_temporal), latent, cuts, mask_temporal, decode=True
        )
        return video.to(latent.dtype)

    def forward(
        self,
        video: Tensor,
        text_embeddings: Tensor | None = None,
        text_attn_mask: Tensor | None = None,
        sample_posterior: bool = False,
        mask_temporal: bool = False,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstruction (B, 3, T, H, W) of a clip, and the posterior of its latent. Arguments as for `encode`."""
        # The class's methods: FSDP wraps those of the object, and would give back the parameters of a wrapped call in
        # another wrapped call too early in the backward pass.
        latent, posterior = type(self).encode(
            self, video, text_embeddings, text_attn_mask, sample_posterior, mask_temporal, generator, noise
        )
        return type(self).decode(self, latent, text_embeddings, text_attn_mask, mask_temporal), posterior

    def encode_image(self, images: Tensor, **options: Any) -> DiagonalGaussianDistribution:
        """Posterior (B, z, 1, H/8, W/8) of images (B, 3, H, W) or (B, 3, 1, H, W) in [-1, 1], each on its own."""
        images = images.unsqueeze(2) if images.dim() == 4 else images
        return self.encode(images, mask_temporal=True, **options)

    def decode_image(self, latent: Tensor, **options: Any) -> Tensor:
        """Images (B, 3, H, W) of latents (B, z, h, w) or (B, z, 1, h, w) of `encode_image`."""
        latent = latent.unsqueeze(2) if latent.dim() == 4 else latent
        return self.decode(latent, mask_temporal=True, **options)[:, :, 0]

    def _warn_of_wrong_range(self, video: Tensor) -> None:
        if self._range_checked or video.is_meta or torch.compiler.is_compiling():
            return
        self._range_checked = True
        low, high = (float(value) for value in torch.aminmax(video.detach()))
        if high > 1.5:
            logger.warning("the clip reaches %.0f: pixels look like [0, 255], but [-1, 1] is expected", high)
        elif low >= 0.0 and high > low:
            logger.warning("no value of the clip is negative: pixels look like [0, 1], but [-1, 1] is expected")

    # ---------------------------------------------------------------------------------------------------- switches

    def freeze(self) -> AutoencoderKL2plus1D_1dcnn:
        """Evaluation mode, and no parameter requires gradients. Returns the model."""
        return self.eval().requires_grad_(False)

    def enable_slicing(self) -> None:
        """Encode and decode the samples of a batch one by one."""
        self._slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self._slicing = False

    def enable_gradient_checkpointing(self) -> None:
        """In training, compute the activations of each block again in the backward pass in place of keeping them."""
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """In training, keep all activations."""
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = False

    def set_temporal_branches(self, enabled: bool) -> None:
        """Whether the layers over time of the first stage take part. They start at zero: until they are trained, a
        pass without them gives the same, at a third of the cost."""
        self.encoder.temporal_branches = self.decoder.temporal_branches = enabled

    def skip_idle_branches(self) -> None:
        """Leave those layers out if all of them are at zero still, as in a model that was trained for a short while."""
        kinds = {TemporalBranch: "conv", TemporalAttention: "proj_out"}
        last = [
            getattr(module, kinds[type(module)])
            for stage in (self.encoder, self.decoder)
            for module in stage.modules()
            if type(module) in kinds
        ]
        self.set_temporal_branches(any(bool(value.any()) for layer in last for value in layer.parameters()))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight on which adversarial training balances its gradients."""
        return self.decoder.conv_out.weight


def split_batch(
    x: Tensor, text: Text | None, noise: Noise | None = None
) -> list[tuple[Tensor, Text | None, Noise | None]]:
    """The samples of a batch, each with its own text and noise."""
    samples = []
    for index in range(len(x)):
        own = slice(index, index + 1)
        bias = None if text is None or text.bias is None else text.bias[own]
        caption = None if text is None else Text(text.embeddings[own], bias)
        samples.append((x[own], caption, None if noise is None else (noise[0][own], noise[1][own])))
    return samples
