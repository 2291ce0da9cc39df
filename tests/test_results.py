"""The table of measurements: how docs/results.md is read and the README written. test_house.py holds both to it."""

import pytest

from scripts.results_table import END, START, Result, read_results, readme_table, with_table
from videodata.errors import UserError

PAGE = """# Results
| what | else |
|---|---|
| not | a result |

| what | result | command | machine | date |
|---|---|---|---|---|
| **first** ([more](there.md)) | 2 dB | `python main.py` | A | 2026-11-27 |
| second | 3 \\| 4 dB | `make demo` | A | 2026-11-28 |
"""


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
