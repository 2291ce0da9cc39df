"""Clips of a Kinetics list from YouTube: download_kinetics.py train.csv videos/train --trim --num-jobs 4

Writes <output_dir>/<label>/<id>_<start>_<end>.mp4 and a ledger of what became of each clip (ok, gone, blocked, failed).
The same command continues: clips that are there or gone for good are passed over. Needs the package yt-dlp.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.dataset import Shard
from videodata.datasets.youtube import WATCH, YouTube, read_clips


def main(argv: list[str] | None = None) -> None:
    """Download what is not settled yet."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("input_csv", type=Path, help="list with the columns youtube_id, time_start, time_end and, if it has one, label")
    add("output_dir", type=Path, help="folder of the videos")
    add("--trim", action="store_true", help="keep the clip alone, without sound; else the whole video is kept")
    add("--num-jobs", type=int, default=1, help="downloads at a time")
    add("--retries", type=int, default=3, help="tries per clip, with growing waits")
    add("--rate_limit", type=int, default=0, help="bytes per second of each download; 0: none")
    add("--sleep", type=float, default=0.0, help="seconds between two downloads of a job: fewer refusals")
    add("--cookies", help="cookies file of a browser that is signed in, for when YouTube asks for it")
    add("--shard", default="1/1", metavar="I/N", help="take the I-th of N shares of the list")
    add("--address", default=WATCH, help="address of a video; {id} stands for its name")
    args = parser.parse_args(argv)
    youtube = YouTube(
        args.trim, max(1, args.num_jobs), max(1, args.retries), rate_limit=args.rate_limit, sleep=args.sleep,
        cookies=args.cookies, address=args.address,
    )  # fmt: skip
    shard = Shard.parse(args.shard)
    clips = shard.of(read_clips(args.input_csv))
    counts = youtube.download(clips, args.output_dir, shard.suffix)
    print(f"{args.output_dir}: {counts['ok']} of {len(clips)} clips, {counts['gone']} are gone from YouTube")


if __name__ == "__main__":
    run(main)
