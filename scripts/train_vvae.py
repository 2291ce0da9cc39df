"""Train VideoVAE+: python scripts/train_vvae.py --config configs/vvae/16z.yaml --data videos/ [KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from training.settings import add_configuration_arguments

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vvae"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Train the VideoVAE+ autoencoder, or continue the same command's run.")
    parser.add_argument("--data", help="clips, in place of data.path: folder of videos, csv, .npy, .hdf5, shapes:<n>")
    parser.add_argument("--run_name", default="vvae", help="folder below runs/")
    parser.add_argument("--run_dir", "--out", type=Path, help="the run folder itself, in place of runs/<run_name>")
    add_configuration_arguments(parser, CONFIGS, "16z.yaml")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train."""
    args = build_parser().parse_args(argv)
    args.config = args.config or str(CONFIGS / f"{args.preset}.yaml")
    from training.distributed import print0
    from vvae.train import train_vvae

    print0(train_vvae(args))


if __name__ == "__main__":
    run(main)
