"""Clips from a trained video VAE: prior samples, reconstructions, interpolations, per-level traversals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import (
    add_class_arguments,
    frame_rate,
    make_parser,
    nonnegative_float,
    nonnegative_int,
    positive_int,
    run,
    seed_number,
)
from video_vae.config import FLOW_STEPS, PRIOR_KINDS

PRODUCTS = ("samples", "reconstructions", "interpolation", "traversals")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Generate clips with a trained video VAE: mp4 files, PNG strips, and the samples as .npy.")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="run folder, <stem>_epoch_<N>.pth, step-*.pt, weights-*.safetensors, or a name of weights/",
    )
    parser.add_argument("--out", "--output_dir", type=Path, default=Path("generated"), help="folder for the files")
    parser.add_argument("--num_samples", type=nonnegative_int, default=8, help="clips from the prior; 0: none")
    parser.add_argument("--num_frames", type=positive_int, help="per sample, any number (default: as in training)")
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of the samples (default: as in training)"
    )
    parser.add_argument("--temperature", type=nonnegative_float, default=1.0, help="factor on the prior's deviations")
    parser.add_argument(
        "--prior",
        choices=PRIOR_KINDS,
        help="of the samples' latents: the second stage's flow or Gaussian, or what the network was trained with "
        "(default: flow where there is one)",
    )
    parser.add_argument("--prior_steps", type=positive_int, default=FLOW_STEPS, help="of the flow")
    add_class_arguments(parser)
    parser.add_argument("--data", help="any source of clips: also reconstructions, an interpolation and traversals")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        help="part of --data (default: test where the data declares one, else val)",
    )
    parser.add_argument(
        "--num_clips", type=positive_int, default=4, help="clips to reconstruct, evenly spread over --data"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=5, help="clips per interpolation and traversal, ends included"
    )
    parser.add_argument("--only", nargs="+", choices=PRODUCTS, help="make these alone")
    parser.add_argument("--fps", type=frame_rate, default="12", help="of the files, such as 25 or 30000/1001")
    parser.add_argument("--gif", action="store_true", help="write GIF files beside the mp4 files")
    parser.add_argument("--seed", type=seed_number, default=0, help="sample i depends on the seed and i alone")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write everything that was asked for and print where."""
    args = build_parser().parse_args(argv)
    from video_vae.generate import generate_video_vae

    print(generate_video_vae(args))


if __name__ == "__main__":
    run(main)
