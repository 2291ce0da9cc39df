"""The VQGAN of taming-transformers and latent-diffusion, with the keys of the published files.

Esser et al. 2021 (arXiv 2012.09841), Rombach et al. 2022 (arXiv 2112.10752): the first stages vq-f8, vq-f16 and any
other `ddconfig`. Axes: N frames, H W pixels, D latent channels, h w latent positions, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training.checkpoint import strict_load
from training.config import from_dict, unknown_key
from videodata.errors import UserError
from vqgan.ldm_networks import DDConfig, Decoder, Encoder
from vqgan.ldm_quantizer import LDMQuantizer
from vqgan.model import Reconstruction, check_frames
from vqgan.weights import published_weights


def _published(resolution: int, ch_mult: tuple[int, ...], attention: int, channels: int) -> dict[str, Any]:
    ddconfig = {"z_channels": channels, "resolution": resolution, "ch": 128, "ch_mult": ch_mult, "num_res_blocks": 2}
    return {"ddconfig": {**ddconfig, "attn_resolutions": (attention,)}, "n_embed": 16384, "embed_dim": channels}


LDM_CONFIGS = {
    "f8_small": _published(64, (1, 2, 2, 4), 16, 4),
    "f8": _published(256, (1, 2, 2, 4), 32, 4),
    "f16": _published(256, (1, 1, 2, 2, 4), 16, 8),
}


class LDMVQModel(nn.Module):
    """First stage of latent diffusion with vector quantisation: frames (N, 3, H, W) in [-1, 1], output not bounded.

    `ddconfig`: the fields of DDConfig. `encode` gives latents that are not quantised; `decode` quantises first.
    Raises UserError for a configuration with unknown, missing or impossible values.
    """

    def __init__(
        self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int, commitment_cost: float = 0.25
    ) -> None:
        super().__init__()
        shape = {key: value for key, value in ddconfig.items() if key not in ("n_embed", "embed_dim")}
        self.ddconfig = from_dict(DDConfig, shape, "ddconfig")
        if self.ddconfig.double_z:
            raise UserError("ddconfig.double_z: a quantised model has no variance; set it to false")
        self.encoder = Encoder(self.ddconfig)
        self.decoder = Decoder(self.ddconfig)
        self.quantize = LDMQuantizer(n_embed, embed_dim, commitment_cost)  # (h) -> (quantised h, indices)
        self.quant_conv = nn.Conv2d(self.ddconfig.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, self.ddconfig.z_channels, 1)

    @classmethod
    def from_name(cls, name: str) -> LDMVQModel:
        """One of the published architectures, a key of LDM_CONFIGS. Raises UserError for another name."""
        if name not in LDM_CONFIGS:
            raise unknown_key(name, LDM_CONFIGS, "LDM configuration")
        return cls(**LDM_CONFIGS[name])

    @property
    def quantizer(self) -> LDMQuantizer:
        """The quantiser, under the name that VQGAN gives it."""
        return self.quantize

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.ddconfig.ch_mult) - 1)

    @property
    def num_embeddings(self) -> int:
        """Number of codes."""
        return self.quantize.size

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the two losses of a GAN are balanced."""
        return self.decoder.conv_out.weight

    def forward(self, frames: Tensor, bypass: bool = False) -> Reconstruction:
        """One pass for training; `bypass` decodes the latents themselves."""
        latents = self.encode(frames)
        quantized = self.quantize.bypass(latents) if bypass else self.quantize.with_loss(latents)
        decoded = self.decode(quantized.latents, force_not_quantize=True)
        return Reconstruction(decoded, latents, quantized.indices, quantized.loss)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> latents (N, D, h, w), not quantised."""
        check_frames(frames, self.downsample_factor)
        return self.quant_conv(self.encoder(frames))

    def latents(self, frames: Tensor) -> Tensor:
        """`encode`, under the name that VQGAN gives it."""
        return self.encode(frames)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents (N, D, h, w) -> frames (N, 3, H, W), by way of the nearest codes unless `force_not_quantize`."""
        codes = h if force_not_quantize else self.quantize(h)[0]
        return self.decoder(self.post_quant_conv(codes))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> frames (N, 3, H, W)."""
        return self.decode(self.quantize.lookup(indices.long()), force_not_quantize=True)

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass in place of keeping them: less memory, same values."""
        self.encoder.checkpointing = self.decoder.checkpointing = enabled

    def configuration(self) -> dict[str, Any]:
        """Plain values from which `LDMVQModel(**values)` makes the same network."""
        ddconfig = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.ddconfig).items()}
        quantize = self.quantize
        return {
            "ddconfig": ddconfig,
            "n_embed": quantize.size,
            "embed_dim": quantize.codebook_dim,
            "commitment_cost": quantize.commitment_cost,
        }

    def load_published(self, path: str | Path) -> None:
        """Load a published file: its `state_dict`, without the `loss.*` keys of the training.

        Raises UserError naming missing, unexpected and misshapen keys; then nothing is loaded.
        """
        strict_load(self, published_weights(Path(path)), path)
