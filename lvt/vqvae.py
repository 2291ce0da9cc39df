"""The frame-wise VQ-VAE whose codes the transformer models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.codebook import Quantizer
from lvt.convnets import Decoder, Encoder
from lvt.initialization import initialize_convolutions
from lvt.model_config import vqvae_config
from training.checkpoint import strict_load
from videodata.errors import UserError

NETWORKS = {"netE": "encoder", "netG": "decoder", "netC": "quantizer"}  # folder of the published files -> our name


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

    def normalize(self, frames_u8: Tensor) -> Tensor:
        """uint8 frames (N, 3, H, W) -> the encoder's input: (x / 255 - mean) / std, which is [-1, 1] by default."""
        return (frames_u8.float() / 255 - self.pixel_mean) / self.pixel_std

    def denormalize(self, frames: Tensor) -> Tensor:
        """The decoder's output (N, 3, H, W) -> [0, 1]."""
        return (frames * self.pixel_std + self.pixel_mean).clamp(0, 1)

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
        """uint8 frames (N, 3, H, W), or clips (B, T, 3, H, W), -> codes int64 (N, num, h, w), or (B, T, num, h, w).

        One codebook gives codes without the axis `num`. Floating-point frames are taken as normalised already.
        """
        if images.ndim not in (4, 5) or images.shape[-3] != self.config.encoder.in_channels:
            raise UserError(
                f"frames must be (N, {self.config.encoder.in_channels}, H, W) or (B, T, ...), found "
                f"{tuple(images.shape)}"
            )
        flat = images.flatten(0, -4)
        codes = self.quantizer.quantize(self.encoder(flat if flat.is_floating_point() else self.normalize(flat)))
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
