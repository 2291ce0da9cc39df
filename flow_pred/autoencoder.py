"""The autoencoder under a predictor, chosen by its configuration; all have one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flow_pred.checkpoints import autoencoder_weights
from flow_pred.vqvae import SimpleVQVAE
from training.config import load_config, unknown_key
from training.strict_load import strict_load
from videodata.errors import UserError


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
    """The simple VQVAE."""
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

    model = load_model(path, settings or None) if path else build_model(settings)
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


SETTINGS: dict[str, tuple[str, ...]] = {
    "ours": ("encoder", "decoder", "vector_quantizer"),
    "ldm-vq": ("config", "ddconfig", "n_embed", "embed_dim"),
    "vvae": ("config",),
    "sd-vae-ft-mse": (),
    "identity": (),
}  # what each type reads besides ckpt_path; `vqgan`: what a VQGAN is configured by
BUILDERS: dict[str, Callable[[dict[str, Any], str | None], nn.Module]] = {
    "ours": build_ours,
    "ldm-vq": build_ldm_vq,
    "vqgan": build_vqgan,
    "vvae": build_vvae,
    "sd-vae-ft-mse": build_sd_vae,
    "identity": lambda settings, path: Identity(),
}
