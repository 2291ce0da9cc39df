"""The autoencoder under a predictor, chosen by its configuration; all have one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from flow_pred.checkpoints import autoencoder_weights
from flow_pred.vqvae import SimpleVQVAE
from training.config import unknown_key
from training.strict_load import strict_load
from videodata.errors import UserError

LDM_VQ = {
    "f8_small": {"z_channels": 4, "resolution": 64, "ch_mult": (1, 2, 2, 4), "attn_resolutions": (16,)},
    "f8": {"z_channels": 4, "resolution": 256, "ch_mult": (1, 2, 2, 4), "attn_resolutions": (32,)},
    "f16": {"z_channels": 8, "resolution": 256, "ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,)},
}
LDM_CODES = 16384
POSTERIOR_SEED = 0  # of the fixed noise of the KL autoencoder's latents


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
        return self.model.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(self.model.quantizer(latents).z_q)


def build_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    """A module with encode(images (N, 3, H, W) in [-1, 1]) -> latents (N, C, h, w), and decode, their inverse.

    config: `type`, optionally `ckpt_path`, and the settings of the type. Latents are continuous; the types with a
    codebook quantise before they decode. Raises UserError for an unknown type or a file that does not fit.
    """
    settings = dict(config)
    kind, path = settings.pop("type", None), settings.pop("ckpt_path", None)
    if kind not in BUILDERS:
        raise unknown_key(str(kind), BUILDERS, "autoencoder type")
    module = BUILDERS[kind](settings, path)
    return module.eval().requires_grad_(False)


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
    """VQGAN of latent diffusion: one of the published sizes by `config`, or any by `ddconfig`, n_embed, embed_dim."""
    from vqgan import LDMVQModel

    if "ddconfig" in settings:
        model = LDMVQModel(**settings)
    else:
        size = str(settings.get("config"))
        if size not in LDM_VQ:
            raise unknown_key(size, LDM_VQ, "config of autoencoder type ldm-vq")
        model = LDMVQModel(ldm_settings(size), n_embed=LDM_CODES, embed_dim=LDM_VQ[size]["z_channels"])
    if path:
        strict_load(model, autoencoder_weights(path, "ldm-vq"), path)
    return model


def ldm_settings(size: str) -> dict[str, Any]:
    """The complete `ddconfig` of a published size."""
    common = {"double_z": False, "in_channels": 3, "out_ch": 3, "ch": 128, "num_res_blocks": 2, "dropout": 0.0}
    return {**common, **{key: list(v) if isinstance(v, tuple) else v for key, v in LDM_VQ[size].items()}}


BUILDERS: dict[str, Callable[[dict[str, Any], str | None], nn.Module]] = {
    "ours": build_ours,
    "ldm-vq": build_ldm_vq,
    "identity": lambda settings, path: Identity(),
}
