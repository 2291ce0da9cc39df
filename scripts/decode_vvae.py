"""Latents of VideoVAE+ back to videos: decode_vvae.py INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

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
from vvae.src.latent_files import SUFFIXES as LATENT_FILE_SUFFIXES
from vvae.src.latent_files import read_info
from vvae.src.streaming import decode_file


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Decode latent files that encode_vvae.py wrote, or that have the same shape and facts.")
    parser.add_argument("input", type=Path, help="latent file (.npy, .hdf5), or folder of them")
    parser.add_argument("output", type=Path, help="video for a file, folder for a folder")
    parser.add_argument("--audio_from", type=Path, help="video whose sound is added")
    parser.add_argument("--quality", type=int, default=6, help="rate factor of the H.264 encoder; lower is better")
    add_file_arguments(parser)
    add_model_arguments(parser)
    add_window_arguments(parser)
    add_text_arguments(parser)
    return parser


@own_errors()
def main(argv: list[str] | None = None) -> None:
    """Decode each file."""
    args = build_parser().parse_args(argv)
    streaming_from(args)
    files = files_in(args.input, LATENT_FILE_SUFFIXES)
    pairs = pending(places_for(args.input, files, args.output, ".mp4"), args.skip_existing)
    model = open_model(args)

    def decode(path: Path, output: Path) -> str:
        with frame_bar(path, read_info(path).frames) as bar:
            streaming = streaming_from(args, text_for(model, args, path), bar.update)
            return f"{decode_file(model, path, output, streaming, args.audio_from)} frames"

    require_success(for_each(pairs, decode), files)


if __name__ == "__main__":
    run(main)
