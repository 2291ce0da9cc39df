"""docs/results.md is complete, and the README's table is made from it."""

import re
from datetime import date
from pathlib import Path

import pytest

from scripts import results_table
from scripts.results_table import END, START, Result, read_results, readme_table, with_table
from videodata.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGE = """# Results
| what | else |
|---|---|
| not | a result |

| what | result | command | machine | date |
|---|---|---|---|---|
| **first** ([more](there.md)) | 2 dB | `python main.py` | A | 2026-11-27 |
| second | 3 \\| 4 dB | `make demo` | A | 2026-11-28 |
"""


def test_readme_and_results_agree():
    """The README shows the chosen rows of docs/results.md, as the script writes them."""
    results_table.main(["--check"])


def test_every_result_can_be_rerun():
    """Each row names a command of the project that exists, a machine of the page and a day."""
    text = (ROOT / "docs" / "results.md").read_text()
    machines = set(re.findall(r"^- \*\*(\w+)\*\*:", text, re.MULTILINE))
    for row in read_results(text):
        commands = re.findall(r"`([^`]+)`", row.command)
        assert commands and row.machine in machines and date.fromisoformat(row.date), row
        for command in commands:
            match = re.match(r"(?:\S+=\S+ )*(?:python (?:-m )?(\S+)|make (\w+))", command)
            assert match, f"{command}: not a command of the project"
            if match[1]:
                path = ROOT / match[1]
                module = ROOT / match[1].replace(".", "/") / "__main__.py"
                assert path.is_file() or module.is_file() or match[1] == "pytest", command
            else:
                assert re.search(rf"^{match[2]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_tables_are_read_and_written():
    """Other tables are passed over; bold rows are chosen; an incomplete row is named by its line."""
    rows = read_results(PAGE)
    assert rows == [
        Result("**first** ([more](there.md))", "2 dB", "`python main.py`", "A", "2026-11-27"),
        Result("second", "3 \\| 4 dB", "`make demo`", "A", "2026-11-28"),
    ]
    table = readme_table(rows)
    assert table.splitlines()[2:] == ["| first | 2 dB | `python main.py` |"]
    old = f"a\n{START}\nold\n{END}\nb"
    assert with_table(old, table) == f"a\n{START}\n{table}\n{END}\nb" == with_table(with_table(old, table), table)
    with pytest.raises(UserError, match="line 9"):
        read_results(PAGE.replace("| 2026-11-28 |", "| |"))
    with pytest.raises(UserError, match="no place"):
        with_table("a", table)
    with pytest.raises(UserError, match="no table"):
        read_results("# nothing")
