"""Train the autoencoder `ours` under a video predictor: train_flow_autoencoder.py --config F --run-name autoencoder"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

import torch

from flow_pred.autoencoder import build_ours
from flow_pred.config import FlowPredConfig, read_config
from flow_pred.train_autoencoder import AutoencoderObjective, AutoencoderRecipe
from training import add_training_arguments, settings_from, train
from training.cli import make_parser, run
from training.distributed import print0
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
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


def open_data(config: FlowPredConfig, args: argparse.Namespace, split: str) -> ClipDataset:
    """Clips of a split, uint8."""
    data = config.data
    return open_clips(
        data.data_root,
        frames=args.clip_frames,
        size=data.crop_size,
        short_side=data.input_size,
        stride=args.clip_stride,
        split=split,
        seed=args.seed,
        flip=split == "train",
        dtype="uint8",
    )


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments say, or continue where the same command stopped."""
    args = build_parser().parse_args(argv)
    config, plain = read_config(args.config, args.overrides)
    settings = {key: value for key, value in config.model.autoencoder.items() if key not in ("type", "ckpt_path")}
    if config.model.autoencoder.get("type") != "ours":
        raise UserError(f"{args.config}: model.autoencoder.type is not `ours`; a VQGAN is trained by train_vqgan.py")
    objective = AutoencoderObjective(
        **{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(AutoencoderObjective)}
    )
    torch.manual_seed(args.seed)
    recipe = AutoencoderRecipe(build_ours(dict(settings), None), objective, args.vgg_weights)
    run_dir = args.runs / f"{config.name}_run-{args.run_name}"
    result = train(
        recipe,
        open_data(config, args, "train"),
        settings_from(args, run_dir, args.steps),
        {"model": {"type": "ours", **settings}, "objective": dataclasses.asdict(objective), "data": plain["data"]},
        open_data(config, args, "val"),
    )
    print0(f"{run_dir}: step {result.step}", {name: round(value, 3) for name, value in result.metrics.items()})


if __name__ == "__main__":
    run(main)
