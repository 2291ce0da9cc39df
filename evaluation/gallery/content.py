"""What a page holds, before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.curves import Curve


@dataclass(frozen=True)
class Panel:
    """One of `count` equal parts that lie side by side in a video, `gap` pixels apart."""

    path: Path | str
    index: int
    count: int = 2
    gap: int = 0


Clip = Path | str | Panel


@dataclass
class Row:
    """Clips with a caption each, shown side by side and played in step. `given`: how many first frames are input."""

    label: str
    clips: Sequence[tuple[str, Clip]]
    given: int = 0
    note: str = ""


@dataclass
class Grid:
    """Clips played in step, one named row for each kind, one column for each clip.

    `mosaic`: each video holds many clips and is shown as large as there is room.
    """

    label: str
    rows: Mapping[str, Sequence[Clip]]
    columns: Sequence[str] = ()
    given: int = 0
    note: str = ""
    mosaic: bool = False


@dataclass(frozen=True)
class Overview:
    """A model's result in one line: its number, that of the trivial baseline, and what they are."""

    value: str
    meaning: str
    baseline: str
    baseline_meaning: str


@dataclass
class Table:
    """Rows of cells, the first being the head. `kind` "config": values in a typewriter face, to the left."""

    rows: Sequence[Sequence[object]]
    caption: str = ""
    kind: str = ""


@dataclass
class Section:
    """Everything about one model or one run."""

    name: str
    intro: str
    clips: Sequence[Row | Grid] = ()
    curves: Sequence[Curve] = ()
    table: Sequence[Sequence[object]] = ()  # the first row is the head
    config: Mapping[str, Any] = field(default_factory=dict)
    headline: Sequence[tuple[str, str]] = ()  # (number, what it is), shown large
    overview: Sequence[Overview] = ()
    more_curves: Sequence[Curve] = ()  # folded away
    tables: Sequence[Table] = ()
