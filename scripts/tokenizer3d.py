"""Videos, latents and tokens through the 3-D tokenizer: scripts/tokenizer3d.py reconstruct IN OUT --checkpoint FILE"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import HelpFormatter, dtype_name, make_parser, number, positive_int, run

if TYPE_CHECKING:
    from tokenizer3d import Tokenizer3D

LATENTS = ".safetensors"


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Reconstruct videos, turn them into latents or tokens and back, convert and describe weights.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        group = part.add_argument_group("model")
        group.add_argument("--checkpoint", required=True, help="file, folder of save_pretrained, or run folder")
        group.add_argument("--version", choices=("1.0", "1.1"), help="of a published file whose name does not tell it")
        return part

    for name, summary, made in (
        ("reconstruct", "videos to videos of the same length, size, rate and sound", "mp4"),
        (
            "encode",
            "videos to latents (KL) or tokens (FSQ); files that are done are passed over",
            "file",
        ),
        ("decode", "files of `encode` to videos", "mp4"),
    ):
        part = add(name, summary)
        part.add_argument("input", type=Path, help="a file, or a folder of files")
        part.add_argument("output", type=Path, help=f"{made} for a file, folder for a folder")
        part.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        part.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights")
        part.add_argument("--step_latents", type=positive_int, default=1, help="latents at a time: more memory, faster")
        part.add_argument("--tile", type=positive_int, help="side of exact tiles in latents, for large frames")
        if name == "encode":
            part.add_argument(
                "--dtype", type=dtype_name, choices=("fp32", "fp16", "bf16"), default="fp32", help="of stored latents"
            )
        else:
            part.add_argument(
                "--quality", type=number(int, 0, 51), default=6, help="rate factor of H.264; lower: better"
            )
        if name == "decode":
            part.add_argument("--sound_from", type=Path, help="video whose sound is added")
    part = add("convert", "weights of any kind to a folder with model.safetensors and config.json")
    part.add_argument("output", type=Path, help="the folder")
    part.add_argument("--ema", action="store_true", help="the averaged weights of a published training checkpoint")
    add("info", "what a file of weights holds")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Do what the sub-command says."""
    args = build_parser().parse_args(argv)
    if args.command == "info":
        show(open_model(args))
    elif args.command == "convert":
        convert(args)
    else:
        work_through(args)


def open_model(args: argparse.Namespace) -> Tokenizer3D:
    """The model of the flags, on its device."""
    from tokenizer3d.files import load_model
    from tokenizer3d.films import FLOATS
    from tokenizer3d.tiles import Pieces
    from training.distributed import announced, resolve_device

    device = announced(resolve_device(args.device)) if hasattr(args, "device") else "cpu"
    model, _ = load_model(args.checkpoint, device, args.version)
    if hasattr(args, "precision"):
        model.to(FLOATS[args.precision])
        model.pieces = Pieces(args.step_latents, tile=args.tile)
    return model


def show(model: Tokenizer3D) -> None:
    """Print the facts of a model."""
    for key, value in model.config.to_dict().items():
        print(f"{key}: {value}")
    print(f"compression: {model.temporal_factor} x {model.spatial_factor} x {model.spatial_factor}")
    print(f"codes: {model.codebook_size or 'none'}")
    print(f"parameters: {sum(value.numel() for value in model.parameters()):,}")


def convert(args: argparse.Namespace) -> None:
    """Write the folder of save_pretrained."""
    from tokenizer3d import Tokenizer3D

    model = Tokenizer3D.from_single_file(args.checkpoint, args.version, ema=True) if args.ema else open_model(args)
    model.save_pretrained(args.output, source=Path(args.checkpoint).name)
    print(f"{args.output}: {model.config.name or 'a tokenizer'}, version {model.config.version}")


def work_through(args: argparse.Namespace) -> None:
    """One file or all of a folder; what fails is told at the end, and does not keep the others from being written."""
    from tokenizer3d import films
    from training.writing import check_place
    from videodata.errors import UserError

    unreadable: dict[Path, str] = {}  # links to nothing, locked folders: they keep nothing else from being written
    pairs = list(places(args, unreadable))
    model = open_model(args)
    work: dict[str, Callable[[Path, Path], object]] = {
        "reconstruct": lambda source, place: model.reconstruct(source, place, quality=args.quality),
        "encode": lambda source, place: films.encode_file(model, source, place, args.dtype),
        "decode": lambda source, place: films.decode_file(
            model, source, place, quality=args.quality, sound_from=args.sound_from
        ),
    }
    failed = [f"{path}: {reason}" for path, reason in unreadable.items()]
    for source, place in pairs:
        try:
            if args.command == "encode" and is_done(place, model):
                continue
            check_place(place)
            if place.exists() and place.samefile(source):
                raise UserError(f"{place}: is the video itself, which would be replaced; name another place")
            work[args.command](source, place)
        except UserError as error:
            if len(pairs) == 1 and not failed:
                raise
            failed.append(str(error))
            continue
        print(place)
    if failed:
        raise UserError(f"{len(failed)} of {len(pairs) + len(unreadable)} files failed: {'; '.join(failed)}")


def places(args: argparse.Namespace, unreadable: dict[Path, str]) -> Iterator[tuple[Path, Path]]:
    """Each file of the input and the place of its result; what hides files goes into `unreadable`."""
    from videodata.errors import UserError
    from videodata.files import files_in_folder
    from videodata.video import VIDEO_SUFFIXES

    suffixes = (LATENTS,) if args.command == "decode" else VIDEO_SUFFIXES
    ending = LATENTS if args.command == "encode" else ".mp4"
    if not args.input.is_dir():
        if args.output.suffix.lower() != ending:
            raise UserError(f"{args.output}: the name must end in {ending}")
        yield args.input, args.output
        return
    files = files_in_folder(
        args.input, suffixes, wanted="videos" if args.command != "decode" else "", unreadable=unreadable
    )
    if not files:
        raise UserError(f"{args.input}: holds no file that ends in {', '.join(sorted(suffixes))}")
    plain = [(args.output / source.relative_to(args.input)).with_suffix(ending) for source in files]
    counts = Counter(plain)  # a.mp4 and a.webm keep their suffixes: a.mp4.safetensors, a.webm.safetensors
    for source, place in zip(files, plain, strict=True):
        yield source, place if counts[place] == 1 else place.with_name(source.name + ending)


def is_done(place: Path, model: Tokenizer3D) -> bool:
    """Whether a whole file of this model is there. Raises UserError for one of another model."""
    from tokenizer3d.films import read_latents
    from videodata.errors import disk_errors

    with disk_errors(place):  # its name may be too long
        if not place.exists():
            return False
    read_latents(place, model)
    return True


if __name__ == "__main__":
    run(main)
