"""Frame trees to HDF5 shards: convert_to_h5.py --out_dir data/h5 --data_dir data/frames --image_size 64 --extension png

Reads <data_dir>/{train,val,test}/<video>/<frame>.<extension>, writes <out_dir>/{train,val,test}/shard_*.hdf5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from training.cli import make_parser, run
from videodata.errors import UserError, VideoError
from videodata.files import natural_key
from videodata.hdf5 import Hdf5Writer
from videodata.splits import SPLITS


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__)
    parser.add_argument("--out_dir", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--image_size", type=int, default=64, help="side of the stored frames; the aspect is not kept")
    parser.add_argument("--extension", default="png", help="of the frame images")
    parser.add_argument("--layout", choices=("river", "chunked"), default="river", help="river: one dataset per "
                        "frame, as the original reads; chunked: one per shard, far faster to read")  # fmt: skip
    parser.add_argument("--videos_per_shard", type=int, default=100_000, help="videos in one file at most")
    return parser


def frame_files(folder: Path, extension: str) -> list[Path]:
    """The frames of a video in the order of their numbers."""
    names = [path for path in folder.iterdir() if path.suffix.lower() == f".{extension.lower().lstrip('.')}"]
    return sorted(names, key=lambda path: natural_key(Path(path.name)))


def read_frame(path: Path, size: int) -> np.ndarray:
    """One frame, uint8 (size, size, 3), resized with Pillow's bicubic filter. Raises VideoError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size)))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise VideoError(path, f"is not a readable image ({error})") from error


def convert_split(args: argparse.Namespace, split: str) -> list[str]:
    """Write the shards of one split; gives a line for each video that is left out."""
    videos = sorted(path for path in (args.data_dir / split).iterdir() if path.is_dir())
    left_out = []
    with Hdf5Writer(args.out_dir / split, args.layout, args.videos_per_shard) as writer:
        for video in tqdm(videos, desc=split, disable=None):
            try:
                files = frame_files(video, args.extension)
                if not files:
                    raise VideoError(video, f"holds no .{args.extension} frames")
                frames = [read_frame(file, args.image_size) for file in files]  # all, so that no half video is stored
            except VideoError as error:
                left_out.append(str(error))
                continue
            writer.add(frames, video.name)
    print(f"{args.out_dir / split}: {writer.written} videos")
    return left_out


def main(argv: list[str] | None = None) -> None:
    """Convert every split that is there."""
    args = build_parser().parse_args(argv)
    if args.image_size < 1:
        raise UserError(f"--image_size must be at least 1, found {args.image_size}")
    splits = [split for split in SPLITS if (args.data_dir / split).is_dir()]
    if not splits:
        raise UserError(f"{args.data_dir}: has none of the folders {', '.join(SPLITS)}")
    left_out = [line for split in splits for line in convert_split(args, split)]
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if left_out:
        raise UserError(f"{len(left_out)} videos were left out, first: {left_out[0]}; the others are stored")


if __name__ == "__main__":
    run(main)
