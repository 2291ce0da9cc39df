"""Videos to latents of VideoVAE+ on disk: encode_vvae.py INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from scripts.vvae_files import (
    add_file_arguments,
    add_model_arguments,
    add_text_arguments,
    add_window_arguments,
    files_in,
    for_each,
    frame_bar,
    open_model,
    own_errors,
    pending,
    places_for,
    require_success,
    streaming_from,
    text_for,
)
from training.cli import make_parser, run
from vvae.src.streaming import encode_file
from vvae.src.video_io import READ_SUFFIXES as VIDEO_SUFFIXES
from vvae.src.video_io import probe


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(
        "Encode videos: float32 latents (T/4, z, H/8, W/8) with size, frame rate and length beside them."
    )
    parser.add_argument("input", type=Path, help="video, or folder of videos")
    parser.add_argument("output", type=Path, help="file (.npy, .hdf5) for a file, folder for a folder")
    parser.add_argument("--format", choices=("npy", "hdf5"), default="npy", help="of the files in a folder")
    parser.add_argument("--resolution", type=int, nargs=2, metavar=("H", "W"), help="scale larger videos down to fit")
    parser.add_argument("--keep_damaged", action="store_true", help="take what can be decoded of damaged videos")
    add_file_arguments(parser)
    add_model_arguments(parser)
    add_window_arguments(parser)
    add_text_arguments(parser)
    return parser


@own_errors()
def main(argv: list[str] | None = None) -> None:
    """Encode each file."""
    args = build_parser().parse_args(argv)
    streaming_from(args)
    files = files_in(args.input, VIDEO_SUFFIXES)
    pairs = pending(places_for(args.input, files, args.output, f".{args.format}"), args.skip_existing)
    model = open_model(args)

    def encode(path: Path, output: Path) -> str:
        with frame_bar(path, probe(path).frames) as bar:
            info = encode_file(model, path, output, streaming_from(args, text_for(model, args, path), bar.update))
        return f"{info.frames} frames"

    require_success(for_each(pairs, encode), files)


if __name__ == "__main__":
    run(main)
