"""The page itself: collects sections, places their clips, writes index.html."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from evaluation.curves import Curve, curve_figure
from evaluation.gallery.content import Clip, Grid, Medium, Overview, Row, Section, Table, place
from videodata.atomic import atomic_path

HERE = Path(__file__).parent
OURS = re.compile(r"\d+-[a-z0-9-]+\.(mp4|webm|png|jpg|jpeg|webp)")  # files of a page in its media folder


class Gallery:
    """Collects sections and writes the page: `Gallery(title).add_section(...).write(folder)`."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Section] = []

    def add(self, section: Section) -> Gallery:
        """Add a section that exists already."""
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
        headline: Sequence[tuple[str, str]] = (),
        overview: Sequence[Overview] = (),
    ) -> Gallery:
        """Add a model's section. `table`: rows of cells, the first being the head; `config`: plain, nested values."""
        return self.add(Section(model, intro, clips, curves, table, config or {}, headline, overview))

    def write(self, folder: Path | str) -> Path:
        """Place the clips and write the page; returns the path of index.html.

        Raises UserError when a clip is missing, cannot be read, or is of a kind that a browser does not show.
        """
        folder = Path(folder)
        sections = [section_html(section, number, folder / "media") for number, section in enumerate(self.sections)]
        script = (HERE / "player.js").read_text(encoding="utf-8")
        page = Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
            title=escape(self.title),
            subtitle=escape(self.subtitle),
            overview=overview_html(self.sections),
            navigation=navigation_html(self.sections),
            sections="\n".join(sections),
            style=(HERE / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        with atomic_path(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        _remove_old_media(folder / "media", page)
        return folder / "index.html"


def _remove_old_media(media: Path, page: str) -> None:
    """Files of an earlier page in the same folder that this one does not show."""
    used = set(re.findall(r'"media/([^"]+)"', page))
    for path in media.glob("*") if media.is_dir() else ():
        if OURS.fullmatch(path.name) and path.name not in used:
            path.unlink()


MOSAIC_TILES = 4.0  # width of a video that holds many clips
LONG_TABLE = 25  # rows; longer ones are folded
BUTTONS = {  # class: (what it does, drawing in a box of 14 x 14)
    "back": ("previous frame", '<path d="M3 1h2v12H3zM13 1v12L5 7z"/>'),
    "play": (
        "play or pause",
        '<path class="go" d="M3 1l10 6-10 6z"/><path class="pause" d="M3 1h3v12H3zM8 1h3v12H8z"/>',
    ),
    "next": ("next frame", '<path d="M9 1h2v12H9zM1 1v12l8-6z"/>'),
}


def section_html(section: Section, number: int, media: Path) -> str:
    """One section; its clips are placed in the folder `media`."""
    name = anchor(section.name, number)
    parts = [
        f'<section class="model" id="{name}">',
        f"<h2>{escape(section.name)}</h2>",
        f'<p class="intro">{escape(section.intro)}</p>' if section.intro else "",
        _headline(section.headline),
        *(group_html(group, media, f"{name}-{index}") for index, group in enumerate(section.clips)),
        _curves(section.curves),
        table_html(Table(section.table)),
        *(table_html(table) for table in section.tables),
        _folded("More curves", _curves(section.more_curves)),
        _config(section.config),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def overview_html(sections: Sequence[Section]) -> str:
    """The results of all sections as links to them."""
    tiles = [
        f'<li><a href="#{anchor(section.name, number)}"><span class="name">{escape(section.name)}</span>'
        f"{''.join(map(_tile, section.overview))}</a></li>"
        for number, section in enumerate(sections)
        if section.overview
    ]
    return f'<ul class="overview">{"".join(tiles)}</ul>' if tiles else ""


def navigation_html(sections: Sequence[Section]) -> str:
    """A link to each section; nothing where there is only one."""
    links = [f'<a href="#{anchor(section.name, n)}">{escape(section.name)}</a>' for n, section in enumerate(sections)]
    return "".join(links) if len(links) > 1 else ""


def group_html(group: Row | Grid, media: Path, name: str) -> str:
    """Clips that play as one, with their controls."""
    if isinstance(group, Grid):
        placed = {kind: _place(clips, media, f"{name}-{row}") for row, (kind, clips) in enumerate(group.rows.items())}
        files = [medium for mediums in placed.values() for medium in mediums]
        clips = _matrix(placed, group.columns, MOSAIC_TILES if group.mosaic else 1.0)
    else:
        files = _place([clip for _, clip in group.clips], media, name)
        clips = _tiles(files, [caption for caption, _ in group.clips])
    label, note = escape(group.label), f'<p class="note">{escape(group.note)}</p>' if group.note else ""
    moving = [medium for medium in files if medium.frames]
    focus = f' tabindex="0" role="group" aria-label="{label}"' if moving else ""
    given = f' data-given="{group.given}"' if group.given else ""
    controls = _controls(label, max(medium.frames for medium in moving)) if moving else ""
    return f'<div class="group"{focus}{given}><div class="bar"><h3>{label}</h3>{controls}</div>{note}{clips}</div>'


def table_html(table: Table) -> str:
    """A table. Numbers are to the right, long words to the left."""
    rows = table.rows
    if not rows:
        return ""
    wordy = {i for i in range(1, len(rows[0])) if any(len(_text(row[i])) > 30 for row in rows[1:] if i < len(row))}
    head = "".join(f'<th scope="col"{_words(i in wordy)}>{escape(str(cell))}</th>' for i, cell in enumerate(rows[0]))
    body = ""
    for first, *rest in rows[1:]:
        cells = "".join(f"<td{_words(i in wordy)}>{escape(_text(cell))}</td>" for i, cell in enumerate(rest, 1))
        body += f'<tr><th scope="row">{escape(_text(first))}</th>{cells}</tr>'
    folded = len(rows) > LONG_TABLE
    title = f"<caption>{escape(table.caption)}</caption>" if table.caption and not folded else ""
    text = (
        f'<div class="table{f" {table.kind}" if table.kind else ""}" tabindex="0">'
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return _folded(table.caption or f"{len(rows) - 1} rows", text) if folded else text


def anchor(name: str, number: int) -> str:
    """A name of letters, digits and hyphens, safe as an id and in a file name."""
    return f"{number}-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "section")


def _place(clips: Sequence[Clip], media: Path, name: str) -> list[Medium]:
    return [place(clip, media, f"{name}-{index}") for index, clip in enumerate(clips)]


def _tile(item: Overview) -> str:
    return (
        f'<span class="value">{escape(item.value)}</span><span class="meaning">{escape(item.meaning)}</span>'
        f'<span class="baseline">{escape(item.baseline_meaning)}: '
        f'<span class="number">{escape(item.baseline)}</span></span>'
    )


def _headline(numbers: Sequence[tuple[str, str]]) -> str:
    tiles = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(meaning)}</dt></div>" for value, meaning in numbers)
    return f'<dl class="headline">{tiles}</dl>' if tiles else ""


def _tiles(files: Sequence[Medium], captions: Sequence[str]) -> str:
    figures = "".join(
        f'<figure style="--wide:{_wideness(medium):.3g}">{_medium(medium, caption)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for medium, caption in zip(files, captions, strict=True)
    )
    pictures = "" if any(medium.frames for medium in files) else " pictures"
    return f'<div class="tiles{pictures}">{figures}</div>'


def _matrix(placed: Mapping[str, Sequence[Medium]], columns: Sequence[str], least: float) -> str:
    count = max((len(files) for files in placed.values()), default=0)
    cells = []
    if columns:
        names = "".join(f'<span class="column">{escape(name)}</span>' for name in columns)
        cells.append(f'<span class="corner"></span>{names}')
    for kind, files in placed.items():
        cells.append(f'<span class="kind">{escape(kind)}</span>')
        for index, medium in enumerate(files):
            label = f"{kind}, {columns[index]}" if columns else f"{kind} {index + 1}"
            cells.append(f"<figure>{_medium(medium, label)}</figure>")
        cells.append("<span></span>" * (count - len(files)))
    wide = max(map(_wideness, (medium for files in placed.values() for medium in files)), default=1.0)
    return f'<div class="matrix" style="--columns:{count};--wide:{wide:.3g}">{"".join(cells)}</div>'


def _wideness(medium: Medium) -> float:
    """How many tiles wide a clip is shown: panoramas get the room they need."""
    return max(1.0, min(6.0, medium.width / medium.height)) if medium.frames else 1.0


def _medium(medium: Medium, label: str) -> str:
    text = escape(label)
    if not medium.frames:
        return f'<a href="media/{medium.name}"><img src="media/{medium.name}" alt="{text}"></a>'
    size = f'width="{medium.width}" height="{medium.height}"'
    rate = f"{float(Fraction(medium.fps)):.6f}".rstrip("0").rstrip(".")
    return (
        f'<video src="media/{medium.name}" {size} data-frames="{medium.frames}" data-fps="{rate}" '
        f'muted playsinline preload="auto" aria-label="{text}"></video>'
    )


def _controls(label: str, frames: int) -> str:
    buttons = "".join(
        f'<button type="button" class="{name}" aria-label="{what}: {label}" title="{what}">'
        f'<svg viewBox="0 0 14 14" aria-hidden="true">{drawing}</svg></button>'
        for name, (what, drawing) in BUTTONS.items()
    )
    slider = f'<input type="range" min="0" max="{frames - 1}" step="1" value="0" aria-label="frame: {label}">'
    return f'<div class="transport">{buttons}{slider}<span class="time"></span></div>'


def _curves(curves: Sequence[Curve]) -> str:
    return f'<div class="curves">{"".join(curve_figure(curve) for curve in curves)}</div>' if curves else ""


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def _config(config: Mapping[str, Any]) -> str:
    text = escape(json.dumps(config, indent=2, default=str, ensure_ascii=False))
    return _folded("Configuration", f'<pre tabindex="0">{text}</pre>' if config else "")


def _words(yes: bool) -> str:
    return ' class="words"' if yes else ""


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
