"""Frame trees to HDF5 shards: convert_to_h5.py --out_dir data/h5 --data_dir data/frames --image_size 64 --extension png

Reads <data_dir>/{train,val,test}/<video>/<frame>.<extension>, writes <out_dir>/{train,val,test}/shard_*.hdf5.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.own import frames_to_shards
from videodata.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """Convert every split that is there."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--out_dir", type=Path, required=True, help="folder for the shards")
    add("--data_dir", type=Path, required=True, help="folder with train, val and test")
    add("--image_size", type=int, default=64, help="side of the stored frames; the aspect is not kept")
    add("--extension", default="png", help="of the frame images")
    add("--layout", choices=("river", "chunked"), default="river", help="river: one dataset per frame, as the original "
        "reads; chunked: one per shard, far faster to read")  # fmt: skip
    add("--videos_per_shard", type=int, default=100_000, help="videos in one file at most")
    args = parser.parse_args(argv)
    if args.image_size < 1:
        raise UserError(f"--image_size must be at least 1, found {args.image_size}")
    for line in frames_to_shards(
        args.data_dir, args.out_dir, args.image_size, args.extension, args.layout, args.videos_per_shard
    ):
        print(line)


if __name__ == "__main__":
    run(main)
