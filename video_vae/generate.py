"""Clips out of a trained video VAE: samples, reconstructions, interpolations and traversals, with their files."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.distributed import announced, resolve_device
from training.randomness import SampleNoise
from training.writing import check_place
from video_vae.files import load_model
from video_vae.model import Latents, TransformerNetwork
from video_vae.sampler import Sampler, open_sampler
from videodata.clips import open_clips
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import write_file
from videodata.frame_folder import write_png
from videodata.pixels import to_uint8
from videodata.splits import evaluation_split

OF_CLIPS = ("reconstructions", "interpolation", "traversals")
GAP = 2  # white pixels between the pictures of a strip


def generate_video_vae(args: argparse.Namespace) -> str:
    """Everything that the flags of scripts/generate_video_vae.py ask for; returns a line that says where it is."""
    wanted = tuple(args.only or (("samples", *OF_CLIPS) if args.data else ("samples",)))
    if set(wanted) & set(OF_CLIPS) and not args.data:
        raise UserError(f"--only {' '.join(wanted)} needs clips: name a source with --data")
    if wanted == ("samples",) and not args.num_samples:
        raise UserError("--num_samples 0: there is nothing to write")
    check_place(args.out / "samples.npy")  # now, and not after the work
    network, config = load_model(args.checkpoint, announced(resolve_device(args.device)))
    told = ""
    if "samples" in wanted and args.num_samples:
        sampler = open_sampler(args.checkpoint, network, args.prior, args.prior_steps, args.guidance)
        write_samples(sampler, config, args)
        told = f"; {sampler.describe(args.prior)}"
    if set(wanted) & set(OF_CLIPS):
        part = args.split or evaluation_split(args.data)
        write_from_clips(network, config, args, wanted, part)
        told = f", of clips of {args.data} (split {part}{'' if args.split else ', the default'}){told}"
    return f"{', '.join(wanted)} written to {args.out}{told}"


def write_samples(sampler: Sampler, config: dict, args: argparse.Namespace) -> None:
    """New clips: samples.npy, samples.png, sample_<i>.mp4."""
    frames = args.num_frames or config["data"]["frames"]
    size = tuple(args.size or sampler.network.config.image_size)
    sampler.check_class(args.class_name)
    clips = sample(sampler, args.num_samples, frames, size, args.temperature, args.seed, args.class_name)
    # the layout that main.py trains on: uint8 (N, T, H, W, 3)
    write_file(args.out / "samples.npy", lambda file: np.save(file, to_uint8(clips), allow_pickle=False))
    write_strip(args.out / "samples.png", clips)
    write_clips(args.out, "sample", clips, args.fps, args.gif)


def write_from_clips(
    network: TransformerNetwork, config: dict, args: argparse.Namespace, wanted: tuple[str, ...], part: str
) -> None:
    """What the model makes of given clips: those of one part of --data, or "all"."""
    folder, fps, data = args.out, args.fps, config["data"]
    split = None if part == "all" else part
    source = open_clips(args.data, data["frames"], tuple(network.config.image_size), data["stride"], split)
    needed = 2 if "interpolation" in (args.only or ()) else 1
    if len(source) < needed:
        raise UserError(
            f"{args.data}: {needed} clips are needed, its split {part!r} has {len(source)}; "
            "leave out interpolation, or name another --split"
        )
    count = max(needed, min(args.num_clips, len(source)))
    clips = torch.stack([source[index * len(source) // count] for index in range(count)]).to(network.canvas.device)
    if "reconstructions" in wanted:
        pairs = torch.cat([clips.cpu(), reconstruct(network, clips)], dim=4)  # original left, reconstruction right
        write_strip(folder / "reconstructions.png", torch.stack(pairs.chunk(2, dim=4), dim=1).flatten(0, 1))
        write_clips(folder, "reconstruction", pairs, fps, args.gif)
    if "interpolation" in wanted and count > 1:
        between = interpolate(network, clips[0], clips[1], args.steps)
        write_strip(folder / "interpolation.png", between)
        write_clips(folder, "interpolation", torch.cat(list(between), dim=3)[None], fps, args.gif)
    if "traversals" in wanted:
        for level in range(1, len(network.config.levels) + 1):
            row = traverse(network, clips[0], level, args.steps, args.seed)
            write_strip(folder / f"traversal_level_{level}.png", row)
            write_clips(folder, f"traversal_level_{level}", torch.cat(list(row), dim=3)[None], fps, args.gif)


@torch.no_grad()
def sample(
    sampler: Sampler,
    n: int,
    frames: int,
    size: tuple[int, int],
    temperature: float,
    seed: int,
    class_name: str | None = None,
    chunk: int = 16,
) -> Tensor:
    """n new clips (n, 3, T, H, W), of a class where one is named; clip i depends on (seed, i) alone."""
    clips = []
    for first in range(0, n, chunk):
        items = range(first, min(first + chunk, n))
        noise = SampleNoise(seed, items, sampler.network.canvas.device)
        clips.append(sampler.clips(noise, frames, size, temperature, [class_name] * len(items)).cpu())
    return torch.cat(clips)


@torch.no_grad()
def reconstruct(network: TransformerNetwork, clips: Tensor, noise: SampleNoise | None = None) -> Tensor:
    """Clips (B, 3, T, H, W) through the latents and back; from the posterior's means, or a draw from it."""
    return network(clips, noise)[0].cpu()


@torch.no_grad()
def interpolate(network: TransformerNetwork, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Decodings between the latents of two clips (3, T, H, W), ends included: (steps, 3, T, H, W)."""
    start, end = network.encode(first[None]), network.encode(second[None])
    return torch.cat([network.decode(start.mix(end, weight.item())).cpu() for weight in torch.linspace(0, 1, steps)])


@torch.no_grad()
def traverse(network: TransformerNetwork, clip: Tensor, level: int, steps: int, seed: int) -> Tensor:
    """One level (1 is the finest) resampled from its posterior's means towards a prior draw: (steps, 3, T, H, W).

    All other levels keep the clip's latents, so the row shows what this level holds.
    """
    latents = network.encode(clip[None])
    noise = SampleNoise(seed, [0], clip.device)
    drawn = network.draw_latents(noise, latents.frames, latents.size, 1.0)
    clips = []
    for weight in torch.linspace(0, 1, steps):
        levels = list(latents.levels)
        levels[level - 1] = torch.lerp(levels[level - 1], drawn.levels[level - 1], weight.item())
        clips.append(network.decode(Latents(levels, latents.frames, latents.size)).cpu())
    return torch.cat(clips)


def write_clips(folder: Path, name: str, clips: Tensor, fps: Fraction, gif: bool = False) -> list[Path]:
    """Each clip (B, 3, T, H, W) as <name>_<i>.mp4, and as .gif with `gif`."""
    paths = []
    for index, clip in enumerate(clips):
        for suffix in (".mp4", ".gif") if gif else (".mp4",):
            paths.append(write_video(folder / f"{name}_{index:03d}{suffix}", clip, fps))
    return paths


def write_strip(path: Path, rows: Tensor) -> Path:
    """Clips (N, 3, T, H, W) as a PNG: one row of frames each."""
    pixels = to_uint8(rows)  # (N, T, H, W, 3)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    picture = np.concatenate([np.concatenate(list(clip), axis=1) for clip in pixels], axis=0)[:-GAP, :-GAP]
    return write_png(path, picture)
