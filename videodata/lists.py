"""Lists that people write, in any editor or spreadsheet: read whole, or refused in one line with file and position."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from videodata.errors import UserError

SAVE = "save it as UTF-8"
END = "\ufffe"  # no character, so that no list has it
_NEWLINE = re.compile(r"\r\n|\r|\n")  # str.splitlines also splits at characters that names may hold


def read_lines(path: str | Path) -> list[str]:
    """The lines of a list without the spaces around them; empty ones do not count. Raises UserError."""
    stripped = [line.strip() for line in _NEWLINE.split(read_list_text(path))]
    return [line for line in stripped if line]


def read_table(path: str | Path, columns: Collection[str]) -> list[tuple[int, dict[str, str]]]:
    """(number of its line, fields by column) of each row of a csv file.

    Headers may be in any case; the spaces around headers and fields do not count, nor do empty rows. columns: those
    that must be there; all others are given as well, "" where a row ends before them. Raises UserError.
    """
    rows = _rows(path)
    _, names = next(rows, (1, []))
    header = [name.lower() for name in names]
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path}: has no column named {', '.join(missing)}; found {names}")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{path}: has two columns named {', '.join(twice)}; keep one of them")
    return [(line, _by_column(path, line, header, row)) for line, row in rows]


def read_list_text(path: str | Path) -> str:
    """The text of a list, with or without the mark that Windows puts before UTF-8. Raises UserError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a list ({error.strerror})") from error
    zero = data.find(b"\0")  # every second byte of UTF-16 with Latin letters
    if zero >= 0:
        line = data.count(b"\n", 0, zero) + 1
        raise UserError(f"{path}, line {line}: is UTF-16, or no text (byte {zero} is zero); {SAVE}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise UserError(f"{path}, line {line}: is no UTF-8 ({found}); {SAVE}") from error


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and stripped fields of each row that is not empty."""
    # Behind the last row comes one of ours: a quotation mark that is not closed swallows it and all rows before it.
    text = io.StringIO(f"{read_list_text(path)}\n{END}\n", newline="")
    rows, line = csv.reader(text, skipinitialspace=True), 1
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if fields == [END]:
                return
            if any(END in field for field in fields):
                raise UserError(f"{path}, line {line}: a text begins with a quotation mark and none ends it")
            if any(fields):
                yield line, fields
            line = rows.line_num + 1
    except csv.Error as error:
        limit = csv.field_size_limit()
        reason = f"a field is longer than {limit} characters" if "field limit" in str(error) else str(error)
        advice = "end each text that begins with a quotation mark with another"
        raise UserError(f"{path}, line {line}: {reason}; {advice}, and {SAVE}") from error


def _by_column(path: str | Path, line: int, header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if any(row[len(header) :]):
        raise UserError(
            f"{path}, line {line}: has {len(row)} fields, the header {len(header)}; put a text with commas into "
            "quotation marks"
        )
    return dict(zip(header, [*row, *[""] * len(header)], strict=False))
