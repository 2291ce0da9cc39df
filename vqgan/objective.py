"""What the two stages minimise, and how fast."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from losses.ramp import linear_ramp
from videodata.errors import UserError

OPTIMIZERS = ("adam", "muon")
RECONSTRUCTIONS = ("mse", "l1")
GAN_LOSSES = {"hinge": "hinge", "bce": "non_saturating"}  # flag -> name in losses.adversarial
FIRST_DECAY = 0.8  # of the codebook's running means, right after the start


@dataclass(frozen=True)
class Objective:
    """Weights, schedules and learning rates of both stages. Steps are counted within a stage."""

    recon: str = "mse"
    perceptual_weight: float = 0.1
    adv_weight: float = 0.1
    gan_loss: str = "hinge"
    adaptive_weight: bool = True
    adaptive_max: float = 10.0  # largest adaptive weight; the published 1e4 lets it explode
    disc_start: int = 0  # first step of stage 2 at which the generator hears the discriminator
    disc_ramp: int = 1000  # steps from there to the full weight
    disc_limit: float = 0.8  # the discriminator rests while it tells a larger share of patches right; 1: never
    optimizer: str = "adam"  # of stage 1; or muon, which learns from fewer frames at the same lr
    lr: float = 1e-4  # stage 1
    lr_g: float = 5e-5  # stage 2, generator
    lr_d: float = 2e-4  # stage 2, discriminator
    vq_warmup: int = 500  # first steps of stage 1, in which the quantiser is bypassed
    decay_ramp: int = 2000  # steps over which the codebook's decay grows from 0.8

    def __post_init__(self) -> None:
        if self.recon not in RECONSTRUCTIONS:
            raise UserError(f"unknown reconstruction loss {self.recon!r}; choose one of {', '.join(RECONSTRUCTIONS)}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"unknown optimizer {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        if self.gan_loss not in GAN_LOSSES:
            raise UserError(f"unknown GAN loss {self.gan_loss!r}; choose one of {', '.join(GAN_LOSSES)}")

    def codebook_decay(self, step: int, final: float) -> float:
        """Decay of the codebook at a step of stage 1: fast while the latents move, slow later."""
        return FIRST_DECAY + (final - FIRST_DECAY) * linear_ramp(step, self.vq_warmup, self.decay_ramp)

    def adversarial_share(self, step: int) -> float:
        """Share of the adversarial weight that holds at a step of stage 2."""
        return linear_ramp(step, self.disc_start, self.disc_ramp)


def reconstruction_error(frames: Tensor, reconstruction: Tensor, kind: str) -> Tensor:
    """Error per frame, float32 (N,), of pixels in [0, 1]: the mean square ("mse") or the mean absolute value ("l1")."""
    difference = (reconstruction.float() - frames.float()) / 2  # [-1, 1] is twice as wide as [0, 1]
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=(1, 2, 3))
