"""The weights and the likelihood part of the objective (Esser et al. 2021, arXiv 2012.09841; Rombach et al. 2022).

    total = nll + kl_weight * KL + d_weight * disc_factor * g          the last term from step disc_start on

The perceptual network and the discriminator are the trainer's; here is the arithmetic and what the checkpoints call
`loss.logvar`. Axes: N frames (B * T of them), C, H, W.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import VVAEError

KINDS = ("hinge", "vanilla")
PIXEL_LOSSES = ("l1", "l2")


class LPIPSWithDiscriminator(nn.Module):
    """Objective with a discriminator of frames. Arguments have the names of the published configurations.

    disc_start: optimiser step from which the discriminator takes part. The steps of the original's configurations
    count both optimisers, so that its 50001 are about 25,000 of these. pixel_weight, pixel_loss (l1, or l2: squares),
    kl_weight_spatial (weight of the first stage's KL) and learn_logvar are additions; at their defaults they change
    nothing.
    """

    dimensions: ClassVar[int] = 2

    def __init__(
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        disc_loss: str = "hinge",
        disc_norm: str = "batch",
        pixel_weight: float = 1.0,
        pixel_loss: str = "l1",
        kl_weight_spatial: float = 0.0,
        learn_logvar: bool = False,
        pixelloss_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        max_bs: int | None = None,
    ) -> None:
        super().__init__()
        if use_actnorm or disc_conditional or disc_in_channels != 3:
            raise VVAEError("loss: use_actnorm, disc_conditional and disc_in_channels other than 3 are not supported")
        if disc_loss not in KINDS:
            raise VVAEError(f"loss: disc_loss must be one of {', '.join(KINDS)}, found {disc_loss!r}")
        if pixel_loss not in PIXEL_LOSSES:
            raise VVAEError(f"loss: pixel_loss must be one of {', '.join(PIXEL_LOSSES)}, found {pixel_loss!r}")
        self.disc_start = disc_start
        self.kl_weight, self.kl_weight_spatial = kl_weight, kl_weight_spatial
        self.pixel_weight, self.perceptual_weight = pixel_weight, perceptual_weight
        self.pixel_loss = pixel_loss
        self.disc_num_layers, self.disc_norm, self.disc_loss = disc_num_layers, disc_norm, disc_loss
        self.disc_factor, self.disc_weight = disc_factor, disc_weight
        self.perceptual_chunk = max_bs
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)), requires_grad=learn_logvar)
        self.learn_logvar = learn_logvar

    def forward(self, frames: Tensor, reconstruction: Tensor, distance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood per frame and mean reconstruction error, two scalars, of frames (N, C, H, W).

        distance: perceptual distance of each frame (N,), which is added to the error of each of its pixels.
        """
        difference = frames.float() - reconstruction.float()
        error = self.pixel_weight * (difference.abs() if self.pixel_loss == "l1" else difference.square())
        if distance is not None:
            error = error + self.perceptual_weight * distance.float().view(-1, 1, 1, 1)
        nll = error / torch.exp(self.logvar) + self.logvar
        return nll.sum() / len(frames), error.mean()

    def shown(self, video: Tensor) -> Tensor:
        """A clip (B, C, T, H, W) as the discriminator sees it."""
        return flatten_frames(video)


class LPIPSWithDiscriminator3D(LPIPSWithDiscriminator):
    """The same with a discriminator of clips."""

    dimensions = 3

    def shown(self, video: Tensor) -> Tensor:
        return video


def flatten_frames(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)
