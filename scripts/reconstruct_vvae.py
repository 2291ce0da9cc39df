"""The same as scripts/vvae.py reconstruct: reconstruct_vvae.py INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from scripts import vvae
from training.cli import make_parser, run


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Reconstruct videos and images: same size, frame rate, number of frames, sound.")
    vvae.add_reconstruct_arguments(parser)
    parser.set_defaults(command="reconstruct")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Reconstruct each file."""
    vvae.work(build_parser().parse_args(argv))


if __name__ == "__main__":
    run(main)
