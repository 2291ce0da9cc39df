"""Command-line flags that the preparing scripts share."""

import argparse

from videodata.geometry import RESIZE_RULES
from videodata.prepare import SequenceSettings
from videodata.ucf101_prepare import Selection


def add_sequence_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of SequenceSettings."""
    rules = [rule for rule in RESIZE_RULES if rule != "none"]
    add = parser.add_argument
    add("--num_frames", type=int, default=50, help="frames per sequence")
    add("--width", type=int, default=320, help="width of the frames in pixels")
    add("--height", type=int, default=240, help="height of the frames in pixels")
    add("--stride", type=int, default=1, help="take every n-th frame of a video")
    add("--resize", choices=rules, default="squeeze", help="squeeze ignores the aspect ratio, crop and pad keep it")
    add("--keep_damaged", action="store_true", help="keep what can be decoded of a damaged video")


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of Selection."""
    add = parser.add_argument
    add("--max_videos", type=int, default=0, help="take only the first n videos; 0: all")
    add("--classes", default="", help="take only these classes (sub-folders), separated by commas")
    add("--split_file", help="take only the videos of a list such as trainlist01.txt")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that do not change the result."""
    add = parser.add_argument
    add("--workers", type=int, default=0, help="decoding processes; 0: one per core")
    add(
        "--max_bad_fraction",
        type=float,
        default=0.5,
        help="exit with status 2 if more than this part of the videos cannot be read (the rest is written)",
    )
    add("--keep_going", action="store_true", help="the same as --max_bad_fraction 1")
    add("--restart", action="store_true", help="begin again, over a partial or finished file")
    add("--dry_run", action="store_true", help="only say what would be done and how large the result would be")


def sequence_settings(args: argparse.Namespace) -> SequenceSettings:
    """What add_sequence_flags read."""
    return SequenceSettings(args.num_frames, args.height, args.width, args.stride, args.resize, args.keep_damaged)


def selection(args: argparse.Namespace) -> Selection:
    """What add_selection_flags read."""
    classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    return Selection(classes, args.split_file, args.max_videos)


def run_options(args: argparse.Namespace) -> dict:
    """What add_run_flags read, for prepare_npy."""
    allowed = 1.0 if args.keep_going else args.max_bad_fraction
    return {"workers": args.workers or None, "max_bad_fraction": allowed, "restart": args.restart}
