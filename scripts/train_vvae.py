"""Train VideoVAE+: python scripts/train_vvae.py --config configs/vvae/16z.yaml --data videos/ [KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from training.config import load_config
from training.settings import add_training_arguments


def build_parser(defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """Every flag; `defaults`: the part `training` of the configuration."""
    defaults = {"steps": 100_000, **defaults}
    parser = make_parser("Train the VideoVAE+ autoencoder, or continue the same command's run.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file like configs/vvae/16z.yaml")
    parser.add_argument("--data", help="clips, in place of data.path: folder of videos, csv, .npy, .hdf5, shapes:<n>")
    parser.add_argument("--run_name", default="vvae", help="folder below runs/")
    parser.add_argument("--run_dir", "--out", type=Path, help="the run folder itself, in place of runs/<run_name>")
    parser.add_argument("--steps", type=int, default=defaults.pop("steps"), help="optimiser steps in all")
    add_training_arguments(parser, **defaults)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration, dotted keys")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    chosen, _ = first.parse_known_args(argv)
    defaults = load_config(chosen.config).get("training", {}) if chosen.config else {}
    args = build_parser(defaults).parse_args(argv)
    from training.distributed import print0
    from vvae.train import train_vvae

    print0(train_vvae(args))


if __name__ == "__main__":
    run(main)
