"""Train the video VAE: python main.py --data ucf101_50_frames.npy"""

from __future__ import annotations

import argparse
from dataclasses import fields

from training.cli import make_parser, nonnegative_float, number, positive_int, run
from training.settings import add_training_arguments
from video_vae.config import LEARNING_RATE, MODEL_PATH, OPTIMIZERS, PRESETS, WEIGHT_DECAY, LossConfig


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Train the hierarchical transformer-LSTM video VAE.")
    parser.add_argument(
        "--data",
        "--npy_file",
        required=True,
        help="clips: the .npy of prepare_ucf101.py, or any source of videodata.open_clips",
    )
    parser.add_argument(
        "--model_path",
        help=f"<stem>_epoch_<N>.pth is written (default: {MODEL_PATH}, or none where the run folder is named)",
    )
    parser.add_argument(
        "--learning_rate", type=nonnegative_float, default=LEARNING_RATE, help="of the optimiser, after the warm-up"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--num_epochs", type=positive_int, default=50, help="with --load_model: this many more")
    length.add_argument("--steps", type=positive_int, help="optimiser steps in all, in place of --num_epochs")
    parser.add_argument("--load_model", action="store_true", help="continue from the exact file --model_path")
    parser.add_argument(
        "--epoch_every", type=positive_int, default=1, help="write a file after every n-th epoch; at the end always"
    )
    add_run_arguments(parser)
    add_model_arguments(parser)
    add_loss_arguments(parser)
    add_data_arguments(parser)
    add_training_arguments(parser, batch_size=1, warmup_steps=500)
    parser.add_argument("--amp", dest="precision", action="store_const", const="bf16", help="same as --precision bf16")
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run folder")
    group.add_argument("--run_name", help="folder below runs/ (default: <model_path stem>-<hash of the configuration>)")
    group.add_argument("--overwrite", action="store_true", help="write over <stem>_epoch_<N>.pth files of another run")
    group.add_argument("--run_dir", "--out", help="the run folder itself, in place of runs/<run_name>")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--preset", choices=PRESETS, help="sizes of the network (default: base)")
    group.add_argument("--config", metavar="FILE", help="YAML file like configs/video_vae/base.yaml, not --preset")
    group.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change keys of the preset, e.g. gen_iterations=2"
    )
    group.add_argument(
        "--checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute activations again in the backward pass: slower, less memory; auto: where they would not fit",
    )
    group.add_argument(
        "--no_checkpointing",
        dest="checkpointing",
        action="store_const",
        const="off",
        help="same as --checkpointing off",
    )


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("losses")
    for entry in fields(LossConfig):
        group.add_argument(
            f"--{entry.name}", type=entry.metadata["type"], default=entry.default, help=entry.metadata["help"]
        )
    group.add_argument("--vgg_weights", metavar="PATH", help="weight file, or folder with it (default: found by name)")
    group.add_argument("--weight_decay", type=nonnegative_float, default=WEIGHT_DECAY, help="of the optimiser")
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default=OPTIMIZERS[0],
        help="muon learns from fewer clips at the same learning rate",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clips")
    group.add_argument("--frames", type=positive_int, help="per clip (default: all of a .npy's, 16 of other sources)")
    group.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="(default: a .npy's own, or the preset's)"
    )
    group.add_argument("--stride", type=positive_int, default=1, help="frames from one frame of a clip to the next")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the clips")
    group.add_argument(
        "--val_fraction", type=number(float, 0, 0.49), default=0.1,
        help="share of the videos in each of val and test, where the data declares none; 0: train on all",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments say, or continue where the same command stopped."""
    args = build_parser().parse_args(argv)
    from training.distributed import print0
    from video_vae.train import train_video_vae

    print0(train_video_vae(args))


if __name__ == "__main__":
    run(main)
