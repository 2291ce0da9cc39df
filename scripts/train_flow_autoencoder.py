"""Train the autoencoder `ours` under a video predictor: train_flow_autoencoder.py --config F --run-name autoencoder"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, nonnegative_float, nonnegative_int, positive_float, positive_int, run
from training.settings import add_training_arguments

OF_THE_CONFIGURATION = " (default: autoencoder_training of the configuration)"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Train the autoencoder of type `ours`; its run folder is what model.autoencoder.ckpt_path names."
    )
    parser.add_argument(
        "--config", required=True, help="a configuration of configs/flow_pred: its data and autoencoder"
    )
    parser.add_argument(
        "--run-name", default="autoencoder", help="the run folder is <runs>/<config.name>_run-<run-name>"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    parser.add_argument("--run-dir", type=Path, help="the run folder, in place of that name")
    parser.add_argument("--data", help="any source of videos, in place of data.data_root")
    parser.add_argument("--steps", type=positive_int, help="optimiser steps" + OF_THE_CONFIGURATION)
    parser.add_argument(
        "--clip-frames",
        type=positive_int,
        help="frames per clip; from 3 on, latents between the first and the last frame learn to show the frames in "
        "between" + OF_THE_CONFIGURATION,
    )
    parser.add_argument(
        "--clip-stride",
        type=positive_int,
        help="frames of the video from one of them to the next" + OF_THE_CONFIGURATION,
    )
    add_objective_arguments(parser)
    add_training_arguments(parser, batch_size=None, warmup_steps=None, schedule="cosine", evaluate_every=2000)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("losses", "where none is given, those of autoencoder_training.objective")
    group.add_argument("--learning-rate", type=positive_float, help="of the optimizer")
    group.add_argument(
        "--optimizer", choices=("adam", "muon"), help="muon learns from fewer frames at the same learning rate"
    )
    group.add_argument("--vq-warmup", type=nonnegative_int, help="first steps without quantiser")
    group.add_argument("--vq-weight", type=nonnegative_float, help="of the quantiser's loss")
    group.add_argument(
        "--latent-noise", type=nonnegative_float, help="on what is decoded, as a share of the latents' spread"
    )
    group.add_argument("--latent-penalty", type=nonnegative_float, help="of the latents' mean square")
    group.add_argument("--blend-weight", type=nonnegative_float, help="of frames in between")
    group.add_argument("--perceptual-weight", type=nonnegative_float, help="of LPIPS; above 0 it needs VGG weights")
    group.add_argument("--vgg-weights", metavar="PATH", help="weight file, or folder with it (default: found by name)")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.train_autoencoder import train_flow_autoencoder

    train_flow_autoencoder(args)


if __name__ == "__main__":
    run(main)
