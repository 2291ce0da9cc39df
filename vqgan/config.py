"""What defines a VQGAN, and what its two stages minimise."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from losses.ramp import linear_ramp
from videodata.errors import UserError
from videodata.splits import SPLITS

QUANTIZERS = ("ema", "fsq", "lfq")
UPSAMPLINGS = ("transpose", "nearest")


@dataclass(frozen=True)
class VQGANConfig:
    """Encoder, quantiser and decoder. Raises UserError for values that do not fit together."""

    hidden_dims: tuple[int, ...] = (64, 128, 256, 512)  # channels from full resolution to the lowest
    latent_dim: int = 32
    num_embeddings: int = 512  # codes
    downsample_factor: int = 4  # pixels per latent position, along each side; a power of two
    quantizer: str = "ema"
    commitment_cost: float = 0.25
    decay: float = 0.99  # of the codebook's running means
    dead_code_fraction: float = 0.1  # share of the mean usage below which a code is revived; 0: never
    fsq_levels: tuple[int, ...] = ()  # quantizer fsq: levels per channel; empty: chosen for num_embeddings
    attention_heads: int = 4
    upsample: str = "transpose"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise UserError(f"unknown quantizer {self.quantizer!r}; choose one of {', '.join(QUANTIZERS)}")
        if self.upsample not in UPSAMPLINGS:
            raise UserError(f"unknown upsampling {self.upsample!r}; choose one of {', '.join(UPSAMPLINGS)}")
        if not self.hidden_dims or self.downsample_factor not in (allowed := self.possible_factors()):
            raise UserError(
                f"downsample_factor {self.downsample_factor} needs more than {len(self.hidden_dims)} hidden_dims; "
                f"choose one of {', '.join(map(str, allowed))}, or give more hidden_dims"
            )
        if self.quantizer == "fsq" and self.fsq_levels and math.prod(self.fsq_levels) != self.num_embeddings:
            raise UserError(
                f"fsq_levels {self.fsq_levels} make {math.prod(self.fsq_levels)} codes, not num_embeddings "
                f"{self.num_embeddings}; set num_embeddings to their product"
            )
        if self.quantizer == "fsq" and not self.fsq_levels:
            fsq_levels_for(self.num_embeddings)
        if self.quantizer == "lfq" and self.num_embeddings & (self.num_embeddings - 1):
            raise UserError(f"quantizer lfq needs a power of two of codes, found num_embeddings {self.num_embeddings}")

    def possible_factors(self) -> list[int]:
        """Downsampling factors that this many widths allow."""
        return [2**halvings for halvings in range(len(self.hidden_dims))]

    @property
    def halvings(self) -> int:
        """How often the resolution is halved; the first transitions between widths do it."""
        return self.downsample_factor.bit_length() - 1

    def attends(self, level: int) -> bool:
        """Whether the transition `level` from one width to the next one has attention: the last one, at the latents."""
        return level == len(self.hidden_dims) - 2


def fsq_levels_for(size: int) -> list[int]:
    """Levels of 8, 4 and 16 that multiply to a power of two, such as 8 8 8 for 512. Raises UserError for others."""
    bits = size.bit_length() - 1
    if size != 2**bits or bits < 4:
        raise UserError(f"quantizer fsq with {size} codes needs fsq_levels whose product is {size}")
    eights, rest = divmod(bits, 3)
    return {0: [8] * eights, 1: [8] * (eights - 1) + [4, 4], 2: [8] * eights + [4]}[rest]


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


def add_model_arguments(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """Flags that name the model; its sizes are needed for bare weights only, other files know them."""
    parser.add_argument("--checkpoint", default=checkpoint, help="best_model_*.pt, run folder, or bare weights")
    group = parser.add_argument_group("model, for bare weights alone")
    group.add_argument("--hidden_dims", type=int, nargs="+", help="widths, top to bottom")
    group.add_argument("--latent_dim", type=int, help="channels of a code")
    group.add_argument("--num_embeddings", type=int, help="number of codes")
    group.add_argument("--downsample_factor", type=int, help="pixels per code along each side")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--gpu", type=int, default=0, help="number of the GPU, where there is one")
    parser.add_argument("--no_cuda", action="store_true", help="same as --device cpu")


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name the data; the grid is that of the training unless given."""
    parser.add_argument("--data_path", default="data/UCFData", help="folder of batch files, or any source of clips")
    parser.add_argument("--patch_size", type=int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=int, help="patches below each other (default: as in training)")
    parser.add_argument("--num_patches_w", type=int, help="patches beside each other (default: as in training)")


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a part of the data."""
    parser.add_argument("--batch_idx", type=int, default=0, help="number of the batch file")
    parser.add_argument("--split", choices=SPLITS, help="part of data that is not in batch files (default: all of it)")
