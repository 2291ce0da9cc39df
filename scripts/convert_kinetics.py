"""Kinetics videos to PNG frames: convert_kinetics.py --video_dir videos/train --output_dir datasets/kinetics600/train

Writes <output_dir>/<class>/<name>/<j>.png, j from 1: the centre square, resized with the Lanczos filter. Videos
that are there are not done again. With --input_csv it only writes remaining_last.csv: the clips of the list
that are not there.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from PIL import Image

from training.cli import make_parser, run
from videodata import iter_frames
from videodata.datasets.youtube import parse_file_name, read_clips
from videodata.errors import UserError
from videodata.files import atomic_path, files_in_folder
from videodata.frame_folder import write_trees
from videodata.video import VIDEO_SUFFIXES

REMAINING = "remaining_last.csv"


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--video_dir", type=Path, required=True, help="folder with <class>/<name>.mp4")
    add("--output_dir", type=Path, required=True, help="folder of the frames")
    add("--lables", "--labels", dest="labels", type=Path, help="file with the names of the classes to keep, one a line")
    add("--img_size", type=int, default=64, help="side of the frames")
    add("--num_jobs", type=int, default=1, help="videos at a time")
    add("--input_csv", type=Path, help=f"write {REMAINING}, the rows of this list that are not in video_dir, and stop")
    return parser


def square_frames(path: Path, size: int) -> Iterator[Image.Image]:
    """Frames of a video, the centre square of each, size x size. Raises VideoError at the end of a damaged one."""
    for frame in iter_frames(path):
        picture = Image.fromarray(frame)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        yield picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def chosen_videos(root: Path, labels: Path | None) -> list[Path]:
    """The videos of the classes that are kept."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; scripts/download_kinetics.py or prepare_data.py kinetics600 makes it")
    videos = files_in_folder(root, VIDEO_SUFFIXES, wanted="videos")
    if labels is not None:
        names = {line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()}
        videos = [video for video in videos if video.parent.name in names]
    if not videos:
        raise UserError(f"{root}: holds no video" + (f" of the classes in {labels}" if labels else ""))
    return videos


def write_remaining(input_csv: Path, video_dir: Path) -> None:
    """List the clips that are not there."""
    have = {parse_file_name(path.stem) for path in files_in_folder(video_dir, VIDEO_SUFFIXES)}
    remaining = [clip for clip in read_clips(input_csv) if clip.key not in have]
    with atomic_path(REMAINING) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "youtube_id", "time_start", "time_end"])
        rows.writerows([clip.label or "", clip.youtube_id, clip.start, clip.end] for clip in remaining)
    print(f"{REMAINING}: {len(remaining)} clips")


def main(argv: list[str] | None = None) -> None:
    """Convert all videos."""
    args = build_parser().parse_args(argv)
    if args.img_size < 1 or args.num_jobs < 1:
        raise UserError("--img_size and --num_jobs must be at least 1")
    if args.input_csv is not None:
        write_remaining(args.input_csv, args.video_dir)
        return
    videos = chosen_videos(args.video_dir, args.labels)
    tasks = [
        (
            args.output_dir / path.parent.relative_to(args.video_dir) / path.stem,
            partial(square_frames, path, args.img_size),
        )
        for path in videos
    ]
    failures = write_trees(tasks, args.num_jobs, first=1)
    print(f"{args.output_dir}: {len(videos) - len(failures)} of {len(videos)} videos")
    for error in failures:
        print(f"left out: {error}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} videos were left out, the first: {failures[0]}; the others are written")


if __name__ == "__main__":
    run(main)
