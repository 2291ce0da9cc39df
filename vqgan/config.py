"""What defines a VQGAN, what its two stages minimise, and the flags that its scripts share.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

import losses
from training.cli import nonnegative_int, positive_int
from videodata.errors import UserError

QUANTIZERS = ("ema", "fsq", "lfq")
UPSAMPLINGS = ("transpose", "nearest")
OPTIMIZERS = ("adam", "muon")
RECONSTRUCTIONS = ("mse", "l1")
GAN_LOSSES = {"hinge": "hinge", "bce": "non_saturating"}  # flag -> name in losses.adversarial
FIRST_DECAY = 0.8  # of the codebook's running means, right after the start: the latents still move fast then


def check_range(owner: object, names: Iterable[str], low: float = 0, high: float = math.inf) -> None:
    """Raises UserError for a value of `owner` that lies outside; None stands for a value that is not given."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not low <= value <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name} {value}: must be {allowed}")


def check_choice(value: str, known: Iterable[str], what: str) -> None:
    """Raises UserError for a value that is none of the known ones."""
    if value not in known:
        raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")


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
    num_quantizers: int = 1  # codebooks per position, each for what the ones before it left
    attention_heads: int = 4
    upsample: str = "transpose"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self.quantizer, QUANTIZERS, "quantizer")
        check_choice(self.upsample, UPSAMPLINGS, "upsampling")
        check_range(self, ("latent_dim", "num_embeddings", "num_quantizers", "attention_heads"), 1)
        check_range(self, ("commitment_cost",))
        check_range(self, ("decay", "dead_code_fraction", "dropout"), 0, 1)
        allowed = [2**halvings for halvings in range(len(self.hidden_dims))]
        if self.downsample_factor not in allowed:
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
        if self.quantizer == "lfq" and self.num_quantizers > 1:
            raise UserError("quantizer lfq has one codebook; num_quantizers is for ema and fsq")
        if self.quantizer == "lfq" and self.num_embeddings & (self.num_embeddings - 1):
            raise UserError(f"quantizer lfq needs a power of two of codes, found num_embeddings {self.num_embeddings}")

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
        check_choice(self.recon, RECONSTRUCTIONS, "reconstruction loss")
        check_choice(self.optimizer, OPTIMIZERS, "optimizer")
        check_choice(self.gan_loss, GAN_LOSSES, "GAN loss")
        check_range(self, ("perceptual_weight", "adv_weight", "adaptive_max", "lr", "lr_g", "lr_d"))
        check_range(self, ("disc_start", "disc_ramp", "vq_warmup", "decay_ramp"))
        check_range(self, ("disc_limit",), 0, 1)

    def codebook_decay(self, step: int, final: float) -> float:
        """Decay of the codebook at a step of stage 1: fast while the latents move, slow later."""
        return FIRST_DECAY + (final - FIRST_DECAY) * losses.linear_ramp(step, self.vq_warmup, self.decay_ramp)

    def adversarial_share(self, step: int) -> float:
        """Share of the adversarial weight that holds at a step of stage 2."""
        return losses.linear_ramp(step, self.disc_start, self.disc_ramp)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name a trained model; its sizes are needed for bare weights only, other files know them."""
    parser.add_argument(
        "--checkpoint",
        default="checkpoints/best_model_gan.pt",
        help="best_model_*.pt, run folder, bare weights, or a name of weights/",
    )
    group = parser.add_argument_group("model, for bare weights alone")
    group.add_argument("--hidden_dims", type=positive_int, nargs="+", help="widths, top to bottom")
    group.add_argument("--latent_dim", type=positive_int, help="channels of a code")
    group.add_argument("--num_embeddings", type=positive_int, help="number of codes")
    group.add_argument("--downsample_factor", type=positive_int, help="pixels per code along each side")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_gpu_arguments(parser)


def add_gpu_arguments(parser: argparse._ActionsContainer) -> None:
    """The original's flags for the device, beside `--device`."""
    parser.add_argument(
        "--gpu", type=nonnegative_int, default=0, metavar="N",
        help="same as --device cuda:N; no effect without a GPU or beside --device",
    )  # fmt: skip
    parser.add_argument("--no_cuda", action="store_true", help="same as --device cpu")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name the data; the grid is that of the training unless given."""
    parser.add_argument(
        "--data_path", "--data", default="data/UCFData", help="folder of batch files, or any source of clips"
    )
    add_grid_arguments(parser)


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say how frames are cut."""
    told = "(default: as in training)"
    parser.add_argument("--patch_size", type=positive_int, help=f"side of a patch {told}")
    parser.add_argument("--num_patches_h", type=positive_int, help=f"patches below each other {told}")
    parser.add_argument("--num_patches_w", type=positive_int, help=f"patches beside each other {told}")
