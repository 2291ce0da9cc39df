"""Clips out of a trained video VAE: samples, reconstructions, interpolations and traversals, with their files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.files import write_file
from training.randomness import SampleNoise
from video_vae.model import Latents, TransformerNetwork
from videodata.pixels import to_uint8
from videodata.write_video import write_video

GAP = 2  # white pixels between the pictures of a strip


@torch.no_grad()
def sample(
    network: TransformerNetwork,
    n: int,
    frames: int,
    size: tuple[int, int],
    temperature: float,
    seed: int,
    chunk: int = 4,
) -> Tensor:
    """n clips from the prior (n, 3, T, H, W); clip i depends on (seed, i) alone."""
    clips = []
    for first in range(0, n, chunk):
        noise = SampleNoise(seed, range(first, min(first + chunk, n)), network.canvas.device)
        clips.append(network.decode(network.draw_latents(noise, frames, size, temperature)).cpu())
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
    write_file(path, lambda file: Image.fromarray(picture).save(file, format="PNG"))
    return path


def write_array(path: Path, clips: Tensor) -> Path:
    """Clips as uint8 .npy (N, T, H, W, 3), the layout that main.py trains on."""
    write_file(path, lambda file: np.save(file, to_uint8(clips), allow_pickle=False))
    return path
