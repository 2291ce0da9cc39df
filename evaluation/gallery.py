"""A static page that shows what models make: clips side by side, curves, numbers, configuration.

The page is one folder (index.html and media/), works from the disk without a network, and loads nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from evaluation.curves import Curve, curve_figure
from videodata.atomic import atomic_path
from videodata.errors import UserError

TEMPLATE = Path(__file__).with_name("gallery_template.html")
VIDEOS = {".mp4", ".webm"}
PICTURES = {".gif", ".png", ".jpg", ".jpeg"}


@dataclass
class Row:
    """Clips shown side by side and played in step: (caption, path of a video, GIF or picture) each."""

    label: str
    clips: Sequence[tuple[str, Path | str]]


@dataclass
class Section:
    """Everything about one model."""

    model: str
    intro: str
    clips: Sequence[Row] = ()
    curves: Sequence[Curve] = ()
    table: Sequence[Sequence[object]] = ()  # the first row is the head
    config: Mapping[str, Any] = field(default_factory=dict)
    headline: Sequence[tuple[str, str]] = ()  # (number, what it is), shown large


class Gallery:
    """Collects sections and writes the page: `Gallery(title).add_section(...).write(folder)`."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Section] = []

    def add_section(
        self,
        model: str,
        intro: str,
        clips: Sequence[Row] = (),
        curves: Sequence[Curve] = (),
        table: Sequence[Sequence[object]] = (),
        config: Mapping[str, Any] | None = None,
        headline: Sequence[tuple[str, str]] = (),
    ) -> Gallery:
        """Add a model's section. `table`: rows of cells, the first being the head; `config`: plain, nested values."""
        self.sections.append(Section(model, intro, clips, curves, table, config or {}, headline))
        return self

    def write(self, folder: Path | str) -> Path:
        """Copy the clips and write the page; returns the path of index.html.

        Raises UserError when a clip is missing or is of a kind that a browser does not show.
        """
        folder = Path(folder)
        sections = [_section(section, number, folder) for number, section in enumerate(self.sections)]
        links = [f'<a href="#{_anchor(s.model, n)}">{escape(s.model)}</a>' for n, s in enumerate(self.sections)]
        page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=escape(self.title),
            subtitle=escape(self.subtitle),
            navigation="".join(links) if len(links) > 1 else "",
            sections="\n".join(sections),
        )
        with atomic_path(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        return folder / "index.html"


def _section(section: Section, number: int, folder: Path) -> str:
    anchor = _anchor(section.model, number)
    parts = [
        f'<section class="model" id="{anchor}">',
        f"<h2>{escape(section.model)}</h2>",
        f'<p class="intro">{escape(section.intro)}</p>',
        _headline(section.headline),
        *(_row(row, folder, f"{anchor}-{index}") for index, row in enumerate(section.clips)),
    ]
    if section.curves:
        parts.append(f'<div class="curves">{"".join(curve_figure(curve) for curve in section.curves)}</div>')
    parts += [_table(section.table), _config(section.config), "</section>"]
    return "\n".join(part for part in parts if part)


def _headline(numbers: Sequence[tuple[str, str]]) -> str:
    tiles = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(meaning)}</dt></div>" for value, meaning in numbers)
    return f'<dl class="headline">{tiles}</dl>' if tiles else ""


def _row(row: Row, folder: Path, name: str) -> str:
    figures, videos = [], 0
    for index, (caption, path) in enumerate(row.clips):
        source = _copy(Path(path), folder / "media", f"{name}-{index}")
        text = escape(caption)
        if source.suffix in VIDEOS:
            videos += 1
            media = f'<video src="media/{source.name}" muted playsinline preload="auto" aria-label="{text}"></video>'
        else:
            media = f'<img src="media/{source.name}" alt="{text}">'
        figures.append(f"<figure>{media}<figcaption>{text}</figcaption></figure>")
    label = escape(row.label)
    controls = _controls(label) if videos else ""
    focus = ' tabindex="0"' if videos else ""
    return (
        f'<div class="row" role="group" aria-label="{label}"{focus}><div class="bar"><h3>{label}</h3>{controls}</div>'
        f'<div class="clips">{"".join(figures)}</div></div>'
    )


def _controls(label: str) -> str:
    return (
        f'<button type="button" class="play" aria-label="play or pause: {label}"></button>'
        f'<input type="range" min="0" max="1000" value="0" aria-label="position: {label}">'
    )


def _copy(path: Path, media: Path, stem: str) -> Path:
    suffix = path.suffix.lower()
    if suffix not in VIDEOS | PICTURES:
        known = ", ".join(sorted(VIDEOS | PICTURES))
        raise UserError(f"{path}: a page shows {known}; write the clip as one of these")
    if not path.is_file():
        raise UserError(f"{path}: no such clip for the page; generate it first")
    target = media / f"{stem}{suffix}"
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
    return target


def _table(rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in rows[0])
    body = ""
    for first, *rest in rows[1:]:
        cells = "".join(f"<td>{escape(_number(cell))}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(_number(first))}</th>{cells}</tr>'
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    text = json.dumps(config, indent=2, default=str)
    return f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>"


def _anchor(model: str, number: int) -> str:
    """A name of letters, digits and hyphens, safe as an id and in a file name."""
    return f"{number}-" + (re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or "model")
