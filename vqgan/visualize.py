"""Pictures of what a VQGAN has learnt: reconstructions, latents, codebook, interpolations, sequence, whole frames."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from evaluation.codebook import CodebookUsage
from training.writing import check_place
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.frame_folder import write_png
from videodata.npy import NpySource
from videodata.pixels import denormalize, to_float
from videodata.resize import Size
from videodata.source import ClipSource
from videodata.splits import evaluation_split, open_split
from vqgan.data import find_batch_files, merge_patches, split_patches
from vqgan.files import Model, open_model, settle_grid
from vqgan.model import PATCHES_AT_A_TIME, Encoded, encode_patches

logger = logging.getLogger(__name__)

SHOWN_CODES = 64
SHOWN_FRAMES = 8
TOP_CODES = 50
INTERPOLATION_STEPS = 8
DOTS = 4000  # in a scatter plot
GRID_CELL = (1, 1)  # row and column of the patch that is followed through time
NOISE_SCALES = 8
LARGEST_NOISE = 0.5  # of the latents' standard deviation

GAP = 4  # pixels between the frames of a grid
CAPTION = 16  # pixels of height for a caption
SMALLEST = 96  # pixels; smaller frames are enlarged for the eye
PANEL = (520, 380)  # width and height of a chart
LEFT, TOP, RIGHT, BOTTOM = 64, 34, 18, 44  # margins of a chart
INK, FAINT, FILL = (30, 30, 30), (200, 200, 200), (52, 101, 164)


def visualize_vqgan(args: argparse.Namespace) -> list[Path]:
    """All pictures that the flags of scripts/visualize_vqgan.py ask for; gives their paths. Raises UserError."""
    check_place(args.output_dir / "frame_00.png")  # now, and not after the work
    model, config = open_model(args)
    (rows, columns), folder = settle_grid(args, config), args.output_dir
    footage = open_footage(args)
    sequence = encode_patches(
        model, split_patches(footage.read(args.video_idx, args.start_frame, args.num_frames), rows, columns)
    )
    count = len(footage)
    chosen = np.linspace(0, count - 1, min(args.num_samples, count)).round().astype(int)
    first_frames = torch.cat([footage.read(int(video), 0, 1) for video in chosen])
    everything = encode_patches(model, split_patches(first_frames, rows, columns))
    centre = (rows // 2) * columns + columns // 2
    places = range(centre, len(everything.patches), rows * columns)  # one patch of each frame, so that they differ
    if args.num_samples > count:
        places = range(min(args.num_samples, len(everything.patches)))
    shown = Encoded(*(getattr(everything, name)[list(places)] for name in Encoded.__dataclass_fields__))
    patch, latents = sequence.patches[centre], sequence.latents[centre : centre + 1]
    return [
        *draw_reconstructions(shown, folder / "reconstructions"),
        *draw_latent_space(everything, model.num_embeddings, folder / "latent_space.png"),
        *draw_codebook(model, everything, folder / "codebook"),
        *draw_interpolation(model, shown, folder / "interpolation"),
        *draw_variations(model, patch, latents, args.seed, folder / "latent_manipulation"),
        *draw_sequence(sequence, rows, columns, folder / "sequence"),
        *draw_whole_frames(sequence, rows, columns, footage.fps(args.video_idx), folder / "whole_frame"),
    ]


@dataclass
class Footage:
    """Numbered videos to show, at the size of the grid."""

    source: ClipSource
    videos: list[int]
    size: Size

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, number: int, start: int, count: int | None) -> Tensor:
        """Frames (count, 3, H, W) in [-1, 1] of a video; None: 8, or all there are. Raises UserError for too few."""
        if not 0 <= number < len(self):
            raise UserError(f"--video_idx {number}: {self.source.path} has videos 0 to {len(self) - 1}")
        length = self.source.length(self.videos[number])
        count = count or max(1, min(SHOWN_FRAMES, length - start))
        if start + count > length:
            raise UserError(
                f"--num_frames {count}: {self.source.id(self.videos[number])} has {length} frames, and frame {start} "
                f"is the first one shown; ask for at most {max(0, length - start)}"
            )
        return to_float(self.source.read_clip(self.videos[number], start, count, 1, self.size)).movedim(1, 0)

    def fps(self, number: int) -> Fraction | None:
        """Frames per second, where the source knows."""
        return self.source.fps(self.videos[number])


def open_footage(args: argparse.Namespace) -> Footage:
    """The videos of the batch file or source that the flags name."""
    files = find_batch_files(args.data_path)
    if files and args.batch_idx not in files:
        raise UserError(f"--batch_idx {args.batch_idx}: {args.data_path} has {', '.join(map(str, files))}")
    if files:
        source = NpySource(files[args.batch_idx])
        videos = list(range(len(source)))
        logger.info("drawing videos of %s", files[args.batch_idx])
    else:
        split = args.split or evaluation_split(args.data_path)
        source, videos = open_split(args.data_path, None if split == "all" else split)
        told = "" if args.split else ", the default"
        logger.info("drawing videos of %s (split %s%s)", args.data_path, split, told)
    return Footage(source, videos, (args.num_patches_h * args.patch_size, args.num_patches_w * args.patch_size))


def draw_reconstructions(encoded: Encoded, folder: Path) -> list[Path]:
    """Each patch beside its reconstruction, all in one grid, and originals above reconstructions."""
    pairs = list(zip(encoded.patches, encoded.reconstruction, strict=True))
    columns = min(8, len(pairs))
    files = [
        write_png(folder / "reconstructions_grid.png", grid([b for _, b in pairs], columns)),
        write_png(
            folder / "comparison_grid.png",
            rows_with_labels([("original", [a for a, _ in pairs]), ("reconstruction", [b for _, b in pairs])]),
        ),
    ]
    for number, pair in enumerate(pairs):
        files.append(write_png(folder / f"sample_{number}_recon.png", grid(pair, 2, ("original", "reconstruction"))))
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
    return [write_png(path, panels(charts))]


@torch.no_grad()
def draw_codebook(model: Model, encoded: Encoded, folder: Path) -> list[Path]:
    """The most used codes, each decoded from a map that holds nothing else, and the usage of all codes."""
    usage = CodebookUsage(model.num_embeddings).update(encoded.indices)
    top = usage.counts.argsort(descending=True, stable=True)[:SHOWN_CODES]
    device = next(model.parameters()).device
    places = encoded.indices.shape[1:]  # (h, w), and the residual stages where there are several
    maps = top.view(-1, *[1] * len(places)).expand(-1, *places).to(device)
    decoded = torch.cat([model.decode_indices(part).float().cpu() for part in maps.split(PATCHES_AT_A_TIME)])
    captions = [f"{int(code)}: {int(usage.counts[code])}x" for code in top]
    title = f"{usage.used} of {model.num_embeddings} codes in use, perplexity {usage.perplexity:.1f}"
    counts = usage.counts.sort(descending=True).values.numpy()
    return [
        write_png(folder / "codebook_visualization.png", grid(list(decoded.clamp(-1, 1)), 8, captions)),
        write_png(folder / "codebook_usage.png", bars(counts, title, ("codes, most used first", "count"))),
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
        write_png(folder / "latent_interpolation.png", grid(steps, len(steps), captions)),
        write_png(
            folder / "interpolation_with_originals.png", grid(framed, len(framed), ["original", *captions, "original"])
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
    return [write_png(folder / "latent_variations.png", grid(frames, 3, captions))]


def draw_sequence(encoded: Encoded, rows: int, columns: int, folder: Path) -> list[Path]:
    """One patch through time; `encoded` holds the patches of consecutive frames."""
    cell = min(GRID_CELL[0], rows - 1) * columns + min(GRID_CELL[1], columns - 1)
    originals, copies = encoded.patches[cell :: rows * columns], encoded.reconstruction[cell :: rows * columns]
    files = []
    for number, pair in enumerate(zip(originals, copies, strict=True)):
        for name, frame in zip(("original", "recon"), pair, strict=True):
            files.append(write_png(folder / "frames" / f"frame_{number:02d}_{name}.png", picture(frame)))
        comparison = grid(pair, 2, ("original", "reconstruction"))
        files.append(write_png(folder / "frames" / f"frame_{number:02d}_comparison.png", comparison))
    strips = {
        "original_sequence.png": grid(list(originals), len(originals)),
        "reconstructed_sequence.png": grid(list(copies), len(copies)),
        "sequence_comparison.png": rows_with_labels([("original", list(originals)), ("reconstruction", list(copies))]),
    }
    return files + [write_png(folder / name, image) for name, image in strips.items()]


def draw_whole_frames(encoded: Encoded, rows: int, columns: int, fps: Fraction | None, folder: Path) -> list[Path]:
    """The patches put together again: frames, index maps, and the clip as mp4 and GIF beside its original."""
    originals, copies = (
        merge_patches(encoded.patches, rows, columns),
        merge_patches(encoded.reconstruction, rows, columns),
    )
    maps = merge_patches(encoded.indices, rows, columns).numpy()
    both = torch.cat([originals, copies], dim=3).movedim(0, 1)  # (3, T, H, 2 * W)
    rate = fps or Fraction(25)
    files = [write_png(folder / "frame_00.png", grid([originals[0], copies[0]], 2, ("original", "reconstruction")))]
    files.append(write_png(folder / "index_map_00.png", index_map(maps[0])))
    files.append(write_video(folder / "reconstruction.mp4", copies.movedim(0, 1), rate))
    files += [write_video(folder / name, both, rate) for name in ("comparison.mp4", "comparison.gif")]
    return files


def font(size: int = 12) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings."""
    return ImageFont.load_default(size)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def picture(frame: Tensor) -> Image.Image:
    """A frame (3, H, W) in [-1, 1] as an image of at least 96 pixels a side."""
    image = Image.fromarray(denormalize(frame).movedim(0, -1).contiguous().cpu().numpy())
    factor = -(-SMALLEST // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def grid(frames: Sequence[Tensor], columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """Frames (3, H, W) in rows of `columns`, each with its caption above it."""
    images = [picture(frame) for frame in frames]
    width = GAP + max([images[0].width, *(round(font(11).getlength(caption)) for caption in captions)])
    height = images[0].height + GAP + (CAPTION if captions else 0)
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for place, image in enumerate(images):
        x, y = GAP + place % columns * width, GAP + place // columns * height
        if captions:
            draw.text((x, y), captions[place], INK, font(11))
        canvas.paste(image, (x, y + (CAPTION if captions else 0)))
    return canvas


def rows_with_labels(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """Rows of frames (3, H, W), each row with its label at the left."""
    strips = [grid(frames, len(frames)) for _, frames in rows]
    left = 14 + max(round(font().getlength(label)) for label, _ in rows)
    canvas = Image.new("RGB", (left + max(s.width for s in strips), sum(s.height for s in strips)), "white")
    draw, y = ImageDraw.Draw(canvas), 0
    for (label, _), strip in zip(rows, strips, strict=True):
        draw.text((7, y + strip.height // 2), label, INK, font(), anchor="lm")
        canvas.paste(strip, (left, y))
        y += strip.height
    return canvas


def panels(charts: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Charts of one size, in rows."""
    width, height = charts[0].size
    canvas = Image.new("RGB", (columns * width, -(-len(charts) // columns) * height), "white")
    for place, chart in enumerate(charts):
        canvas.paste(chart, (place % columns * width, place // columns * height))
    return canvas


class Chart:
    """An empty chart with a frame, a title, and the ends of both axes written at them."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]) -> None:
        self.image = Image.new("RGB", PANEL, "white")
        self.draw = ImageDraw.Draw(self.image)
        self.x, self.y = x, (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self.box = LEFT, TOP, PANEL[0] - RIGHT, PANEL[1] - BOTTOM
        left, top, right, bottom = self.box
        self.draw.rectangle(self.box, outline=FAINT)
        self.draw.text((PANEL[0] // 2, TOP // 2), title, INK, font(14), anchor="mm")
        for value, place, anchor in ((x[0], left, "la"), (x[1], right, "ra")):
            self.draw.text((place, bottom + 5), number(value), INK, font(11), anchor=anchor)
        for value, place, anchor in ((self.y[0], bottom, "rd"), (self.y[1], top, "ra")):
            self.draw.text((left - 5, place), number(value), INK, font(11), anchor=anchor)
        self.draw.text(((left + right) // 2, bottom + 16), labels[0], INK, font(11), anchor="ma")
        self.draw.text((left, top - 3), labels[1], INK, font(11), anchor="ld")

    def place(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions of values."""
        left, top, right, bottom = self.box
        across = (np.asarray(x) - self.x[0]) / max(self.x[1] - self.x[0], 1e-12)
        up = (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)


def bars(values: np.ndarray, title: str, labels: tuple[str, str], first: float = 0, width: float = 1) -> Image.Image:
    """One bar per value, side by side from `first` on."""
    chart = Chart(title, (first, first + len(values) * width), (0, float(values.max(initial=0))), labels)
    edges, _ = chart.place(first + width * np.arange(len(values) + 1), np.zeros(len(values) + 1))
    _, tops = chart.place(np.zeros(len(values)), values)
    floor = chart.box[3]
    for left, right, top in zip(edges[:-1], edges[1:], tops, strict=True):
        if top < floor:
            chart.draw.rectangle((left, top, max(left, right - 1), floor), fill=FILL)
    return chart.image


def histogram(values: np.ndarray, title: str, labels: tuple[str, str], bins: int = 60) -> Image.Image:
    """How often values fall into each of `bins` equal intervals."""
    counts, edges = np.histogram(values, bins)
    return bars(counts, title, labels, float(edges[0]), float(edges[1] - edges[0]))


def scatter(x: np.ndarray, y: np.ndarray, title: str, labels: tuple[str, str]) -> Image.Image:
    """A dot per pair of values."""
    chart = Chart(title, (float(x.min()), float(x.max())), (float(y.min()), float(y.max())), labels)
    for across, up in zip(*chart.place(x, y), strict=True):
        chart.draw.ellipse((across - 1.5, up - 1.5, across + 1.5, up + 1.5), fill=FILL)
    return chart.image


def heat_map(counts: np.ndarray, title: str, labels: tuple[str, str]) -> Image.Image:
    """A table (rows, columns) as shades (of the roots, so that small counts show), its first row at the bottom."""
    chart = Chart(title, (0, counts.shape[1] - 1), (0, counts.shape[0] - 1), labels)
    left, top, right, bottom = chart.box
    share = np.sqrt(counts[::-1] / max(counts.max(), 1))
    shades = np.stack([255 - share * (255 - channel) for channel in FILL], axis=-1).round().astype(np.uint8)
    area = Image.fromarray(shades).resize((right - left - 1, bottom - top - 1), Image.Resampling.NEAREST)
    chart.image.paste(area, (left + 1, top + 1))
    return chart.image


def index_map(indices: np.ndarray) -> Image.Image:
    """Code indices (h, w) as colours: equal codes have equal colours; at least 240 pixels high."""
    hues = (indices * 0.61803398875 % 1 * 255).astype(np.uint8)  # golden ratio: neighbouring codes differ clearly
    shades = (110 + 145 * (indices % 7) / 6).astype(np.uint8)
    image = Image.merge("HSV", [Image.fromarray(hues), Image.new("L", hues.shape[::-1], 170), Image.fromarray(shades)])
    factor = -(-240 // indices.shape[0])
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
