"""Score a trained model on clips: a table on the screen and a JSON file with definitions and circumstances."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from evaluation.report import Report
from training.cli import HelpFormatter, make_parser, run
from training.device import resolve_device
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError

SMALLEST_SIDE = 11  # pixels, the window of SSIM


@dataclass
class Evaluation:
    """How one model is evaluated: the flags of its sub-command, and what turns them into a report."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    evaluate: Callable[[argparse.Namespace], Report]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every sub-command."""
    parser.add_argument("--checkpoint", required=True, help="run folder or weight file")
    parser.add_argument("--data", required=True, help="any source of clips: .npy, folder of videos, shapes:<n>, ...")
    parser.add_argument("--split", choices=("train", "val", "test"), help="part of --data (default: all of it)")
    parser.add_argument("--num_clips", type=int, default=64, help="evenly spread over --data; 0: all")
    parser.add_argument("--batch_size", type=int, default=4, help="clips at a time; does not change the result")
    parser.add_argument("--lpips", choices=("alex", "vgg"), help="LPIPS too, with this network")
    parser.add_argument("--lpips_weights", metavar="PATH", help="its weight file or folder (default: found by name)")
    parser.add_argument("--output", type=Path, default=Path("evaluation.json"), help="the JSON file")
    parser.add_argument("--seed", type=int, default=0, help="of the windows and of the posterior's noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_video_vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, help="per clip (default: as in training)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)")
    parser.add_argument("--mean_latents", action="store_true", help="the posterior's means in place of draws from it")


def evaluate_video_vae(args: argparse.Namespace) -> Report:
    from video_vae.epoch_files import load_network
    from video_vae.evaluate import score_reconstructions

    network, config = load_network(args.checkpoint, resolve_device(args.device))
    data = config["data"]
    frames, size = args.frames or data["frames"], tuple(args.size or network.config.image_size)
    if min(size) < SMALLEST_SIDE:
        raise UserError(f"frames of {size[1]}x{size[0]} have no SSIM (at least {SMALLEST_SIDE} pixels); use --size")
    clips = open_some_clips(args, frames, size, data["stride"])
    report = Report("video_vae", str(args.checkpoint), args.data, frames, data["stride"], *size)
    report.details = {
        "data_fingerprint": clips.fingerprint(),
        "split": args.split,
        "seed": args.seed,
        "latents": "means of the posterior" if args.mean_latents else "drawn from the posterior",
    }
    report.scores = score_reconstructions(
        network, clips, args.batch_size, args.seed, args.mean_latents, args.lpips, args.lpips_weights
    )
    return report


def add_vqgan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=8, help="per clip")
    parser.add_argument("--patch_size", type=int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=int, help="patches below each other (default: as in training)")
    parser.add_argument("--num_patches_w", type=int, help="patches beside each other (default: as in training)")


def evaluate_vqgan(args: argparse.Namespace) -> Report:
    from vqgan.evaluate import score_reconstructions
    from vqgan.model_file import load_model
    from vqgan.trained import settle_grid

    model = load_model(args.checkpoint).to(resolve_device(args.device))
    settle_grid(args)
    rows, columns = args.num_patches_h, args.num_patches_w
    size = rows * args.patch_size, columns * args.patch_size
    clips = open_some_clips(args, args.frames, size, 1)
    result = score_reconstructions(model, clips, rows, columns, args.batch_size, args.lpips, args.lpips_weights)
    report = Report("vqgan", str(args.checkpoint), args.data, args.frames, 1, *size)
    report.scores = result.scores
    report.details = {
        "data_fingerprint": clips.fingerprint(),
        "split": args.split,
        "seed": args.seed,
        "codes_used": result.usage.used,
        "codebook_perplexity": result.usage.perplexity,
        "codebook_size": model.num_embeddings,
        "bits_per_frame": result.bits_per_frame,
    }
    return report


def open_some_clips(args: argparse.Namespace, frames: int, size: tuple[int, int], stride: int) -> ClipDataset:
    """`num_clips` clips of the data, evenly spread over its videos; all of them where there are no more."""
    clips = open_clips(args.data, frames, size, stride, args.split, args.seed)
    if not 0 < args.num_clips < len(clips):
        return clips
    return open_clips(args.data, frames, size, stride, args.split, args.seed, total_videos=args.num_clips)


EVALUATIONS = {
    "video_vae": Evaluation("reconstructions of the video VAE", add_video_vae_arguments, evaluate_video_vae),
    "vqgan": Evaluation("reconstructions of a VQGAN, and its codebook", add_vqgan_arguments, evaluate_vqgan),
}


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per model."""
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="model", required=True)
    for name, evaluation in EVALUATIONS.items():
        command = commands.add_parser(name, help=evaluation.summary, formatter_class=HelpFormatter)
        add_common_arguments(command)
        evaluation.add_arguments(command)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the table, write the JSON file."""
    args = build_parser().parse_args(argv)
    if args.batch_size < 1 or args.num_clips < 0:
        raise UserError("--batch_size must be at least 1 and --num_clips at least 0")
    report = EVALUATIONS[args.model].evaluate(args)
    print(report.table())
    print(f"\nwritten to {report.write(args.output)}")


if __name__ == "__main__":
    run(main)
