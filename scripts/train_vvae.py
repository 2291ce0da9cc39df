"""Train VideoVAE+: python scripts/train_vvae.py --config configs/vvae/16z.yaml --data videos/ [KEY=VALUE ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training import add_training_arguments, settings_from, train
from training.cli import make_parser, run
from training.config import load_config
from vvae.train import build_recipe, open_data


def build_parser(defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """Every flag of the command; the configuration's part `training` gives the defaults."""
    parser = make_parser("Train the VideoVAE+ autoencoder, or continue the same command's run.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file like configs/vvae/16z.yaml")
    parser.add_argument("--data", help="clips, in place of data.path: folder of videos, csv, .npy, .hdf5, shapes:<n>")
    parser.add_argument("--run_name", default="vvae", help="folder below runs/")
    parser.add_argument("--run_dir", type=Path, help="the run folder itself, in place of runs/<run_name>")
    parser.add_argument("--steps", type=int, default=defaults.pop("steps", 100_000), help="optimiser steps in all")
    add_training_arguments(parser, **defaults)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration, dotted keys")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    chosen, _ = first.parse_known_args(argv)
    defaults = load_config(chosen.config).get("training", {}) if chosen.config else {}
    args = build_parser(dict(defaults)).parse_args(argv)
    config = load_config(args.config, args.overrides)
    config["data"]["path"] = args.data or config["data"]["path"]
    settings = settings_from(args, args.run_dir or Path("runs") / args.run_name, args.steps)
    recipe = build_recipe(config, settings.seed)
    training, validation = open_data(config["data"], recipe.bare["autoencoder"], settings.seed)
    result = train(recipe, training, settings, config, validation)
    scores = "".join(f", {name} {value:.4g}" for name, value in sorted(result.metrics.items()))
    state = (
        f"finished after {result.step} steps" if result.finished else f"stopped at step {result.step} of {args.steps}"
    )
    print(f"{settings.run_dir}: {state}{scores}")


if __name__ == "__main__":
    run(main)
