"""Grids of frames with captions, and small charts, as Pillow images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from videodata.pixels import denormalize

GAP = 4  # pixels between the frames of a grid
CAPTION = 16  # pixels of height for a caption
SMALLEST = 96  # pixels; smaller frames are enlarged for the eye
PANEL = (520, 380)  # width and height of a chart
LEFT, TOP, RIGHT, BOTTOM = 64, 34, 18, 44  # margins of a chart
INK, FAINT, FILL = (30, 30, 30), (200, 200, 200), (52, 101, 164)


def font(size: int = 12) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings."""
    return ImageFont.load_default(size)


def number(value: float) -> str:
    """A value at the end of an axis."""
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
