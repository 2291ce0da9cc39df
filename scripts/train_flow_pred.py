"""Train a video predictor: train_flow_pred.py --config configs/flow_pred/kth_f-01-nll.yaml --run-name f-01-nll"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, nonnegative_int, number, positive_int, run, seed_number
from training.settings import add_training_arguments

DEFAULTS = {
    "seed": 1543,
    "save_every": 5000,
    "log_every": 100,
    "evaluate_every": 20_000,
    "pictures_every": 5000,
    "evaluate_batches": 100,
}  # the original's
OF_THE_CONFIGURATION = ("batch_size", "workers", "schedule", "warmup_steps", "final_rate", "clip", "ema", "precision")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Train RIVER, or the flow, denoiser or diffusion of the neural SDE.")
    parser.add_argument("--config", required=True, help="a configuration of configs/flow_pred")
    parser.add_argument(
        "--run-name", help="the run folder is <runs>/<config.name>_run-<run-name> (default: by the name of --config)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    parser.add_argument("--run-dir", type=Path, help="the run folder, in place of that name")
    parser.add_argument("--data", help="any source of videos, in place of data.data_root")
    parser.add_argument("--autoencoder", "--vqvae-path", help="its checkpoint, in place of autoencoder.ckpt_path")
    parser.add_argument("--tokenizer", help="any tokenizer of latents, in place of the configuration's autoencoder")
    parser.add_argument(
        "--steps", type=positive_int, help="optimiser steps, in place of training.optimizer.num_training_steps"
    )
    parser.add_argument("--num-gpus", type=nonnegative_int, help="GPUs to use; 0: train on the CPU (default: all)")
    parser.add_argument(
        "--resume-step",
        type=number(int, -1),
        help="-1: the newest checkpoint; n: that of step n; newer ones are set aside (default: continue the run)",
    )
    parser.add_argument(
        "--random-seed", dest="seed", type=seed_number, default=argparse.SUPPRESS, help="same as --seed"
    )
    add_training_arguments(parser, **DEFAULTS, **dict.fromkeys(OF_THE_CONFIGURATION))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.train import train_flow_pred

    train_flow_pred(args)


if __name__ == "__main__":
    run(main)
