"""Show a VQGAN at work: python scripts/demo_vqgan.py --data_path D --checkpoint checkpoints/best_model_gan.pt"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from vqgan.demo import demonstrate
from vqgan.trained import (
    add_grid_arguments,
    add_model_arguments,
    add_part_arguments,
    open_footage,
    open_model,
    settle_grid,
)


def main(argv: list[str] | None = None) -> None:
    """Write the animation and the variations."""
    parser = make_parser("A reconstructed clip as animation, and the effect of noise in the latents.")
    add_grid_arguments(parser)
    add_part_arguments(parser)
    add_model_arguments(parser, "checkpoints/best_model_gan.pt")
    parser.add_argument("--video_idx", type=int, default=0, help="video to show")
    parser.add_argument("--num_frames", type=int, default=10, help="frames to show")
    parser.add_argument("--random_seed", type=int, default=42, help="of the noise in the latents")
    parser.add_argument("--output_dir", type=Path, default=Path("results/demo"), help="where to write")
    args = parser.parse_args(argv)
    model = open_model(args)
    settle_grid(args)
    frames = open_footage(args).read(args.video_idx, 0, args.num_frames)
    grid = args.num_patches_h, args.num_patches_w
    files = demonstrate(model, frames, *grid, args.random_seed, args.output_dir)
    print(f"{len(files)} files in {args.output_dir}")


if __name__ == "__main__":
    run(main)
