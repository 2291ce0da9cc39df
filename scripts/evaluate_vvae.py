"""Videos against their originals: evaluate_vvae.py ORIGINALS RECONSTRUCTIONS [--chunk_size 16 --overlap 4]

The same as `evaluate.py videos`, with the borders of the windows where VideoVAE+ has them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.videos import score_folders
from training.cli import make_parser, run

METRICS = ("psnr", "ssim", "boundary", "brightness")


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("PSNR, SSIM, LPIPS, brightness and window borders of reconstructed videos, paired by name.")
    parser.add_argument("originals", type=Path, help="video, or folder of videos")
    parser.add_argument("reconstructions", type=Path, help="video, or folder of videos of the same names")
    parser.add_argument("--chunk_size", type=int, default=16, help="frames of a window of the reconstruction")
    parser.add_argument("--overlap", type=int, default=4, help="frames shared by its windows")
    parser.add_argument("--lpips", choices=("alex", "vgg"), help="LPIPS too, with this network")
    parser.add_argument("--lpips_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    parser.add_argument("--output", type=Path, default=Path("evaluation.json"), help="the JSON file")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Score each pair, print the means, write the JSON file."""
    args = build_parser().parse_args(argv)
    report = score_folders(
        args.originals,
        args.reconstructions,
        METRICS,
        window=args.chunk_size - args.overlap,
        lpips=args.lpips,
        lpips_weights=args.lpips_weights,
    )
    path = report.write(args.output)  # first: whoever reads the table may leave
    print(f"{report.table()}\n\nwritten to {path}")


if __name__ == "__main__":
    run(main)
