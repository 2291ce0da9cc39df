"""What a tokenizer is trained to minimise (the objective of microsoft/VidTok, in the form of Esser et al. 2021).

    total = nll + weight * g + kl_weight * KL + aux_weight * auxiliary loss of the codes
    nll   = sum(error / exp(logvar) + logvar) / N           error: |x - y|, and the perceptual distance at each pixel

g is the discriminator's opinion, from step disc_start on; before that, nothing of the discriminator is computed. Axes:
B clips, T frames, N = B T frames, C, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.adversarial import NORMS, LeCam, PatchGAN2D, PatchGAN3D, adaptive_weight, discriminator_loss
from videodata.errors import UserError

DISCRIMINATORS = {"2d": PatchGAN2D, "3d": PatchGAN3D}
PIXEL_LOSSES = ("l1", "l2")
GENERATOR_LOSSES = ("cross_entropy", "hinge")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms: the part `objective` of a configuration. Raises UserError for impossible values."""

    pixel_loss: str = "l1"  # or l2: squares
    perceptual_weight: float = 1.0
    learn_logvar: bool = True
    kl_weight: float = 1e-6
    aux_weight: float = 1.0
    disc_weight: float = 0.2  # 0: there is no discriminator
    disc_start: int = 10_000  # optimiser step; the original's 20001 counts the steps of both optimisers
    disc_type: str = "2d"  # of frames, or 3d: of clips
    disc_norm: str = "batch"  # of each process by itself; group, spectral or none see no difference
    generator_loss: str = "cross_entropy"  # of the mean logit of each frame, or hinge
    lecam_weight: float = 0.005

    def __post_init__(self) -> None:
        choices = (
            ("pixel_loss", PIXEL_LOSSES), ("disc_type", tuple(DISCRIMINATORS)), ("disc_norm", NORMS),
            ("generator_loss", GENERATOR_LOSSES),
        )  # fmt: skip
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UserError(f"objective.{name} must be {' or '.join(known)}, found {getattr(self, name)!r}")
        for name in ("perceptual_weight", "kl_weight", "aux_weight", "disc_weight", "disc_start", "lecam_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"objective.{name} must not be negative, found {getattr(self, name)}")

    def build_discriminator(self) -> nn.Module | None:
        """The discriminator, with the start values of pix2pix; None where nothing is asked of it."""
        return DISCRIMINATORS[self.disc_type](norm=self.disc_norm) if self.disc_weight > 0 else None


class Objective(nn.Module):
    """The arithmetic, the learned log-variance of the pixels, and the running means of LeCAM."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.logvar = nn.Parameter(torch.tensor(0.0), requires_grad=config.learn_logvar)
        self.lecam = LeCam()

    def forward(self, video: Tensor, made: Tensor, distance: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Clips (B, C, T, H, W) and their reconstructions -> the negative log-likelihood per frame, and what to log.

        distance: perceptual distance of each frame (N,), which is added to the error of each of its pixels.
        """
        x, y = frames_of(video).float(), frames_of(made).float()
        error = (x - y).abs() if self.config.pixel_loss == "l1" else (x - y).square()
        terms = {"rec_loss": error.mean()}
        if distance is not None:
            error = error + self.config.perceptual_weight * distance.float().view(-1, 1, 1, 1)
            terms["p_loss"] = distance.mean()
        nll = (error / torch.exp(self.logvar) + self.logvar).sum() / len(x)
        return nll, {**terms, "nll_loss": nll, "logvar": self.logvar}

    def regularization(self, log: dict[str, Tensor]) -> Tensor | float:
        """The weighted terms of the latents, from what the tokenizer logs."""
        weights = {"kl_loss": self.config.kl_weight, "aux_loss": self.config.aux_weight}
        return sum(weight * log[name] for name, weight in weights.items() if name in log)

    def plays(self, step: int) -> bool:
        """Whether the discriminator takes part in an optimiser step."""
        return self.config.disc_weight > 0 and step >= self.config.disc_start

    def shown(self, video: Tensor) -> Tensor:
        """A clip (B, C, T, H, W) as the discriminator sees it."""
        return video if self.config.disc_type == "3d" else frames_of(video)

    def adversarial(self, nll: Tensor, logits: Tensor, last_layer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's term from the logits of its reconstructions (N, 1, h, w), its gradient at the last layer
        brought to disc_weight times that of the nll.
        """
        of_frame = logits.float().flatten(1).mean(dim=1)
        loss = F.softplus(-of_frame).mean() if self.config.generator_loss == "cross_entropy" else -of_frame.mean()
        weight = self.config.disc_weight * adaptive_weight(nll, loss, last_layer)
        return weight * loss, {"g_loss": loss, "d_weight": weight}

    def judged(self, logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss: hinge, and LeCAM."""
        loss = discriminator_loss(logits_real, logits_fake, "hinge")
        lecam = self.lecam(logits_real, logits_fake)
        terms = {"hinge_loss": loss, "lecam_loss": lecam}
        terms |= {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return loss + self.config.lecam_weight * lecam, terms


def frames_of(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)
