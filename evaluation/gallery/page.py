"""The page itself: collects sections, places their clips, writes index.html."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from evaluation.curves import Curve
from evaluation.gallery.content import Grid, Overview, Row, Section
from evaluation.gallery.markup import navigation_html, overview_html, section_html
from videodata.files import atomic_path

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
