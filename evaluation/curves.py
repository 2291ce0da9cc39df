"""Curves of a training run: read from metrics.jsonl, drawn as SVG that follows the page's colours."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from videodata.errors import UserError

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30  # room for the axes
MAX_POINTS = 400  # of one line; more cannot be seen
COLORS = 6  # classes line-0 ... line-5 of the template


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


def curve_figure(curve: Curve) -> str:
    """HTML figure of a curve: title, legend with last values, diagram; everything escaped."""
    lines = [Line(line.label, _finite(line.points), line.baseline) for line in curve.lines]
    lines = [line for line in lines if line.points]
    title = escape(f"{curve.title} ({curve.unit})" if curve.unit else curve.title)
    if not lines:
        return f'<figure class="curve"><figcaption>{title}</figcaption><p class="empty">no values yet</p></figure>'
    keys = "".join(
        f'<li class="{_line_class(index, line)}"><span class="swatch" aria-hidden="true"></span>'
        f'<span class="text">{escape(line.label)}</span> <b>{line.points[-1][1]:.4g}</b></li>'
        for index, line in enumerate(lines)
    )
    diagram = _diagram(lines, curve.x_label, title)
    return f'<figure class="curve"><figcaption>{title}</figcaption>{diagram}<ul class="legend">{keys}</ul></figure>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _diagram(lines: Sequence[Line], x_label: str, title: str) -> str:
    x_low, x_high = _extent([x for line in lines for x, _ in line.points])
    y_low, y_high = _extent([y for line in lines for _, y in line.points], margin=0.06)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    scale = f'data-y0="{y_low:.9g}" data-y1="{y_high:.9g}" data-top="{TOP}" data-bottom="{HEIGHT - BOTTOM}"'
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" {scale}>']
    for y in nice_ticks(y_low, y_high):
        height = place(x_low, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in nice_ticks(x_low, x_high):
        across = place(x, y_low)[0]
        parts.append(f'<text class="tick" x="{across:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>')
    for index, line in enumerate(lines):
        points = _thinned(line.points)
        if line.baseline and len(points) == 1:
            points = [(x_low, points[0][1]), (x_high, points[0][1])]
        dot = " dot" if len(points) == 1 else ""
        points = points * 2 if dot else points  # a line without length is drawn as a dot
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline class="{_line_class(index, line)}{dot}" points="{path}"/>')
    probe = f'<line class="probe" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    return "".join([*parts, probe, "</svg>"])


def _line_class(index: int, line: Line) -> str:
    return "baseline" if line.baseline else f"line-{index % COLORS}"


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
