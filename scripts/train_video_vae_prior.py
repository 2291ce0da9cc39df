"""Fit the second stage of a trained video VAE, a prior of its latents: --checkpoint runs/<name> --steps 2000"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import fraction, make_parser, nonnegative_float, nonnegative_int, positive_int, run
from training.settings import add_training_arguments
from video_vae.config import PRIOR_RATE, PRIOR_TRAINING, PriorConfig


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Fit a Gaussian and a flow to the latents of the clips that a video VAE was trained on; "
        "generate_video_vae.py then draws from them. The same command continues."
    )
    parser.add_argument("--checkpoint", required=True, help="run folder of the video VAE; the prior is stored below it")
    parser.add_argument("--steps", type=positive_int, default=2000, help="optimiser steps in all")
    parser.add_argument("--clips", type=nonnegative_int, default=0, help="to encode, evenly spread; 0: all")
    parser.add_argument(
        "--classes",
        action="store_true",
        help="learn the clips' labels, so that samples of a class can be asked for",
    )
    parser.add_argument("--class_dropout", type=fraction, default=PriorConfig.class_dropout, help="share without label")
    parser.add_argument("--width", type=positive_int, default=PriorConfig.width, help="of the flow's tokens")
    parser.add_argument("--depth", type=nonnegative_int, default=PriorConfig.depth, help="blocks of the flow")
    parser.add_argument("--heads", type=positive_int, default=PriorConfig.heads, help="attention heads")
    parser.add_argument(
        "--patch", type=positive_int, default=PriorConfig.patch, help="side of the places that a token holds"
    )
    parser.add_argument(
        "--neighbours",
        action="store_true",
        help="convolve over neighbouring tokens in each block: strokes hold together after fewer clips",
    )
    parser.add_argument(
        "--directions",
        type=nonnegative_int,
        default=PriorConfig.directions,
        help="strongest directions of the Gaussian",
    )
    parser.add_argument("--learning_rate", type=nonnegative_float, default=PRIOR_RATE, help="after the warm-up")
    parser.add_argument("--weight_decay", type=nonnegative_float, default=0.0, help="of the optimiser")
    add_training_arguments(parser, **PRIOR_TRAINING)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Fit as the arguments say, or continue where the same command stopped."""
    args = build_parser().parse_args(argv)
    from training.distributed import print0
    from video_vae.train_prior import train_prior

    print0(train_prior(args))


if __name__ == "__main__":
    run(main)
