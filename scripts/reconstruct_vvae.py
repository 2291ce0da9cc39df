"""Videos or images through VideoVAE+ and back: reconstruct_vvae.py INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

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
from vvae import VVAEError
from vvae.src.images import SUFFIXES as IMAGE_SUFFIXES
from vvae.src.images import reconstruct_images
from vvae.src.streaming import reconstruct
from vvae.src.video_io import READ_SUFFIXES as VIDEO_SUFFIXES
from vvae.src.video_io import WRITE_SUFFIXES, probe


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Reconstruct videos and images: same size, frame rate, number of frames and sound.")
    parser.add_argument("input", type=Path, help="video or image, or a folder of them")
    parser.add_argument("output", type=Path, help="file for a file, folder for a folder")
    parser.add_argument("--resolution", type=int, nargs=2, metavar=("H", "W"), help="scale larger videos down to fit")
    parser.add_argument("--save_latent", choices=(".npy", ".hdf5"), help="write the latents beside each video, too")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time")
    parser.add_argument("--quality", type=int, default=6, help="rate factor of the H.264 encoder; lower is better")
    parser.add_argument("--keep_damaged", action="store_true", help="take what can be decoded of damaged videos")
    add_file_arguments(parser)
    add_model_arguments(parser)
    add_window_arguments(parser)
    add_text_arguments(parser)
    return parser


@own_errors()
def main(argv: list[str] | None = None) -> None:
    """Reconstruct each file."""
    args = build_parser().parse_args(argv)
    streaming_from(args)
    files = files_in(args.input, VIDEO_SUFFIXES | IMAGE_SUFFIXES)
    places = places_for(args.input, files, args.output, ".mp4", (*WRITE_SUFFIXES, *IMAGE_SUFFIXES))
    images = pending([pair for pair in places if is_image(pair[0])], args.skip_existing)
    videos = pending([pair for pair in places if not is_image(pair[0])], args.skip_existing, args.save_latent)
    model = open_model(args)

    def video(path: Path, output: Path) -> str:
        latent = output.with_suffix(args.save_latent) if args.save_latent else None
        with frame_bar(path, probe(path).frames) as bar:
            streaming = streaming_from(args, text_for(model, args, path), bar.update)
            return f"{reconstruct(model, path, output, save_latent=latent, streaming=streaming)} frames"

    def image(path: Path, output: Path) -> str:
        text = streaming_from(args, text_for(model, args, path)).text_options()
        return f"{reconstruct_images(model, [path], [output], args.batch_size, **text)} image"

    failures: list[VVAEError] = []
    if images and not model.config.caption_guide:
        sources, targets = zip(*images, strict=True)
        count = reconstruct_images(model, sources, targets, args.batch_size, failures)
        print(f"{count} images -> {args.output}")
        images = []
    require_success([*failures, *for_each(videos, video), *for_each(images, image)], files)


def is_image(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


if __name__ == "__main__":
    run(main)
