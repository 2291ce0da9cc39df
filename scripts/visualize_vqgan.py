"""Draw what a VQGAN has learnt: python scripts/visualize_vqgan.py --checkpoint checkpoints/best_model_gan.pt"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, nonnegative_int, positive_int, run, seed_number
from vqgan.config import add_data_arguments, add_model_arguments


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Reconstructions, latents, codebook, interpolation, variations, a sequence and whole frames, as pictures."
    )
    add_data_arguments(parser)
    parser.add_argument("--batch_idx", type=nonnegative_int, default=0, help="number of the batch file")
    parser.add_argument(
        "--split", choices=("train", "val", "test", "all"),
        help="part of data that is not in batch files (default: test where the data declares one, else val)",
    )  # fmt: skip
    add_model_arguments(parser)
    parser.add_argument("--num_samples", type=positive_int, default=8, help="patches to reconstruct")
    parser.add_argument("--video_idx", type=nonnegative_int, default=0, help="video of the sequence")
    parser.add_argument("--start_frame", type=nonnegative_int, default=0, help="first frame of the sequence")
    parser.add_argument(
        "--num_frames", type=positive_int, help="frames of the sequence (default: 8, or as many as there are)"
    )
    parser.add_argument("--seed", type=seed_number, default=42, help="of the noise in the latents")
    parser.add_argument(
        "--output_dir", "--out", type=Path, default=Path("results/visualization"), help="where to write"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write all pictures."""
    args = build_parser().parse_args(argv)
    from vqgan.visualize import visualize_vqgan

    print(f"{len(visualize_vqgan(args))} pictures in {args.output_dir}")


if __name__ == "__main__":
    run(main)
