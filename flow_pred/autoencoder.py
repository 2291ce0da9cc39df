"""The autoencoder under a predictor: any of seven types by its configuration, all with encode and decode, and the
simple VQVAE (`type: ours`), whose latents have 1/8 of the frames' size unless it is told otherwise.

Axes: N frames, C latent channels, H W pixels, h w = H / 8, W / 8. State-dict keys of the VQVAE are the original's; its
`bn` layers are group norms all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flow_pred.batch_norm import SharedBatchNorm2d
from flow_pred.checkpoints import autoencoder_weights
from training.checkpoint import strict_load
from training.config import load_config, unknown_key
from training.tokenizer import Tokenizer, decode_array, open_tokenizer
from videodata.errors import UserError
from videodata.finite import finite

CODEBOOK_WEIGHT = 0.25  # of the codebook's term; 1 for the commitment term ("legacy" order)
GROUPS = 32
SLOPE = 0.2


def build_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    """A module with encode(images (N, 3, H, W) in [-1, 1]) -> latents (N, C, h, w), and decode, their inverse.

    config: `type`, optionally `ckpt_path`, and the settings of the type; those of another type change nothing, so that
    `type` can be set on top of any configuration. Latents are continuous; the types with a codebook quantise before
    they decode. Raises UserError for an unknown type or setting and for a file that does not fit.
    """
    settings = {key: value for key, value in config.items() if value is not None}
    kind, path = settings.pop("type", None), settings.pop("ckpt_path", None)
    if kind not in BUILDERS:
        raise unknown_key(str(kind), BUILDERS, "autoencoder type")
    module = BUILDERS[kind](settings_of(kind, settings), path)
    return module.eval().requires_grad_(False)


def settings_of(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the type reads. Raises UserError for one that no type reads."""
    read, known = dict(SETTINGS), {key for keys in SETTINGS.values() for key in keys}
    if kind == "vqgan" or not known.issuperset(settings):
        from vqgan.files import VQGAN_KEYS

        read["vqgan"] = VQGAN_KEYS
        known.update(VQGAN_KEYS)
    for key in settings:
        if key not in known:
            raise unknown_key(key, known, "setting of model.autoencoder")
    return {key: value for key, value in settings.items() if key in read[kind]}


def build_ours(settings: dict[str, Any], path: str | None) -> nn.Module:
    try:
        model = SimpleVQVAE(**settings)
    except TypeError as error:
        raise UserError(f"autoencoder of type ours: {error}; see configs/flow_pred for its keys") from error
    if path:
        strict_load(model, autoencoder_weights(path, "ours"), path)
    return model


def build_ldm_vq(settings: dict[str, Any], path: str | None) -> nn.Module:
    """VQGAN of latent diffusion: a published size by `config`, or any by `ddconfig`, `n_embed` and `embed_dim`."""
    from vqgan import LDMVQModel

    if "ddconfig" in settings:
        model = LDMVQModel(**{key: value for key, value in settings.items() if key != "config"})
    else:
        model = LDMVQModel.from_name(str(settings.get("config")))
    if path:
        strict_load(model, autoencoder_weights(path, "ldm-vq"), path)
    return model


def build_vqgan(settings: dict[str, Any], path: str | None) -> nn.Module:
    """A VQGAN of ours: from `ckpt_path`, which knows its configuration, or from the settings."""
    from vqgan.files import build_model, load_model
    from vqgan.ldm import LDMVQModel

    model = load_model(path, config=settings or None)[0] if path else build_model(settings)
    return model if isinstance(model, LDMVQModel) else ContinuousVQGAN(model)


def build_vvae(settings: dict[str, Any], path: str | None) -> nn.Module:
    """The VideoVAE+ model by its own configuration file (`config`), weights from `ckpt_path`."""
    from vvae import VVAEError, instantiate_from_config, load_checkpoint

    if "config" not in settings:
        raise UserError("autoencoder type vvae needs `config`, such as vvae/configs/config_4z.yaml")
    model = instantiate_from_config(load_config(settings["config"])["model"])
    if path:
        try:
            load_checkpoint(model, path)
        except VVAEError as error:
            raise UserError(f"{path}: does not fit {settings['config']}: {error}") from error
    return FrameVVAE(model)


def build_sd_vae(settings: dict[str, Any], path: str | None) -> nn.Module:
    """The KL autoencoder of Stable Diffusion from a local folder (`ckpt_path`), through the package diffusers."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("autoencoder type sd-vae-ft-mse needs the package diffusers: pip install diffusers") from error
    folder = Path(path or "stabilityai/sd-vae-ft-mse")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; download stabilityai/sd-vae-ft-mse there, or name it in ckpt_path")
    model = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    return KLAutoencoder(model)


def build_tokenizer_autoencoder(settings: dict[str, Any], path: str | None) -> nn.Module:
    """Any tokenizer that gives latents, by what `training.tokenizer.open_tokenizer` takes."""
    if path is None:
        raise UserError("autoencoder type tokenizer needs ckpt_path, or --tokenizer: its run folder or file")
    return TokenizerAutoencoder(open_tokenizer(path, "latents"))


class TokenizerAutoencoder(nn.Module):
    """A tokenizer of latents; one with a time factor takes whole clips, which have fewer latents than frames."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.backbone = tokenizer, tokenizer.module

    def encode(self, images: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> latents (N, C, h, w). Raises UserError where they belong to whole clips."""
        if self.tokenizer.time_factor > 1:
            raise UserError("this tokenizer encodes clips, not single frames; scripts/encode.py stores their latents")
        return self.encode_clip(images[:, :, None])[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> images (N, 3, H, W); of a latent of several frames the first one."""
        return self.decode_clip(latents[:, None])[:, :, 0]

    def encode_clip(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> latents (B, t, C, h, w)."""
        return self.tokenizer.encode(clips).movedim(-1, 2)

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Latents (B, t, C, h, w) -> clips (B, 3, T, H, W)."""
        return decode_array(self.tokenizer, latents.movedim(2, -1))


class Identity(nn.Module):
    """Latents are the frames themselves."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class ContinuousVQGAN(nn.Module):
    """Our VQGAN with latents before quantisation; decoding quantises first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        return self.model.latents(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(self.model.quantize(latents)[0])


class FrameVVAE(nn.Module):
    """The video VAE in its image mode: each frame by itself, the posterior's mean as its latent."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images[:, :, None], mask_temporal=True).mode()[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents[:, :, None], mask_temporal=True)[:, :, 0]


class KLAutoencoder(nn.Module):
    """An AutoencoderKL of diffusers; a latent is the posterior's mean (the original draws from the posterior)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model

    def encode(self, images: Tensor) -> Tensor:
        return self.backbone.encode(images).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents).sample


SETTINGS: dict[str, tuple[str, ...]] = {
    "ours": ("encoder", "decoder", "vector_quantizer", "space_to_depth", "quantize"),
    "ldm-vq": ("config", "ddconfig", "n_embed", "embed_dim"),
    "vvae": ("config",),
    "sd-vae-ft-mse": (),
    "identity": (),
    "tokenizer": (),
}  # what each type reads besides ckpt_path; `vqgan`: what a VQGAN is configured by
BUILDERS: dict[str, Callable[[dict[str, Any], str | None], nn.Module]] = {
    "ours": build_ours,
    "ldm-vq": build_ldm_vq,
    "vqgan": build_vqgan,
    "vvae": build_vvae,
    "sd-vae-ft-mse": build_sd_vae,
    "identity": lambda settings, path: Identity(),
    "tokenizer": build_tokenizer_autoencoder,
}


class SimpleVQVAE(nn.Module):
    """Frames (N, 3, H, W) in [-1, 1] <-> continuous latents (N, C, H / 8, W / 8); decoding quantises them first.

    encoder, decoder: in_channels, out_channels, and optionally width (32), the channels at full resolution, and levels
    (3), how often the resolution is halved. vector_quantizer: num_embeddings, embedding_dimension. quantize=False:
    there is no codebook, and latents are decoded as they are. space_to_depth: squares of that many pixels a side
    become the channels of one place before the first convolution, and after the last one pixels again, so that no
    convolution works at full resolution: three quarters of the work of small networks is there.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        vector_quantizer: Mapping[str, Any] | None = None,
        space_to_depth: int = 1,
        quantize: bool = True,
    ) -> None:
        super().__init__()
        if quantize and vector_quantizer is None:
            raise UserError("autoencoder of type ours: needs vector_quantizer, or quantize: false")
        if space_to_depth < 1:
            raise UserError(f"autoencoder of type ours: space_to_depth must be at least 1, found {space_to_depth}")
        self.space_to_depth, area = space_to_depth, space_to_depth**2
        self.encoder = Encoder(**{**encoder, "in_channels": encoder["in_channels"] * area})
        self.decoder = Decoder(**{**decoder, "out_channels": decoder["out_channels"] * area})
        self.vector_quantizer = VectorQuantizer(**vector_quantizer) if quantize else None

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> continuous latents (N, C, h, w)."""
        return self.encoder(F.pixel_unshuffle(images, self.space_to_depth))

    @property
    def shrink(self) -> int:
        """Pixels of a side for each latent."""
        return self.space_to_depth * 2 ** len(self.encoder.residuals)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a frame."""
        return self.encoder.out_conv.out_channels, height // self.shrink, width // self.shrink

    def paint(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> images, without the codebook."""
        return F.pixel_shuffle(self.decoder(latents), self.space_to_depth)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents -> nearest codes (N, C, h, w) and their ids (N, h, w)."""
        ids = self.vector_quantizer.nearest(latents)
        return self.vector_quantizer.look_up(ids), ids

    def decode(self, latents: Tensor) -> Tensor:
        """Continuous latents (N, C, h, w) -> images; ids (N, h, w) or one-hot (N, h, w, codes) are accepted too."""
        if self.vector_quantizer is None:
            return self.paint(latents)
        codes = self.vector_quantizer.embedding.num_embeddings
        if latents.ndim == 3 or latents.shape[-1] == codes:
            return self.paint(self.vector_quantizer.look_up(latents))
        return self.paint(self.quantize(latents)[0])

    def forward(
        self, images: Tensor, shares: Tensor | None = None, quantise: bool = True, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) -> reconstruction, latents before quantisation, quantiser loss of each frame (N,).

        shares (M,) in [0, 1], N = 2 M: M more reconstructions follow, of the latents that lie between those of image
        m and of image M + m. quantise=False decodes the latents themselves. noise (N, C, h, w), in units of the
        spread of each image's latents, is added to what is decoded of them.
        """
        latents = self.encode(images)
        if self.vector_quantizer is None:
            quantise, quantised, loss = False, latents, latents.new_zeros(len(images))
        elif quantise:
            quantised, _, loss = self.vector_quantizer(latents)
        else:  # the codes take part all the same: training in several processes waits for the gradient of every weight
            quantised, loss = latents, 0 * self.vector_quantizer.embedding.weight.sum().expand(len(images))
        if shares is not None:
            start, end = latents.chunk(2)
            between = torch.lerp(start, end, shares.view(-1, 1, 1, 1).to(start))  # in bf16, too
            between = self.vector_quantizer(between)[0] if quantise else between
            quantised = torch.cat([quantised, between])
        if noise is not None:
            spread = latents.detach().flatten(1).std(1).view(-1, 1, 1, 1)
            noisy = quantised[: len(images)] + spread * noise
            quantised = torch.cat([noisy, quantised[len(images) :]])
        return self.paint(quantised), latents, loss


class VectorQuantizer(nn.Module):
    """The codebook."""

    def __init__(self, num_embeddings: int, embedding_dimension: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dimension)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)

    def nearest(self, latents: Tensor) -> Tensor:
        """Number of the code nearest to each latent vector, (N, C, h, w) -> int64 (N, h, w)."""
        latents = latents if self.training else finite(latents, "latents before the codebook")
        vectors = latents.movedim(1, -1).float()  # (N, h, w, C)
        codes = self.embedding.weight.float()
        # |v - c|^2 without |v|^2, which is the same for all codes
        distance = codes.square().sum(1) - 2 * vectors.flatten(0, 2) @ codes.T  # (N * h * w, codes)
        return distance.argmin(1).view(vectors.shape[:3])

    def look_up(self, ids: Tensor) -> Tensor:
        """Codes (N, C, h, w) of ids int (N, h, w), or of their one-hot form (N, h, w, codes)."""
        if ids.ndim == 4:
            ids = ids.argmax(-1)
        return self.embedding(ids).movedim(-1, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents -> quantised latents with the gradient of the latents, ids (N, h, w), loss of each frame (N,)."""
        ids = self.nearest(latents)
        codes = self.look_up(ids)
        loss = (codes.detach() - latents).square() + CODEBOOK_WEIGHT * (codes - latents.detach()).square()
        return latents + (codes - latents).detach(), ids, loss.flatten(1).mean(1)


class AttentionStack(nn.Module):
    """What encoder and decoder share at the lowest resolution: a residual block, attention, a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_attn_residual = ResidualBlock(channels, channels)
        self.attn_norm = norm(channels)
        self.attn = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)
        self.post_attn_residual = ResidualBlock(channels, channels)

    def attend(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        x = self.pre_attn_residual(x)
        tokens = self.attn_norm(x).flatten(2).transpose(1, 2)  # (N, h * w, C)
        attended, _ = self.attn(tokens, tokens, tokens, need_weights=False)
        return self.post_attn_residual(x + attended.transpose(1, 2).view_as(x))


class Encoder(AttentionStack):
    """Images (N, 3, H, W) -> latents (N, C, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 32, levels: int = 3) -> None:
        widths = [width * 2**level for level in range(levels + 1)]
        super().__init__(widths[-1])
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.residuals = nn.Sequential(*(ResidualBlock(c, 2 * c, 2) for c in widths[:-1]))
        self.out_norm = norm(widths[-1])
        self.out_conv = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.attend(self.residuals(self.conv_in(images)))
        return self.out_conv(F.silu(self.out_norm(x)))


class Decoder(AttentionStack):
    """Latents (N, C, h, w) -> images (N, 3, H, W) in [-1, 1]."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 32, levels: int = 3) -> None:
        widths = [width * 2**level for level in range(levels, -1, -1)]
        super().__init__(widths[0])
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.residuals = nn.Sequential(*(nn.Sequential(ResidualBlock(c, c // 2), UpBlock(c // 2)) for c in widths[:-1]))
        self.out_norm = norm(width)
        self.out_conv = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.residuals(self.attend(self.conv_in(latents)))
        return self.out_conv(F.silu(self.out_norm(x))).tanh()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; average pooling by `factor`."""

    def __init__(self, channels_in: int, channels_out: int, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = norm(channels_out)
        self.downsample = None
        if channels_in != channels_out or factor > 1:
            project = nn.Conv2d(channels_in, channels_out, 1, bias=False)
            self.downsample = nn.Sequential(project, nn.AvgPool2d(factor), norm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if self.factor > 1:
            y = F.avg_pool2d(y, self.factor)
        y = self.bn2(self.conv2(F.leaky_relu(self.bn1(y), SLOPE)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.leaky_relu(y + shortcut, SLOPE)


class UpBlock(nn.Module):
    """Nearest upsampling by 2 and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = SharedBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))), SLOPE)


def norm(channels: int) -> nn.GroupNorm:
    """Group norm, with fewer groups where 32 do not divide the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=1e-6)
