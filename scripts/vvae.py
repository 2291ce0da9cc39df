"""Videos, images and latents through VideoVAE+: scripts/vvae.py reconstruct INPUT OUTPUT --ckpt sota-4-16z.ckpt"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import HelpFormatter, make_parser, nonnegative_int, number, positive_int, run

DTYPES = ("fp32", "bf16", "fp16")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Reconstruct videos and images, encode videos, decode latents, measure latents.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)

    add_reconstruct_arguments(add("reconstruct", "videos and images: same size, frame rate, number of frames, sound"))

    part = add("encode", "videos to float32 latents (T/4, z, H/8, W/8) with size, rate and length")
    part.add_argument("input", type=Path, help="video, or folder of videos")
    part.add_argument("output", type=Path, help="file (.npy, .hdf5) for a file, folder for a folder")
    part.add_argument("--format", choices=("npy", "hdf5"), default="npy", help="of the files in a folder")
    add_reading_arguments(part)
    add_shared_arguments(part)

    part = add("decode", "latent files of `encode`, or others with the same shape and facts, to videos")
    part.add_argument("input", type=Path, help="latent file (.npy, .hdf5), or folder of them")
    part.add_argument("output", type=Path, help="video for a file, folder for a folder")
    part.add_argument("--audio_from", type=Path, help="video whose sound is added")
    add_writing_arguments(part)
    add_shared_arguments(part)

    part = add("statistics", "per-channel mean and deviation of latents, overall scaling factor")
    part.add_argument("latents", type=Path, help="latent file or folder of them, written by `encode`")
    part.add_argument(
        "--out", "--output", type=Path, default=Path("latent_statistics.json"),
        help="JSON file; an existing one, such as the config.json of save_pretrained, keeps its other keys",
    )  # fmt: skip
    return parser


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="video or image, or a folder of them")
    parser.add_argument("output", type=Path, help="file for a file, folder for a folder")
    parser.add_argument("--save_latent", choices=(".npy", ".hdf5"), help="write the latents beside each video, too")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="images at a time")
    add_reading_arguments(parser)
    add_writing_arguments(parser)
    add_shared_arguments(parser)


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="scale larger videos down to fit"
    )
    parser.add_argument("--keep_damaged", action="store_true", help="take what can be decoded of damaged videos")


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quality", type=number(int, 0, 51), default=6, help="rate factor of H.264; lower is better")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, how long and large videos are cut, captions."""
    parser.add_argument("--skip_existing", action="store_true", help="leave out files whose result is there already")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        "--ckpt",
        help="checkpoint (.ckpt, .safetensors), folder of save_pretrained, run folder, or a name of weights/",
    )
    group.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", "--precision", choices=DTYPES, default="fp32", help="of weights and activations")
    group.add_argument("--compile", action="store_true", help="compile the networks: slow start, faster windows")
    group.add_argument("--slice_frames", type=positive_int, help="frames per slice in a window (default: by memory)")
    group = parser.add_argument_group("windows")
    group.add_argument("--chunk_size", type=positive_int, default=16, help="frames of a window, a multiple of 4")
    group.add_argument("--overlap", type=nonnegative_int, default=4, help="frames shared by windows; 0: none")
    group.add_argument("--tile", type=positive_int, nargs=2, metavar=("H", "W"), help="cut frames into such tiles")
    group.add_argument("--tile_overlap", type=nonnegative_int, default=64, help="pixels shared by neighbouring tiles")
    group = parser.add_argument_group("captions (text-guided models; default: NAME.txt beside the video, else none)")
    group.add_argument("--caption", help="one caption for all videos; needs the text encoder")
    group.add_argument("--text_encoder", metavar="FOLDER", help="folder of google/flan-t5-large (default: its cache)")
    group.add_argument(
        "--text", type=Path, metavar="PATH",
        help="embeddings of one caption, written by vvae.save_text; or a folder that keeps those of all captions",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Work through the files."""
    work(build_parser().parse_args(argv))


def work(args: argparse.Namespace) -> None:
    """What the sub-command `args.command` asks for."""
    from training.distributed import announced, resolve_device
    from vvae.commands import process_files
    from vvae.train import own_errors

    if args.command != "statistics":
        args.device = announced(resolve_device(args.device))
    with own_errors():
        process_files(args)


if __name__ == "__main__":
    run(main)
