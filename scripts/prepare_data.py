"""Prepare a data set, or generate one, in the format that a model reads."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.convert import clips_of_files, clips_of_source, write_clips, write_npy_of_source
from videodata.errors import UserError
from videodata.prepare import prepare_npy
from videodata.prepare_flags import (
    add_run_flags,
    add_selection_flags,
    add_sequence_flags,
    run_options,
    selection,
    sequence_settings,
)
from videodata.shapes import LENGTH, Shapes
from videodata.ucf101 import SOURCES
from videodata.ucf101_prepare import Origin, find_videos, plan

FORMATS = ("npy", "hdf5", "frames", "videos")


def parser() -> argparse.ArgumentParser:
    """One sub-command per data set."""
    made = make_parser(__doc__)
    commands = made.add_subparsers(dest="dataset", required=True)
    defaults = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}

    shapes = commands.add_parser("shapes", help="generated coloured shapes that move and bounce", **defaults)
    _add_output(shapes, "videos")
    shapes.add_argument("--count", type=int, default=200, help="number of videos")
    shapes.add_argument("--frames", type=int, default=LENGTH, help="frames per video")
    shapes.add_argument("--num_frames", type=int, default=16, help="frames per sequence, for the format npy")
    shapes.add_argument("--size", type=int, default=64, help="width and height of the frames")
    shapes.add_argument("--seed", type=int, default=0, help="another seed gives other videos")

    folder = commands.add_parser("folder", help="a folder of videos of your own", **defaults)
    folder.add_argument("video_folder", help="all videos below this folder are taken")
    ucf101 = commands.add_parser("ucf101", help="UCF101, downloaded when it is not there", **defaults)
    ucf101.add_argument("--root", default=".", help="folder of the archive and of the extracted videos")
    ucf101.add_argument("--source", choices=sorted(SOURCES), default="mirror", help="where to download from")
    ucf101.add_argument("--insecure", action="store_true", help="accept any TLS certificate of the server")
    for command in (folder, ucf101):
        _add_output(command, "npy")
        add_sequence_flags(command)
        add_selection_flags(command)
        add_run_flags(command)
    return made


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    args = parser().parse_args(arguments)
    if args.dataset == "shapes":
        prepare_shapes(args)
    else:
        prepare_videos(args)


def prepare_shapes(args: argparse.Namespace) -> None:
    """Generate the shapes data set."""
    source = Shapes(args.count, args.frames, args.size, args.seed)
    if args.format == "npy":
        summary = write_npy_of_source(source, args.out, args.num_frames)
        print(f"{summary.path}: {summary.sequences} sequences of {args.num_frames} frames from {len(source)} videos")
    else:
        print(f"{args.out}: {write_clips(clips_of_source(source), args.out, args.format)} videos")


def prepare_videos(args: argparse.Namespace) -> None:
    """Convert UCF101 or a folder of videos."""
    settings, chosen = sequence_settings(args), selection(args)
    where = Path(args.video_folder) if args.dataset == "folder" else _ucf101(args)
    if args.dry_run:
        print(*plan(where, chosen, settings, Path(args.out)), sep="\n")
        return
    videos = find_videos(where, chosen, settings)
    if args.format == "npy":
        print(*prepare_npy(videos, args.out, settings, **run_options(args)).lines(settings), sep="\n")
        return
    skipped: list[dict] = []
    count = write_clips(clips_of_files(videos, settings, skipped), args.out, args.format)
    print(
        f"{args.out}: {count} videos", *(f"  skipped {entry['id']}: {entry['reason']}" for entry in skipped), sep="\n"
    )
    if len(skipped) > run_options(args)["max_bad_fraction"] * len(videos):
        raise UserError(f"{args.out}: {len(skipped)} of {len(videos)} videos could not be read (--max_bad_fraction)")


def _ucf101(args: argparse.Namespace) -> Origin:
    card, root = SOURCES[args.source], Path(args.root)
    return Origin(card.url, root / card.file_name, root / "UCF101", args.insecure)


def _add_output(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--out", required=True, help="the .npy file, or the folder of everything else")
    command.add_argument("--format", choices=FORMATS, default=default, help="what to write")


if __name__ == "__main__":
    run(main)
