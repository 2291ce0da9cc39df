"""Prepare UCF101, or any folder of videos, as one .npy array of sequences (N, T, H, W, 3), uint8 RGB.

Downloads, extracts and converts. What is there already is not done again, and the same command continues an interrupted
run. Beside the array, <name>.json says which sequences belong to which video and what was left out.
"""

import argparse
from pathlib import Path

from training.cli import make_parser, run
from videodata import ucf101
from videodata.datasets.prepare import (
    add_run_flags,
    add_selection_flags,
    add_sequence_flags,
    run_options,
    selection,
    sequence_settings,
)
from videodata.prepare import prepare_videos
from videodata.ucf101_prepare import Origin, find_videos, plan


def parser() -> argparse.ArgumentParser:
    """All flags with their defaults."""
    official = ucf101.SOURCES["official"]
    made = make_parser(__doc__)
    add = made.add_argument
    add("--dataset_url", default=official.url, help="address of the archive; file:// is allowed")
    add("--rar_path", default=official.file_name, help="the archive (rar, zip or tar); if it exists, no download")
    add("--extract_path", default="UCF101", help="folder of the videos; if it exists, no download and no extraction")
    add("--output_npy_file", default="ucf101_50_frames.npy", help="the array; parent folders are made")
    add_sequence_flags(made)
    add("--video_folder", help="take the videos below this folder: no download, no archive")
    add(
        "--source",
        choices=sorted(ucf101.SOURCES),
        default="official",
        help="where to download from; the mirror is a zip with a known SHA-256 and needs no rar program",
    )
    add("--insecure", action="store_true", help="accept any TLS certificate of the server")
    add_selection_flags(made)
    add_run_flags(made)
    return made


def main(arguments: list[str] | None = None) -> None:
    """Prepare the videos that the command line names."""
    args = parser().parse_args(arguments)
    settings, output = sequence_settings(args), Path(args.output_npy_file)
    origin = Origin.choose(args.source, args.dataset_url, args.rar_path, args.extract_path, args.insecure)
    where = Path(args.video_folder) if args.video_folder else origin
    if args.dry_run:
        print(*plan(where, selection(args), settings, output), sep="\n")
        return
    videos = find_videos(where, selection(args), settings)
    summary = prepare_videos(videos, output, settings, **run_options(args))
    print(*summary.lines(settings), sep="\n")


if __name__ == "__main__":
    run(main)
