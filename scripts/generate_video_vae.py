"""Clips from a trained video VAE: prior samples, reconstructions, interpolations, per-level traversals."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from training.device import resolve_device
from video_vae.files import load_network
from video_vae.generate import interpolate, reconstruct, sample, traverse, write_array, write_clips, write_strip
from video_vae.model import TransformerNetwork
from videodata.clips import open_clips
from videodata.errors import UserError

OF_CLIPS = ("reconstructions", "interpolation", "traversals")


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser("Generate clips with a trained video VAE: mp4 files, PNG strips, and the samples as .npy.")
    parser.add_argument(
        "--checkpoint", required=True, help="run folder, <stem>_epoch_<N>.pth, step-*.pt or weights-*.safetensors"
    )
    parser.add_argument("--output_dir", default="generated", help="folder for the files")
    parser.add_argument("--num_samples", type=int, default=8, help="clips from the prior; 0: none")
    parser.add_argument("--num_frames", type=int, help="per sample, any number (default: as in training)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the samples (default: as in training)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="factor on the prior's standard deviations")
    parser.add_argument("--data", help="any source of clips: also reconstructions, an interpolation and traversals")
    parser.add_argument("--split", choices=("train", "val", "test"), help="part of --data")
    parser.add_argument("--num_clips", type=int, default=4, help="clips to reconstruct, evenly spread over --data")
    parser.add_argument("--steps", type=int, default=5, help="clips per interpolation and traversal, ends included")
    parser.add_argument("--only", nargs="+", choices=("samples", *OF_CLIPS), help="make these alone")
    parser.add_argument("--fps", default="12", help="frames per second of the files, such as 25 or 30000/1001")
    parser.add_argument("--gif", action="store_true", help="write GIF files beside the mp4 files")
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and i alone")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write everything that was asked for and print where."""
    args = build_parser().parse_args(argv)
    wanted = args.only or (("samples", *OF_CLIPS) if args.data else ("samples",))
    if set(wanted) & set(OF_CLIPS) and not args.data:
        raise UserError(f"--only {' '.join(wanted)} needs clips: name a source with --data")
    network, config = load_network(args.checkpoint, resolve_device(args.device))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if "samples" in wanted and args.num_samples > 0:
        write_samples(network, config, args, folder)
    if set(wanted) & set(OF_CLIPS):
        write_from_clips(network, config, args, folder, wanted)
    print(f"{', '.join(wanted)} written to {folder}")


def write_samples(network: TransformerNetwork, config: dict, args: argparse.Namespace, folder: Path) -> None:
    """Clips from the prior: samples.npy, samples.png, sample_<i>.mp4."""
    frames = args.num_frames or config["data"]["frames"]
    size = tuple(args.size or network.config.image_size)
    if frames < 1 or min(size) < 1:
        raise UserError(f"--num_frames {frames} and --size {size[0]} {size[1]} must be at least 1")
    clips = sample(network, args.num_samples, frames, size, args.temperature, args.seed)
    write_array(folder / "samples.npy", clips)
    write_strip(folder / "samples.png", clips)
    write_clips(folder, "sample", clips, Fraction(args.fps), args.gif)


def write_from_clips(
    network: TransformerNetwork, config: dict, args: argparse.Namespace, folder: Path, wanted: tuple[str, ...]
) -> None:
    """What the model makes of given clips."""
    fps, data = Fraction(args.fps), config["data"]
    source = open_clips(args.data, data["frames"], tuple(network.config.image_size), data["stride"], args.split)
    needed = 2 if "interpolation" in wanted else 1
    if len(source) < needed:
        raise UserError(f"{args.data}: {needed} clips are needed, it has {len(source)}; leave out interpolation")
    count = max(needed, min(args.num_clips, len(source)))
    clips = torch.stack([source[index * len(source) // count] for index in range(count)]).to(network.canvas.device)
    if "reconstructions" in wanted:
        pairs = torch.cat([clips.cpu(), reconstruct(network, clips)], dim=4)  # original left, reconstruction right
        write_strip(folder / "reconstructions.png", torch.stack(pairs.chunk(2, dim=4), dim=1).flatten(0, 1))
        write_clips(folder, "reconstruction", pairs, fps, args.gif)
    if "interpolation" in wanted:
        between = interpolate(network, clips[0], clips[1], args.steps)
        write_strip(folder / "interpolation.png", between)
        write_clips(folder, "interpolation", torch.cat(list(between), dim=3)[None], fps, args.gif)
    if "traversals" in wanted:
        for level in range(1, len(network.config.levels) + 1):
            row = traverse(network, clips[0], level, args.steps, args.seed)
            write_strip(folder / f"traversal_level_{level}.png", row)
            write_clips(folder, f"traversal_level_{level}", torch.cat(list(row), dim=3)[None], fps, args.gif)


if __name__ == "__main__":
    run(main)
