"""The annotation lists of Kinetics, and what the files of its clips are called."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

from videodata.errors import UserError

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_FILE = re.compile(r"(?P<id>[A-Za-z0-9_-]{11})_(?P<start>\d+)_(?P<end>\d+)")


class Clip(NamedTuple):
    """A stretch of a YouTube video, in seconds. The lists of some test parts have no labels."""

    label: str | None
    youtube_id: str
    start: int
    end: int

    @property
    def stem(self) -> str:
        """Name of its file, as most copies of the data set have it."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"

    @property
    def folder(self) -> str:
        """Name of its folder: the label, as one plain name."""
        return (self.label or "unlabelled").replace("/", "_").lstrip(".") or "unlabelled"

    @property
    def key(self) -> tuple[str, int]:
        """What finds it again in any copy."""
        return self.youtube_id, self.start


def read_clips(path: str | Path) -> list[Clip]:
    """Rows of a list with columns `youtube_id, time_start, time_end` and, if it has one, `label`; others are ignored.

    Raises UserError for a missing column, a time that is no number, or something that is no YouTube id.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            missing = {"youtube_id", "time_start", "time_end"} - set(rows.fieldnames or ())
            if missing:
                raise UserError(f"{path}: has no column {', '.join(sorted(missing))}; found {rows.fieldnames}")
            clips = [_clip(path, number, row) for number, row in enumerate(rows, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a list of clips ({error})") from error
    if not clips:
        raise UserError(f"{path}: lists no clips")
    return clips


def parse_file_name(stem: str) -> tuple[str, int] | None:
    """YouTube id and start of a clip from the name of its file, padded or not; None for other names."""
    match = _FILE.fullmatch(stem)
    return (match["id"], int(match["start"])) if match else None


def _clip(path: str | Path, line: int, row: dict) -> Clip:
    id = (row["youtube_id"] or "").strip()
    if not _ID.fullmatch(id):  # it becomes part of an address and of a file name
        raise UserError(f"{path}, line {line}: {id!r} is no YouTube id")
    try:
        start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, line {line}: time_start and time_end must be seconds") from error
    if not 0 <= start < end:
        raise UserError(f"{path}, line {line}: time_end {end} must come after time_start {start}")
    return Clip((row.get("label") or "").strip() or None, id, start, end)
