"""The neural SDE on the fork in the plane, in half a minute: networks, numbers and a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from flow_pred.config import BifurcationSettings
from training.cli import make_parser, positive_int, run, seed_number


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bifurcation/trajectories.png"), help="the picture")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the training and of the trajectories")
    parser.add_argument(
        "--steps", type=positive_int, default=BifurcationSettings.steps, help="of each of the three trainings"
    )
    parser.add_argument("--trajectories", type=positive_int, default=256, help="number of them")
    parser.add_argument("--substeps", type=positive_int, default=1, help="solver steps per unit of time")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from flow_pred.bifurcation import draw_bifurcation

    draw_bifurcation(args)


if __name__ == "__main__":
    run(main)
