"""Kinetics videos to PNG frames: convert_kinetics.py --video_dir videos/train --output_dir datasets/kinetics600/train

Writes <output_dir>/<class>/<name>/<j>.png, j from 1: the centre square, resized with the Lanczos filter. Videos
that are there are not done again. With --input_csv it only writes remaining_last.csv: the clips of the list
that are not there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.kinetics600 import convert_to_frames, write_remaining
from videodata.errors import UserError

REMAINING = "remaining_last.csv"


def main(argv: list[str] | None = None) -> None:
    """Convert all videos."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--video_dir", type=Path, required=True, help="folder with <class>/<name>.mp4")
    add("--output_dir", type=Path, required=True, help="folder of the frames")
    add("--lables", "--labels", dest="labels", type=Path, help="file with the names of the classes to keep, one a line")
    add("--img_size", type=int, default=64, help="side of the frames")
    add("--num_jobs", type=int, default=1, help="videos at a time")
    add("--input_csv", type=Path, help=f"write {REMAINING}, the rows of this list that are not in video_dir, and stop")
    args = parser.parse_args(argv)
    if args.img_size < 1 or args.num_jobs < 1:
        raise UserError("--img_size and --num_jobs must be at least 1")
    if args.input_csv is not None:
        print(write_remaining(args.input_csv, args.video_dir, Path(REMAINING)))
        return
    for line in convert_to_frames(args.video_dir, args.output_dir, args.labels, args.img_size, args.num_jobs):
        print(line)


if __name__ == "__main__":
    run(main)
