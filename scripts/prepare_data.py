"""From the internet to clips: download a data set, unpack it, convert it, and say what is missing.

Every part of a data set becomes a file or folder of its own below --out, which open_clips(out, split=...) reads:
train.npy (arrays of sequences), train/ (HDF5 shards) or train/<label>/<video>/ (PNG frames), with a .json beside it.
The same command continues after any interruption. Many machines can share the work: --shard 1/8 ... 8/8, then merge,
or --engine ray (dask, spark) --shares 8 on a cluster.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import Parser, make_parser, run
from videodata.datasets.prepare import add_commands, run_command


def build_parser() -> Parser:
    parser = make_parser(__doc__)
    add_commands(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    run_command(build_parser().parse_args(words), words)


if __name__ == "__main__":
    run(main)
