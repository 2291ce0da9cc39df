"""Train a VQGAN in two stages: python scripts/train_vqgan.py --data_path data/UCFData"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import (
    fraction,
    make_parser,
    nonnegative_float,
    nonnegative_int,
    positive_int,
    run,
)
from training.config import load_config, unknown_key
from training.settings import add_training_arguments
from videodata.errors import UserError
from vqgan.config import GAN_LOSSES, OPTIMIZERS, QUANTIZERS, RECONSTRUCTIONS, UPSAMPLINGS, add_gpu_arguments

PRESETS = ("base", "optimized", "test", "demo")
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vqgan"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Train a VQGAN on patches of frames: reconstruction first, then with a discriminator.")
    # The flags below that are also those of every training script say here what they mean for two stages.
    parser.conflict_handler = "resolve"
    parser.add_argument("--preset", choices=PRESETS, default="base", help="defaults for the other flags")
    parser.add_argument("--config", metavar="FILE", help="YAML file like configs/vqgan/base.yaml, over the preset")
    add_training_arguments(parser, batch_size=3, seed=42, workers=4, evaluate_batches=0)
    add_data_arguments(parser)
    add_model_arguments(parser)
    add_loss_arguments(parser)
    add_schedule_arguments(parser)
    add_run_arguments(parser)
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_path",
        "--data",
        default="data/UCFData",
        help="folder of batch files <name>_batch_<k>.npy, or any source of clips",
    )
    group.add_argument("--test_batch", type=nonnegative_int, default=13, help="number of the batch file for testing")
    group.add_argument(
        "--patch_size", type=positive_int, default=80, help="side of a patch; frames are scaled to the grid"
    )
    group.add_argument(
        "--num_patches_h", type=positive_int, default=3, help="patches below each other; 1 1: whole frames"
    )
    group.add_argument("--num_patches_w", type=positive_int, default=4, help="patches beside each other")
    group.add_argument(
        "--test_patches", type=nonnegative_int, default=0, help="score so many test patches, evenly spread; 0: all"
    )
    group.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True, help="mirror and recolour training patches"
    )
    group.add_argument(
        "--num_workers", dest="workers", type=nonnegative_int, help="same as --workers", default=argparse.SUPPRESS
    )
    group.add_argument("--cache_mode", action="store_true", help="no effect: data files are memory-mapped anyway")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--hidden_dims", type=positive_int, nargs="+", default=[64, 128, 256, 512], help="widths, top to bottom"
    )
    group.add_argument("--latent_dim", type=positive_int, default=32, help="channels of a code")
    group.add_argument("--num_embeddings", type=positive_int, default=512, help="number of codes")
    group.add_argument("--downsample_factor", type=positive_int, default=4, help="pixels per code along each side")
    group.add_argument("--commitment_cost", type=nonnegative_float, default=0.25, help="weight of the way to the codes")
    group.add_argument("--quantizer", choices=QUANTIZERS, default="ema", help="kind of codebook")
    group.add_argument(
        "--num_quantizers", type=positive_int, default=1, help="codebooks per position, each for what the others left"
    )
    group.add_argument("--fsq_levels", type=positive_int, nargs="*", default=[], help="levels of --quantizer fsq")
    group.add_argument("--decay", type=fraction, default=0.99, help="of the codebook's running means")
    group.add_argument(
        "--restart_unused", action=argparse.BooleanOptionalAction, default=True, help="revive codes that are not used"
    )
    group.add_argument(
        "--dead_code_fraction", type=fraction, default=0.1, help="share of the mean usage below which a code is revived"
    )
    group.add_argument("--upsample", choices=UPSAMPLINGS, default="transpose", help="how the decoder upsamples")
    group.add_argument("--dropout", type=fraction, default=0.0, help="of whole channels, in residual blocks")
    group.add_argument("--ldm", metavar="NAME", help="train f8_small, f8, f16, or the ddconfig in a YAML file, instead")
    group.add_argument("--checkpointing", action="store_true", help="recompute activations: less memory, slower")


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("losses")
    group.add_argument("--recon", choices=RECONSTRUCTIONS, default="mse", help="reconstruction loss, of [0, 1] pixels")
    group.add_argument(
        "--perceptual_weight", type=nonnegative_float, default=0.1, help="of LPIPS; 0 needs no VGG weights"
    )
    group.add_argument("--vgg_weights", metavar="PATH", help="weight file, or folder with it (default: found by name)")
    group.add_argument("--adv_weight", type=nonnegative_float, default=0.1, help="of the adversarial term in stage 2")
    group.add_argument("--gan_loss", choices=tuple(GAN_LOSSES), default="hinge", help="adversarial loss")
    group.add_argument(
        "--adaptive_weight", action=argparse.BooleanOptionalAction, default=True,
        help="balance the two terms by their gradients at the last layer",
    )  # fmt: skip
    group.add_argument(
        "--disc_start",
        type=nonnegative_int,
        help="step of stage 2 at which the generator hears the discriminator (default: an epoch, at most a tenth)",
    )
    group.add_argument(
        "--disc_ramp", type=nonnegative_int, default=1000, help="steps to the full adversarial weight (at most a fifth)"
    )
    group.add_argument(
        "--disc_limit",
        type=fraction,
        default=0.8,
        help="the discriminator rests while it tells a larger share of patches right; 1: never",
    )


def add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--num_epoch", type=positive_int, default=3, help="rounds of stage 1; stage 2: one less")
    group.add_argument("--epochs_per_batch", type=positive_int, default=10, help="epochs per round in stage 1")
    group.add_argument("--gan_epochs_per_batch", type=nonnegative_int, default=5, help="same in stage 2; 0: no stage 2")
    group.add_argument("--steps", type=positive_int, help="steps of stage 1, in place of epochs")
    group.add_argument("--gan_steps", type=nonnegative_int, help="steps of stage 2, in place of epochs")
    group.add_argument("--gan_mode", action="store_true", help="skip stage 1; starts from --resume")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="of stage 1; muon learns from less")
    group.add_argument("--lr", type=nonnegative_float, default=1e-4, help="learning rate of stage 1")
    group.add_argument("--lr_g", type=nonnegative_float, default=5e-5, help="learning rate of the generator in stage 2")
    group.add_argument("--lr_d", type=nonnegative_float, default=2e-4, help="learning rate of the discriminator")
    group.add_argument(
        "--vq_warmup",
        type=nonnegative_int,
        default=500,
        help="first steps without quantiser (at most a fifth of stage 1)",
    )
    group.add_argument(
        "--decay_ramp",
        type=nonnegative_int,
        default=2000,
        help="steps from decay 0.8 to --decay (at most half of stage 1)",
    )
    group.add_argument(
        "--checkpoint_freq", type=nonnegative_int, default=0, help="epochs from save to save; 0: --save_every"
    )
    group.add_argument("--vis_freq", type=nonnegative_int, default=0, help="same for pictures; 0: --pictures_every")
    group.add_argument(
        "--gradient_accumulation_steps", dest="accumulation", type=positive_int, default=argparse.SUPPRESS,
        help="same as --accumulation",
    )  # fmt: skip


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run_dir",
        type=Path,
        metavar="DIR",
        help="one folder for all: DIR, DIR/logs and DIR/results in place of the three below",
    )
    group.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="run folders and best models")
    group.add_argument("--log_dir", type=Path, default=Path("logs"), help="TensorBoard: <log_dir>/stage1 and stage2")
    group.add_argument("--results_dir", type=Path, default=Path("results"), help="pictures and test scores")
    group.add_argument(
        "--resume", default="auto",
        help="auto: continue what --checkpoint_dir holds; never: refuse it if it holds a run; or a file of weights to "
        "start from",
    )  # fmt: skip
    group.add_argument("--resume_disc", metavar="FILE", help="weights of the discriminator to start stage 2 from")
    add_gpu_arguments(group)
    group.add_argument(
        "--fp16", action=argparse.BooleanOptionalAction, default=False,
        help="mixed precision on a GPU, in bf16, which needs no loss scaling (float16: --precision fp16)",
    )  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with the preset's and the YAML file's values as defaults. Raises UserError for unknown keys."""
    parser = build_parser()
    chosen, _ = parser.parse_known_args(argv)
    known = {action.dest: action for action in parser._actions}
    for path in [CONFIGS / f"{chosen.preset}.yaml", *([chosen.config] if chosen.config else [])]:
        for key, value in load_config(path).items():
            if key not in known:
                raise unknown_key(key, known, f"flag in {path}:")
            parser.set_defaults(**{key: as_typed(known[key], value, f"{path}: {key}")})
    args = parser.parse_args(argv)
    if args.run_dir:
        args.checkpoint_dir = args.run_dir
        args.log_dir, args.results_dir = args.run_dir / "logs", args.run_dir / "results"
    return args


def as_typed(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of a YAML file as the flag would take it. Raises UserError for one that it would refuse."""
    if action.type is None or value is None:
        return value
    try:
        values = [action.type(str(entry)) for entry in (value if isinstance(value, list) else [value])]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{where}: {error}") from error
    return values if isinstance(value, list) else values[0]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from training.distributed import print0
    from vqgan.train import train_vqgan

    print0("\n".join(train_vqgan(args)))


if __name__ == "__main__":
    run(main)
