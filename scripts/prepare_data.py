"""From the internet to clips: download a data set, unpack it, convert it, and say what is missing.

Every part of a data set becomes a file or folder of its own below --out, which open_clips(out, split=...) reads:
train.npy (arrays of sequences), train/ (HDF5 shards) or train/<label>/<video>/ (PNG frames), with a .json beside it.
The same command continues after any interruption. Many machines can share the work: --shard 1/8 ... 8/8, then merge.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from videodata.datasets.bair import CAMERAS, Bair
from videodata.datasets.clevrer import Clevrer
from videodata.datasets.dataset import DataSet, Place, Shard
from videodata.datasets.kinetics600 import SOURCES, Kinetics600
from videodata.datasets.kth import PROTOCOLS, Kth
from videodata.datasets.own import Folder, GeneratedShapes
from videodata.datasets.prepare import (
    Job,
    add_run_flags,
    add_selection_flags,
    add_sequence_flags,
    obtain,
    plan,
    prepare,
    run_options,
    selection,
)
from videodata.datasets.prepare import sequence_settings as settings_of
from videodata.datasets.ucf101 import COUNTS, Ucf101
from videodata.errors import UserError
from videodata.prepare import FORMATS
from videodata.shapes import LENGTH, Shapes
from videodata.sources import merge_parts
from videodata.ucf101 import SOURCES as UCF101_SOURCES
from videodata.ucf101 import check_classes

# What papers use, where they agree: size, rule, frames per sequence of an array.
DEFAULTS = {
    "ucf101": {"width": 320, "height": 240, "num_frames": 50},
    "bair": {"width": 64, "height": 64, "num_frames": 30},
    "kinetics600": {"width": 64, "height": 64, "num_frames": 16, "resize": "crop", "clips_per_video": 1},
    "kth": {"width": 64, "height": 64, "num_frames": 40},
    "clevrer": {"width": 128, "height": 128, "num_frames": 128},
    "folder": {},
    "shapes": {"width": 64, "height": 64, "num_frames": 16, "format": "videos"},
}
HELP = {
    "ucf101": "UCF101: 13,320 clips of 101 classes",
    "bair": "BAIR robot pushing, small: 43,520 clips of 30 frames",
    "kinetics600": "Kinetics-600: about 450,000 clips of 10 s",
    "kth": "KTH actions: 2,391 sequences",
    "clevrer": "CLEVRER: 20,000 rendered clips",
    "folder": "a folder of videos of your own",
    "shapes": "generated coloured shapes that move and bounce",
}


def parser() -> argparse.ArgumentParser:
    """One sub-command per data set."""
    made = make_parser(__doc__)
    commands = made.add_subparsers(dest="dataset", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        _add_common_flags(command)
        if name not in ("folder", "shapes"):
            _add_download_flags(command)
        OWN_FLAGS[name](command)
        command.set_defaults(**DEFAULTS[name])
    merge = commands.add_parser("merge", help="write the index of the parts that --shard made")
    merge.add_argument("out", help="the folder that was --out")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data set that the command line names."""
    args = parser().parse_args(arguments)
    if args.dataset == "merge":
        for path, content in merge_parts(Path(args.out)):
            print(f"{path}: {len(content['parts'])} parts, {content['videos']} videos, {content['sequences']} items")
        return
    job = make_job(args)
    if args.dry_run:
        print(*plan(job), sep="\n")
    elif getattr(args, "download_only", False):
        obtain(job)
        print(f"{job.place.root}: {args.dataset} is there")
    else:
        for line in prepare(job, **run_options(args)):
            print(line, flush=True)


def make_job(args: argparse.Namespace) -> Job:
    """What the command line asks for."""
    dataset = MAKERS[args.dataset](args)
    shard, chosen = Shard.parse(args.shard), selection(args)
    place = Place(
        Path(getattr(args, "root", ".")),
        getattr(args, "url_root", None),
        getattr(args, "insecure", False),
        share=shard.count > 1,
        delete_archives=getattr(args, "delete_archives", False),
    )
    return Job(
        dataset, place, Path(args.out), args.format, settings_of(args), _splits(dataset, args), shard,
        tuple(check_classes(chosen.classes)) if args.dataset == "ucf101" else chosen.classes,
        chosen.max_videos, chosen.split_file, args.clips_per_video, args.keep_going,
    )  # fmt: skip


def _splits(dataset: DataSet, args: argparse.Namespace) -> tuple[str | None, ...]:
    if args.split == "all":
        return dataset.splits
    if args.split not in dataset.splits:
        raise UserError(
            f"--split {args.split}: {dataset.name} has {', '.join(s or 'no parts' for s in dataset.splits)}"
        )
    return (args.split,)


def _shapes(args: argparse.Namespace) -> DataSet:
    if args.size:
        args.width = args.height = args.size
    return GeneratedShapes(Shapes(args.count, args.frames, (args.height, args.width), args.seed))


MAKERS: dict[str, Callable[[argparse.Namespace], DataSet]] = {
    "ucf101": lambda args: Ucf101(args.fold, args.source),
    "bair": lambda args: Bair(args.camera),
    "kinetics600": lambda args: Kinetics600(args.source, keep_going=args.keep_going, classes=selection(args).classes),
    "kth": lambda args: Kth(args.protocol, args.whole_films),
    "clevrer": lambda args: Clevrer(),
    "folder": lambda args: Folder(Path(args.video_folder)),
    "shapes": _shapes,
}


def _add_common_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", required=True, help="folder of the result; or, with --format npy, the name of one .npy for all parts")
    add("--format", choices=FORMATS, default="npy", help="npy: sequences of --num_frames; hdf5, frames: whole videos; "
        "river: HDF5 as RIVER and Neural SDE read it; videos: mp4")  # fmt: skip
    add("--split", default="all", help="one part of the data set (train, val, test)")
    add(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="do the I-th of N shares; when all are done: prepare_data.py merge",
    )
    add("--clips_per_video", type=int, default=0, help="take only the first n sequences of each video; 0: all")
    add_sequence_flags(command)
    add_selection_flags(command)
    add_run_flags(command)


def _add_download_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--root", default=".", help="folder of the archives and of what they hold; what is there is not fetched again")
    add("--url_root", help="take all files from below this address in place of the published hosts, such as a mirror "
        "in your network: http://mirror/data or file:///mnt/data")  # fmt: skip
    add("--insecure", action="store_true", help="accept any TLS certificate of the server")
    add("--download_only", action="store_true", help="stop when everything is unpacked")
    add("--delete_archives", action="store_true", help="delete each archive once it is unpacked")


def _ucf101_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--fold", type=int, choices=COUNTS, default=1, help="which of the official divisions")
    command.add_argument("--source", choices=sorted(UCF101_SOURCES), default="mirror",
                         help="mirror: a zip with a known SHA-256; official: a rar")  # fmt: skip


def _bair_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--camera", choices=CAMERAS, default=CAMERAS[0], help="papers use image_aux1")


def _kinetics_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", choices=SOURCES, default="mirror",
                         help="mirror: a frozen copy, one archive per class; youtube: needs yt-dlp, see "
                         "scripts/download_kinetics.py for its settings")  # fmt: skip


def _kth_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--protocol", choices=PROTOCOLS, default="prediction",
                         help="prediction: persons 1-16 train, 17-25 test; svg: 1-20 and 21-25; recognition: the "
                         "train, val and test persons of the authors")  # fmt: skip
    command.add_argument("--whole_films", action="store_true", help="films in place of the listed sub-sequences")


def _folder_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("video_folder", help="all videos below this folder are taken")


def _shapes_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--count", type=int, default=200, help="number of videos")
    add("--frames", type=int, default=LENGTH, help="frames per video")
    add("--size", type=int, default=0, help="width and height of the frames; 0: --width and --height")
    add("--seed", type=int, default=0, help="another seed gives other videos")


OWN_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "ucf101": _ucf101_flags,
    "bair": _bair_flags,
    "kinetics600": _kinetics_flags,
    "kth": _kth_flags,
    "clevrer": lambda command: None,
    "folder": _folder_flags,
    "shapes": _shapes_flags,
}


if __name__ == "__main__":
    run(main)
