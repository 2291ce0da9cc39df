"""Draw what a VQGAN has learnt: python scripts/visualize_vqgan.py --checkpoint checkpoints/best_model_gan.pt"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from vqgan.config import add_data_arguments, add_model_arguments


def main(argv: list[str] | None = None) -> None:
    """Write all pictures."""
    parser = make_parser(
        "Reconstructions, latents, codebook, interpolation, variations, a sequence and whole frames, as pictures."
    )
    add_data_arguments(parser)
    parser.add_argument("--batch_idx", type=int, default=0, help="number of the batch file")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="part of data that is not in batch files (default: all of it)"
    )
    add_model_arguments(parser)
    parser.add_argument("--num_samples", type=int, default=8, help="patches to reconstruct")
    parser.add_argument("--video_idx", type=int, default=0, help="video of the sequence")
    parser.add_argument("--start_frame", type=int, default=0, help="first frame of the sequence")
    parser.add_argument("--num_frames", type=int, default=8, help="frames of the sequence")
    parser.add_argument("--seed", type=int, default=42, help="of the noise in the latents")
    parser.add_argument(
        "--output_dir", "--out", type=Path, default=Path("results/visualization"), help="where to write"
    )
    args = parser.parse_args(argv)
    from vqgan.visualize import visualize

    print(f"{len(visualize(args))} pictures in {args.output_dir}")


if __name__ == "__main__":
    run(main)
