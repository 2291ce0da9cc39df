"""Make one file of a checkpoint in parts: python scripts/consolidate.py runs/NAME/checkpoints/step-0001000"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Make one file of a checkpoint in parts, which a training with --fsdp writes.")
    parser.add_argument("checkpoint", type=Path, help="the folder of the checkpoint, or the run folder: its newest one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the .pt to write (default: beside the folder)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the file and its manifest, and say where it is."""
    args = build_parser().parse_args(argv)
    from training.checkpoint import consolidate

    print(consolidate(args.checkpoint, args.out))


if __name__ == "__main__":
    run(main)
