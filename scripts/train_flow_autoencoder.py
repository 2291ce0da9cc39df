"""Train the autoencoder `ours` under a video predictor: train_flow_autoencoder.py --config F --run-name autoencoder"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from flow_pred.config import AutoencoderObjective
from training.cli import make_parser, run
from training.settings import add_training_arguments


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Train the autoencoder of type `ours`; its run folder is what model.autoencoder.ckpt_path names."
    )
    defaults = AutoencoderObjective()
    parser.add_argument(
        "--config", required=True, help="a configuration of configs/flow_pred: its data and autoencoder"
    )
    parser.add_argument("--run-name", default="autoencoder", help="the run folder is runs/<config.name>_run-<run-name>")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    parser.add_argument("--steps", type=int, default=100_000, help="optimiser steps")
    parser.add_argument("--clip-frames", type=int, default=1, help="frames per clip; from 3 on, latents between the "
                        "first and the last frame learn to show the frames in between")  # fmt: skip
    parser.add_argument("--clip-stride", type=int, default=1, help="frames of the video from one of them to the next")
    group = parser.add_argument_group("losses")
    group.add_argument("--learning-rate", type=float, default=defaults.learning_rate, help="of the optimizer")
    group.add_argument("--optimizer", choices=("adam", "muon"), default=defaults.optimizer, help="muon learns from "
                       "fewer frames at the same learning rate")  # fmt: skip
    group.add_argument("--vq-warmup", type=int, default=defaults.vq_warmup, help="first steps without quantiser")
    group.add_argument("--vq-weight", type=float, default=defaults.vq_weight, help="of the quantiser's loss")
    group.add_argument("--blend-weight", type=float, default=defaults.blend_weight, help="of frames in between")
    group.add_argument("--perceptual-weight", type=float, default=defaults.perceptual_weight, help="of LPIPS; above 0 "
                       "it needs VGG weights")  # fmt: skip
    group.add_argument("--vgg-weights", metavar="PATH", help="weight file, or folder with it (default: found by name)")
    add_training_arguments(parser, batch_size=16, schedule="cosine", evaluate_every=2000)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.train_autoencoder import train_flow_autoencoder

    train_flow_autoencoder(args)


if __name__ == "__main__":
    run(main)
