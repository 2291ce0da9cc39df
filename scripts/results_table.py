"""Make the README's table of measurements out of docs/results.md: results_table.py [--check]

Rows of docs/results.md whose first cell begins in bold go into the README, between its two marks, with the bold words.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, run
from training.files import write_file
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("what", "result", "command", "machine", "date")
START, END = "<!-- from docs/results.md by scripts/results_table.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Result:
    """One line of docs/results.md."""

    what: str
    result: str
    command: str
    machine: str
    date: str

    @property
    def chosen(self) -> bool:
        """Whether it goes into the README."""
        return self.what.startswith("**")

    @property
    def title(self) -> str:
        """The bold words; what follows them may point to places beside the page."""
        return self.what.split("**")[1]


def read_results(page: str) -> list[Result]:
    """The rows of every table of the page that has the columns of a result. Raises UserError for an incomplete row."""
    rows, inside = [], False
    for number, line in enumerate(page.splitlines(), start=1):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if tuple(cells) == COLUMNS:
            inside = True
        elif not cells:
            inside = False
        elif inside and not set("".join(cells)) <= set("-: "):
            if len(cells) != len(COLUMNS) or not all(cells):
                raise UserError(f"docs/results.md, line {number}: a result has {', '.join(COLUMNS)}")
            rows.append(Result(*cells))
    if not rows:
        raise UserError(f"docs/results.md: has no table with the columns {', '.join(COLUMNS)}")
    return rows


def readme_table(results: list[Result]) -> str:
    """The chosen rows, with the columns that a first look needs."""
    lines = ["| what | result | how |", "|---|---|---|"]
    lines += [f"| {row.title} | {row.result} | {row.command} |" for row in results if row.chosen]
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """The README with this table between its marks. Raises UserError where they are missing."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"README.md: has no place for the table; put {START} and {END} on lines of their own")
    return f"{before}{START}\n{table}\n{END}{after}"


def build_parser() -> argparse.ArgumentParser:
    """Every flag of the command."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where README and results differ")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the table into the README, or compare."""
    args = build_parser().parse_args(argv)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = with_table(old, readme_table(read_results((ROOT / "docs" / "results.md").read_text())))
    if args.check and new != old:
        raise UserError("README.md differs from docs/results.md; run: python scripts/results_table.py")
    if not args.check:
        write_file(readme, lambda file: file.write(new.encode()))


if __name__ == "__main__":
    run(main)
