"""From the internet to clips: download a data set, unpack it, convert it, and say what is missing.

Every part of a data set becomes a file or folder of its own below --out, which open_clips(out, split=...) reads:
train.npy (arrays of sequences), train/ (HDF5 shards) or train/<label>/<video>/ (PNG frames), with a .json beside it.
The same command continues after any interruption. Many machines can share the work: --shard 1/8 ... 8/8, then merge.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.prepare import add_commands, run_command


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    parser = make_parser(__doc__)
    add_commands(parser)
    run_command(parser.parse_args(arguments))


if __name__ == "__main__":
    run(main)
