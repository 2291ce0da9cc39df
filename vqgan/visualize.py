"""Pictures of what a VQGAN has learnt: reconstructions, latents, codebook, interpolations, sequence, whole frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.codebook_usage import CodebookUsage
from videodata.write_video import write_video
from vqgan.drawing import bars, grid, heat_map, histogram, index_map, panels, picture, rows_with_labels, scatter
from vqgan.model_file import Model
from vqgan.patches import merge, split
from vqgan.trained import Footage

SHOWN_CODES = 64
TOP_CODES = 50
INTERPOLATION_STEPS = 8
DOTS = 4000  # in a scatter plot
PATCHES_AT_A_TIME = 16
GRID_CELL = (1, 1)  # row and column of the patch that is followed through time
NOISE_SCALES = 8
LARGEST_NOISE = 0.5  # of the latents' standard deviation


@dataclass
class Encoded:
    """Patches of some frames and what the model makes of them, all on the CPU."""

    patches: Tensor  # (N, 3, h, w) in [-1, 1]
    latents: Tensor  # (N, D, h, w) before the quantiser
    indices: Tensor  # (N, h, w)
    reconstruction: Tensor  # (N, 3, h, w), clamped to [-1, 1]


@torch.no_grad()
def encode_patches(model: Model, patches: Tensor) -> Encoded:
    """Run the model over patches (N, 3, h, w), a few at a time."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in patches.split(PATCHES_AT_A_TIME)]
    latents, indices = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("latents", "indices"))
    frames = torch.cat([part.frames.float().clamp(-1, 1).cpu() for part in parts])
    return Encoded(patches, latents.float(), indices, frames)


def save(image: Image.Image, path: Path) -> Path:
    """Write a PNG, with the folder that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def draw_reconstructions(encoded: Encoded, folder: Path) -> list[Path]:
    """Each patch beside its reconstruction, all in one grid, and originals above reconstructions."""
    pairs = list(zip(encoded.patches, encoded.reconstruction, strict=True))
    columns = min(8, len(pairs))
    files = [
        save(grid([b for _, b in pairs], columns), folder / "reconstructions_grid.png"),
        save(
            rows_with_labels([("original", [a for a, _ in pairs]), ("reconstruction", [b for _, b in pairs])]),
            folder / "comparison_grid.png",
        ),
    ]
    for number, pair in enumerate(pairs):
        files.append(save(grid(pair, 2, ("original", "reconstruction")), folder / f"sample_{number}_recon.png"))
    return files


def draw_latent_space(encoded: Encoded, codes: int, path: Path) -> list[Path]:
    """Four charts: two latent channels against each other, all latent values, the top codes, codes by position."""
    vectors = encoded.latents.movedim(1, -1).flatten(0, -2).numpy()  # (N*h*w, D)
    usage = CodebookUsage(codes).update(encoded.indices)
    chosen = np.random.default_rng(0).permutation(len(vectors))[:DOTS]
    second = min(1, vectors.shape[1] - 1)
    counts = usage.counts.numpy()
    order = np.sort(counts)[::-1][:TOP_CODES]
    title = f"{len(order)} most used codes: {usage.used} of {codes} in use ({100 * usage.used / codes:.0f} %)"
    positions = encoded.indices.flatten(1).numpy()  # (N, h*w)
    table = np.zeros((codes, positions.shape[1]))
    np.add.at(table, (positions, np.arange(positions.shape[1])[None]), 1)
    charts = [
        scatter(vectors[chosen, 0], vectors[chosen, second], "latents", ("channel 0", f"channel {second}")),
        histogram(vectors, "all latent values", ("value", "count")),
        bars(order, title, ("rank", "count")),
        heat_map(table, "codes by position", ("position in the map, row by row", "code index")),
    ]
    return [save(panels(charts), path)]


@torch.no_grad()
def draw_codebook(model: Model, encoded: Encoded, folder: Path) -> list[Path]:
    """The most used codes, each decoded from a map that holds nothing else, and the usage of all codes."""
    usage = CodebookUsage(model.num_embeddings).update(encoded.indices)
    top = usage.counts.argsort(descending=True, stable=True)[:SHOWN_CODES]
    height, width = encoded.indices.shape[-2:]
    device = next(model.parameters()).device
    maps = top[:, None, None].expand(-1, height, width).to(device)
    decoded = torch.cat([model.decode_indices(part).float().cpu() for part in maps.split(PATCHES_AT_A_TIME)])
    captions = [f"{int(code)}: {int(usage.counts[code])}x" for code in top]
    title = f"{usage.used} of {model.num_embeddings} codes in use, perplexity {usage.perplexity:.1f}"
    counts = usage.counts.sort(descending=True).values.numpy()
    return [
        save(grid(list(decoded.clamp(-1, 1)), 8, captions), folder / "codebook_visualization.png"),
        save(bars(counts, title, ("codes, most used first", "count")), folder / "codebook_usage.png"),
    ]


@torch.no_grad()
def draw_interpolation(model: Model, encoded: Encoded, folder: Path) -> list[Path]:
    """From the first patch to the last in equal steps of the latents, each quantised and decoded."""
    device = next(model.parameters()).device
    share = torch.linspace(0, 1, INTERPOLATION_STEPS)[:, None, None, None]
    latents = (1 - share) * encoded.latents[:1] + share * encoded.latents[-1:]
    steps = list(decode_latents(model, latents.to(device)))
    captions = [f"{float(value):.2f}" for value in share.flatten()]
    framed = [encoded.patches[0], *steps, encoded.patches[-1]]
    return [
        save(grid(steps, len(steps), captions), folder / "latent_interpolation.png"),
        save(
            grid(framed, len(framed), ["original", *captions, "original"]),
            folder / "interpolation_with_originals.png",
        ),
    ]


@torch.no_grad()
def decode_latents(model: Model, latents: Tensor) -> Tensor:
    """Latents (N, D, h, w) -> quantised -> frames (N, 3, H, W) on the CPU, clamped to [-1, 1]."""
    indices = model.quantize(latents)[1]
    return model.decode_indices(indices).float().clamp(-1, 1).cpu()


def draw_variations(model: Model, original: Tensor, latents: Tensor, seed: int, folder: Path) -> list[Path]:
    """The latents (1, D, h, w) with more and more of the same Gaussian noise, quantised again and decoded."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    scales = torch.linspace(0, LARGEST_NOISE, NOISE_SCALES)
    varied = latents + scales[:, None, None, None] * latents.std() * noise
    device = next(model.parameters()).device
    frames = [original, *decode_latents(model, varied.to(device))]
    captions = ["original", *(f"noise {float(scale):.2f}" for scale in scales)]
    return [save(grid(frames, 3, captions), folder / "latent_variations.png")]


def draw_sequence(encoded: Encoded, rows: int, columns: int, folder: Path) -> list[Path]:
    """One patch through time; `encoded` holds the patches of consecutive frames."""
    cell = min(GRID_CELL[0], rows - 1) * columns + min(GRID_CELL[1], columns - 1)
    originals, copies = encoded.patches[cell :: rows * columns], encoded.reconstruction[cell :: rows * columns]
    files = []
    for number, pair in enumerate(zip(originals, copies, strict=True)):
        for name, frame in zip(("original", "recon"), pair, strict=True):
            files.append(save(picture(frame), folder / "frames" / f"frame_{number:02d}_{name}.png"))
        comparison = grid(pair, 2, ("original", "reconstruction"))
        files.append(save(comparison, folder / "frames" / f"frame_{number:02d}_comparison.png"))
    strips = {
        "original_sequence.png": grid(list(originals), len(originals)),
        "reconstructed_sequence.png": grid(list(copies), len(copies)),
        "sequence_comparison.png": rows_with_labels([("original", list(originals)), ("reconstruction", list(copies))]),
    }
    return files + [save(image, folder / name) for name, image in strips.items()]


def draw_whole_frames(encoded: Encoded, rows: int, columns: int, fps: Fraction | None, folder: Path) -> list[Path]:
    """The patches put together again: frames, index maps, and the clip as mp4 and GIF beside its original."""
    originals, copies = merge(encoded.patches, rows, columns), merge(encoded.reconstruction, rows, columns)
    maps = merge(encoded.indices, rows, columns).numpy()
    both = torch.cat([originals, copies], dim=3).movedim(0, 1)  # (3, T, H, 2 * W)
    rate = fps or Fraction(25)
    files = [save(grid([originals[0], copies[0]], 2, ("original", "reconstruction")), folder / "frame_00.png")]
    files.append(save(index_map(maps[0]), folder / "index_map_00.png"))
    files.append(write_video(folder / "reconstruction.mp4", copies.movedim(0, 1), rate))
    files += [write_video(folder / name, both, rate) for name in ("comparison.mp4", "comparison.gif")]
    return files


def visualize(
    model: Model, footage: Footage, rows: int, columns: int, samples: int, window: tuple[int, int, int], seed: int,
    folder: Path,
) -> list[Path]:  # fmt: skip
    """All pictures, for `samples` patches of as many videos and a window (video, start, frames); gives their paths.

    `seed` is that of the noise in the latents' variations, which are those of the window's first frame.
    """
    sequence = encode_patches(model, split(footage.read(*window), rows, columns))
    count = len(footage)
    chosen = np.linspace(0, count - 1, min(samples, count)).round().astype(int)
    first_frames = torch.cat([footage.read(int(video), 0, 1) for video in chosen])
    everything = encode_patches(model, split(first_frames, rows, columns))
    centre = (rows // 2) * columns + columns // 2
    places = range(centre, len(everything.patches), rows * columns)  # one patch of each frame, so that they differ
    if samples > count:
        places = range(min(samples, len(everything.patches)))
    shown = Encoded(*(getattr(everything, name)[list(places)] for name in Encoded.__dataclass_fields__))
    files = draw_reconstructions(shown, folder / "reconstructions")
    files += draw_latent_space(everything, model.num_embeddings, folder / "latent_space.png")
    files += draw_codebook(model, everything, folder / "codebook")
    files += draw_interpolation(model, shown, folder / "interpolation")
    first, latents = sequence.patches[centre], sequence.latents[centre : centre + 1]
    files += draw_variations(model, first, latents, seed, folder / "latent_manipulation")
    files += draw_sequence(sequence, rows, columns, folder / "sequence")
    files += draw_whole_frames(sequence, rows, columns, footage.fps(window[0]), folder / "whole_frame")
    return files
