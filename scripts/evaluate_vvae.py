"""Videos against their originals: evaluate_vvae.py ORIGINALS RECONSTRUCTIONS [--chunk_size 16 --overlap 4]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.report import Report
from evaluation.video_pairs import VideoPairScores, pairs_by_name
from training.cli import make_parser, run
from videodata.video import probe


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
    scores = VideoPairScores(args.chunk_size - args.overlap, args.lpips, args.lpips_weights)
    videos = {}
    pairs = pairs_by_name(args.originals, args.reconstructions)
    for original, reconstruction in pairs:
        videos[reconstruction.name] = scores.update(original, reconstruction)
    first = probe(pairs[0][0])
    report = Report("vvae", None, str(args.originals), 0, 1, first.height, first.width, resize="none")
    report.scores = scores.scores()
    report.details = {"reconstructions": str(args.reconstructions), "videos": videos}
    print(report.table())
    print(f"\nwritten to {report.write(args.output)}")


if __name__ == "__main__":
    run(main)
