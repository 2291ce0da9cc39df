"""All code indices of a data set, as memory-mapped arrays: python scripts/project_vqgan.py --data_path D"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from vqgan.config import add_data_arguments, add_model_arguments


def main(argv: list[str] | None = None) -> None:
    """Write <output_path>/<split>.npy for each split, or go on with them."""
    parser = make_parser("Encode all frames of a data set with a VQGAN; an interrupted command continues.")
    add_data_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument(
        "--model_path", dest="checkpoint", metavar="FILE", default=argparse.SUPPRESS, help="same as --checkpoint"
    )
    parser.add_argument(
        "--output_path", "--out", type=Path, default=Path("Data_Projections"), help="folder to write to"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val", "test", "all"), default=["train", "val", "test"],
        help="parts of the data, divided as in training; all: everything in one array",
    )  # fmt: skip
    parser.add_argument("--test_batch", type=int, default=13, help="number of the batch file that is the test split")
    parser.add_argument("--batch_size", type=int, default=4, help="frames at a time")
    args = parser.parse_args(argv)
    from vqgan.project import project_splits

    for line in project_splits(args):
        print(line)


if __name__ == "__main__":
    run(main)
