"""Curves of a training run: read from metrics.jsonl, and placed for the page's template, which draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videodata.errors import UserError

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30  # room for the axes
MAX_POINTS = 400  # of one line; more cannot be seen
COLORS = 6  # classes line-0 ... line-5 of the style


@dataclass
class Line:
    """One line of a curve: points (x, y). A baseline is drawn dashed; with one point it spans the whole width."""

    label: str
    points: list[tuple[float, float]]
    baseline: bool = False


@dataclass
class Curve:
    """A diagram of some lines over one x axis."""

    title: str
    lines: list[Line]
    x_label: str = "step"
    unit: str = ""


def read_line(path: Path | str, key: str, label: str = "", x: str = "step", baseline: bool = False) -> Line:
    """The values of `key` over `x` in a metrics.jsonl; lines without both are skipped, and so is a half-written one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such metrics file; train first")
    points = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(text)
        except ValueError:
            continue  # the end of a run that was killed
        if isinstance(record, dict) and _is_number(record.get(x)) and _is_number(record.get(key)):
            points.append((float(record[x]), float(record[key])))
    return Line(label or key, points, baseline)


@dataclass
class DrawnLine:
    """A line in its place: `path` is SVG's points; a line without length is drawn as a dot."""

    label: str
    last: str  # value, rounded
    css: str
    path: str
    is_dot: bool


@dataclass
class Drawing:
    """A curve as the page's template draws it; without lines it says that there are no values yet."""

    title: str
    x_label: str = ""
    lines: list[DrawnLine] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)  # (place, text)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_low: str = ""  # the values at the bottom and at the top, for the readout under the pointer
    y_high: str = ""
    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def draw(curve: Curve) -> Drawing:
    """Place a curve's lines and ticks. Points that are not finite are left out."""
    lines = [Line(line.label, _finite(line.points), line.baseline) for line in curve.lines]
    lines = [line for line in lines if line.points]
    drawing = Drawing(f"{curve.title} ({curve.unit})" if curve.unit else curve.title, curve.x_label)
    if not lines:
        return drawing
    x_low, x_high = _extent([x for line in lines for x, _ in line.points])
    y_low, y_high = _extent([y for line in lines for _, y in line.points], margin=0.06)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    for index, line in enumerate(lines):
        points = _thinned(line.points)
        if line.baseline and len(points) == 1:
            points = [(x_low, points[0][1]), (x_high, points[0][1])]
        is_dot = len(points) == 1
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points * (1 + is_dot))
        css = "baseline" if line.baseline else f"line-{index % COLORS}"
        drawing.lines.append(DrawnLine(line.label, f"{line.points[-1][1]:.4g}", css, path, is_dot))
    drawing.x_ticks = [(across(x), f"{x:g}") for x in nice_ticks(x_low, x_high)]
    drawing.y_ticks = [(down(y), f"{y:g}") for y in nice_ticks(y_low, y_high)]
    drawing.y_low, drawing.y_high = f"{y_low:.9g}", f"{y_high:.9g}"
    return drawing


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _extent(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * margin
    if high == low:
        room = abs(high) * 0.1 or 1.0
    return low - room, high + room


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    return [*points[: len(points) - 1 : stride], points[-1]]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
