"""A short demonstration: a reconstructed clip as animation, and what noise in the latents does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from videodata.write_video import write_video
from vqgan.drawing import grid
from vqgan.model_file import Model
from vqgan.patches import merge, split
from vqgan.visualize import decode_latents, encode_patches, save

FRAMES_PER_SECOND = 2
NOISE_SCALES = 8
LARGEST_NOISE = 0.5


def demonstrate(model: Model, frames: Tensor, rows: int, columns: int, seed: int, folder: Path) -> list[Path]:
    """Write animation/ and latent_manipulation/ for frames (T, 3, H, W) in [-1, 1]; gives the paths."""
    encoded = encode_patches(model, split(frames, rows, columns))
    centre = (rows // 2) * columns + columns // 2
    step = rows * columns
    files = draw_animation(
        (encoded.patches[centre::step], encoded.reconstruction[centre::step]),
        (merge(encoded.patches, rows, columns), merge(encoded.reconstruction, rows, columns)),
        folder / "animation",
    )
    original, latents = encoded.patches[centre], encoded.latents[centre : centre + 1]
    return [*files, draw_variations(model, original, latents, seed, folder / "latent_manipulation")]


def draw_animation(patches: tuple[Tensor, Tensor], frames: tuple[Tensor, Tensor], folder: Path) -> list[Path]:
    """Pairs (original, reconstruction) of the centre patch and of whole frames, (T, 3, H, W): pictures, GIF, mp4."""
    files = []
    for number, pair in enumerate(zip(*patches, strict=True)):
        image = grid(pair, 2, ("original", "reconstruction"))
        files.append(save(image, folder / "frames" / f"frame_{number:02d}.png"))
    for number, pair in enumerate(zip(*frames, strict=True)):
        image = grid(pair, 2, ("original", "reconstruction"))
        files.append(save(image, folder / "frames" / f"animation_{number:02d}.png"))
    both = torch.cat(frames, dim=3).movedim(0, 1)  # (3, T, H, 2 * W)
    names = ("reconstruction_animation.gif", "reconstruction_animation.mp4")
    return files + [write_video(folder / name, both, Fraction(FRAMES_PER_SECOND)) for name in names]


@torch.no_grad()
def draw_variations(model: Model, original: Tensor, latents: Tensor, seed: int, folder: Path) -> Path:
    """The latents (1, D, h, w) with more and more of the same Gaussian noise, quantised again and decoded."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    scales = torch.linspace(0, LARGEST_NOISE, NOISE_SCALES)
    varied = latents + scales[:, None, None, None] * latents.std() * noise
    device = next(model.parameters()).device
    frames = [original, *decode_latents(model, varied.to(device))]
    captions = ["original", *(f"noise {float(scale):.2f}" for scale in scales)]
    return save(grid(frames, 3, captions), folder / "latent_variations.png")
