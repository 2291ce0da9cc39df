"""Draw what a VQGAN has learnt: python scripts/visualize_vqgan.py --checkpoint checkpoints/best_model_gan.pt"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from vqgan.config import add_grid_arguments, add_model_arguments, add_part_arguments
from vqgan.data import open_footage
from vqgan.files import open_model, settle_grid
from vqgan.visualize import visualize


def main(argv: list[str] | None = None) -> None:
    """Write all pictures."""
    parser = make_parser("Reconstructions, latents, codebook, interpolation, a sequence and whole frames, as pictures.")
    add_grid_arguments(parser)
    add_part_arguments(parser)
    add_model_arguments(parser, "checkpoints/best_model_gan.pt")
    parser.add_argument("--num_samples", type=int, default=8, help="patches to reconstruct")
    parser.add_argument("--video_idx", type=int, default=0, help="video of the sequence")
    parser.add_argument("--start_frame", type=int, default=0, help="first frame of the sequence")
    parser.add_argument("--num_frames", type=int, default=8, help="frames of the sequence")
    parser.add_argument("--seed", type=int, default=42, help="of the noise in the latents' variations")
    parser.add_argument("--output_dir", type=Path, default=Path("results/visualization"), help="where to write")
    args = parser.parse_args(argv)
    model = open_model(args)
    settle_grid(args)
    window = args.video_idx, args.start_frame, args.num_frames
    grid = args.num_patches_h, args.num_patches_w
    files = visualize(model, open_footage(args), *grid, args.num_samples, window, args.seed, args.output_dir)
    print(f"{len(files)} pictures in {args.output_dir}")


if __name__ == "__main__":
    run(main)
