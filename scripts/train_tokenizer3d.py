"""Train a 3-D tokenizer: python scripts/train_tokenizer3d.py --preset tiny_fsq --data digits:4000,frames=17,size=32"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from training.settings import add_configuration_arguments

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "tokenizer3d"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Train a 3-D tokenizer of the VidTok family, or continue the same command's run.")
    parser.add_argument("--data", help="clips, in place of data.path: folder of videos, csv, .npy, .hdf5, digits:<n>")
    parser.add_argument("--start", help="weights to go on from, in place of optimization.start: run folder, or a file")
    parser.add_argument("--run_dir", "--out", type=Path, default=Path("runs/tokenizer3d"), help="the folder of the run")
    add_configuration_arguments(parser, CONFIGS, "tiny_fsq.yaml")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train."""
    args = build_parser().parse_args(argv)
    args.config = args.config or str(CONFIGS / f"{args.preset}.yaml")
    from tokenizer3d.train import train_tokenizer3d
    from training.distributed import print0

    print0(train_tokenizer3d(args))


if __name__ == "__main__":
    run(main)
