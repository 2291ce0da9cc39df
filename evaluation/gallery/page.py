"""The page itself. It collects sections, places their clips and curves, and fills the template page.html, in which
every text is escaped.

Files in media/ are named by this module alone: what a run or a clip is called never becomes a path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from evaluation.gallery.content import Clip, Curve, Grid, Line, Medium, Overview, Row, Section, Table, place
from videodata.files import write_file

HERE = Path(__file__).parent
OURS = re.compile(r"\d+-[a-z0-9-]+\.(mp4|webm|png|jpg|jpeg|webp)")  # files of a page in its media folder
LONG_TABLE = 25  # rows; longer ones are folded
LONG_WORDS = 30  # letters of a cell; columns that have such are to the left
WIDTH, HEIGHT = 520, 230  # of a diagram
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30  # room for the axes
MAX_POINTS = 400  # of one line; more cannot be seen
COLORS = 6  # classes line-0 ... line-5 of the style


class Gallery:
    """Collects sections and writes the page: `Gallery(title).add_section(...).write(folder)`."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Section] = []

    def add(self, section: Section) -> Gallery:
        self.sections.append(section)
        return self

    def add_section(
        self,
        model: str,
        intro: str,
        clips: Sequence[Row | Grid] = (),
        curves: Sequence[Curve] = (),
        table: Sequence[Sequence[object]] = (),
        config: Mapping[str, Any] | None = None,
        overview: Sequence[Overview] = (),
    ) -> Gallery:
        """Add a model's section. `table`: rows of cells, the first being the head; `config`: plain, nested values."""
        return self.add(Section(model, intro, clips, curves, table, config or {}, overview))

    def write(self, folder: Path | str) -> Path:
        """Place the clips and write the page; returns the path of index.html.

        Raises UserError when a clip is missing, cannot be read, or is of a kind that a browser does not show.
        """
        folder = Path(folder)
        sections = [shown(section, number, folder / "media") for number, section in enumerate(self.sections)]
        script = (HERE / "player.js").read_text(encoding="utf-8")
        page = template().render(
            title=self.title,
            subtitle=self.subtitle,
            sections=sections,
            style=(HERE / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        write_file(folder / "index.html", page)
        _remove_old_media(folder / "media", page)
        return folder / "index.html"


@cache
def template() -> Template:
    """The page's template; it also holds the macros of its parts."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, keep_trailing_newline=True)
    environment.filters |= {"short": "{:.3g}".format, "cell": _text}
    environment.globals |= {"long_table": LONG_TABLE, "sections": []}
    return environment.get_template("page.html")


def shown(section: Section, number: int, media: Path) -> dict[str, Any]:
    """One section as the template takes it; its clips are placed in the folder `media`."""
    name = anchor(section.name, number)
    return {
        **vars(section),
        "anchor": name,
        "groups": [shown_group(group, media, f"{name}-{index}") for index, group in enumerate(section.clips)],
        "curves": [draw(curve) for curve in section.curves],
        "more_curves": [draw(curve) for curve in section.more_curves],
        "tables": [shown_table(table) for table in (Table(section.table), *section.tables) if table.rows],
        "config": json.dumps(section.config, indent=2, default=str, ensure_ascii=False) if section.config else "",
    }


def anchor(name: str, number: int) -> str:
    """A name of letters, digits and hyphens, safe as an id and in a file name."""
    return f"{number}-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "section")


def shown_group(group: Row | Grid, media: Path, name: str) -> dict[str, Any]:
    """Clips that play as one, placed: either `tiles` (caption, file), or `rows` of a matrix with `width` columns."""
    found = {"label": group.label, "note": group.note, "given": group.given, "rows": {}}
    if isinstance(group, Grid):
        rows = {kind: _place(clips, media, f"{name}-{row}") for row, (kind, clips) in enumerate(group.rows.items())}
        files = [file for placed in rows.values() for file in placed]
        found |= {"rows": rows, "columns": group.columns, "width": max(map(len, rows.values()), default=0)}
        found["wideness"] = max((file.wideness for file in files), default=1.0)
    else:
        files = _place([clip for _, clip in group.clips], media, name)
        found["tiles"] = list(zip([caption for caption, _ in group.clips], files, strict=True))
    return {**found, "frames": max((file.frames for file in files), default=0)}  # of the longest; 0: nothing moves


def _place(clips: Sequence[Clip], media: Path, name: str) -> list[Medium]:
    return [place(clip, media, f"{name}-{index}") for index, clip in enumerate(clips)]


def shown_table(table: Table) -> dict[str, Any]:
    """A table and the numbers of its `wordy` columns: numbers are to the right, long words to the left."""
    head, *body = table.rows
    wordy = {i for i in range(1, len(head)) if any(len(_text(row[i])) > LONG_WORDS for row in body if i < len(row))}
    return {**vars(table), "wordy": wordy}


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _remove_old_media(media: Path, page: str) -> None:
    """Files of an earlier page in the same folder that this one does not show."""
    used = set(re.findall(r'"media/([^"]+)"', page))
    for path in media.glob("*") if media.is_dir() else ():
        if OURS.fullmatch(path.name) and path.name not in used:
            path.unlink()


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
        stride = math.ceil(len(line.points) / MAX_POINTS)
        points = [*line.points[:-1:stride], line.points[-1]]
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


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
