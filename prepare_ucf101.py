"""Prepare UCF101, or any folder of videos, as one .npy array of sequences (N, T, H, W, 3), uint8 RGB.

Downloads, extracts and converts. What is there already is not done again, and the same command continues an interrupted
run. Beside the array, <name>.json says which sequences belong to which video and what was left out.
"""

from pathlib import Path

from training.cli import Parser, make_parser, run
from videodata.datasets import ucf101
from videodata.datasets.dataset import DataSet, Place, Selection
from videodata.datasets.own import Folder
from videodata.datasets.prepare import (
    Job,
    add_run_flags,
    add_selection_flags,
    add_sequence_flags,
    run_job,
    sequence_settings,
)
from videodata.datasets.ucf101 import WholeUcf101


def build_parser() -> Parser:
    official = ucf101.SOURCES["official"]
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset_url", default=official.url, help="address of the archive; file:// is allowed")
    add("--rar_path", default=official.file_name, help="the archive (rar, zip or tar); if it exists, no download")
    add("--extract_path", default="UCF101", help="folder of the videos; if it exists, no download and no extraction")
    add("--output_npy_file", default="ucf101_50_frames.npy", help="the array; parent folders are made")
    add_sequence_flags(parser)
    add("--video_folder", help="take the videos below this folder: no download, no archive")
    add("--source", choices=sorted(ucf101.SOURCES), default="official", help="where to download from; the mirror is a "
        "zip with a known SHA-256 and needs no rar program")  # fmt: skip
    add("--insecure", action="store_true", help="accept any TLS certificate of the server")
    add_selection_flags(parser)
    add_run_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    chosen = Selection.from_args(args)
    if args.video_folder:
        dataset: DataSet = Folder(Path(args.video_folder), described=False)
    else:
        dataset = WholeUcf101(args.source, args.dataset_url, args.rar_path, args.extract_path, chosen)
    place, out = Place(Path(), insecure=args.insecure), Path(args.output_npy_file)
    settings = sequence_settings(args)
    run_job(Job(dataset, place, out, "npy", settings, (None,), selection=chosen, incomplete=args.keep_going), args)


if __name__ == "__main__":
    run(main)
