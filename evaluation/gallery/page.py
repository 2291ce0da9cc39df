"""The page itself: collects sections, places their clips, fills the template page.html, in which every text is escaped.

Files in media/ are named by this module alone: what a run or a clip is called never becomes a path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from evaluation.curves import Curve, draw
from evaluation.gallery.content import Clip, Grid, Medium, Overview, Row, Section, Table, place
from videodata.atomic import atomic_path

HERE = Path(__file__).parent
OURS = re.compile(r"\d+-[a-z0-9-]+\.(mp4|webm|png|jpg|jpeg|webp)")  # files of a page in its media folder
LONG_TABLE = 25  # rows; longer ones are folded
LONG_WORDS = 30  # letters of a cell; columns that have such are to the left


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
        with atomic_path(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        _remove_old_media(folder / "media", page)
        return folder / "index.html"


def curve_figure(curve: Curve) -> str:
    """HTML figure of a curve: title, legend with last values, diagram."""
    return str(template().module.curve(draw(curve)))


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
