"""The page of one run, or of several side by side: where their configurations differ, their curves in one diagram,
their clips together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.curves import Curve, Line
from evaluation.gallery.content import Clip, Grid, Section, Table
from evaluation.gallery.page import Gallery
from evaluation.gallery.runs import (
    DURING_TRAINING,
    SHOWN_CURVES,
    Run,
    by_quantity,
    clip_groups,
    importance,
    protocol,
    read_run,
    with_unit,
)
from videodata.errors import UserError

ABSENT = "–"


def write_page(folders: Sequence[Path], out: Path, title: str = "", most: int = 8) -> Path:
    """A page of one run or of several side by side, with at most `most` clips of a kind. Raises UserError."""
    runs = read_runs(folders)
    gallery = Gallery(title or " and ".join(", ".join(run.name for run in runs).rsplit(", ", 1)))
    if len(runs) > 1:
        gallery.add(comparison_section(runs, most))
    for run in runs:
        gallery.add(run.section(most))
    return gallery.write(out)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs under names that tell them apart."""
    names = [folder.resolve().name for folder in folders]
    twice = {name for name, count in Counter(names).items() if count > 1}
    names = [str(folder) if name in twice else name for folder, name in zip(folders, names, strict=True)]
    if len(set(names)) < len(names):
        raise UserError("a run folder is named twice; name each once")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def comparison_section(runs: Sequence[Run], most: int) -> Section:
    """One section on what the runs share and where they differ."""
    curves = curves_together(runs)
    differences, same = config_differences([flatten(run.config) for run in runs])
    head = ("key", *(run.name for run in runs))
    tables = [table for table in (scores_table(runs),) if len(table.rows) > 1]
    if differences:
        tables.append(
            Table([head, *differences], f"Where the configurations differ ({same} keys are the same)", "config")
        )
    intro = f"The configurations are the same in all {same} keys." if same and not differences else ""
    shown, more = curves[:SHOWN_CURVES], curves[SHOWN_CURVES:]
    return Section("Comparison", intro, clips_together(runs, most), shown, more_curves=more, tables=tables)


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested values as {"model.dim": "64"}."""
    if isinstance(config, Mapping) and config:
        parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: repr(config) if isinstance(config, str) and config != config.strip() else str(config)}


def config_differences(configs: Sequence[Mapping[str, str]]) -> tuple[list[tuple[str, ...]], int]:
    """Rows (key, value of each run) where not all runs have the same, and the number of keys that are the same."""
    keys = dict.fromkeys(key for config in configs for key in config if key)
    rows = [(key, *(config.get(key, ABSENT) for config in configs)) for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    return different, len(rows) - len(different)


def curves_together(runs: Sequence[Run]) -> list[Curve]:
    """A curve for each quantity that two runs or more have, one line per run: validation where all of them have it."""
    found: dict[str, dict[str, list[Line]]] = {}
    for run in runs:
        for quantity, parts in by_quantity(run.series).items():
            for part, points in parts.items():
                found.setdefault(quantity, {}).setdefault(part, []).append(Line(run.name, points))
    curves = []
    for quantity, parts in found.items():
        part, lines = max(parts.items(), key=lambda item: (len(item[1]), item[0] == "validation"))
        if len(lines) > 1:
            curves.append((importance(quantity, parts), Curve(f"{quantity} ({part})" if part else quantity, lines)))
    return [curve for _, curve in sorted(curves, key=lambda item: item[0])]


def scores_table(runs: Sequence[Run]) -> Table:
    """Scores by definition and circumstances; numbers that were measured otherwise never share a row."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for index, run in enumerate(runs):
        for report in run.reports:
            for score in report["scores"]:
                key = score["name"], f"{score['definition']}, {protocol(report)}"
                cells.setdefault(key, {})[index] = with_unit(score)
    head = ("metric", *(run.name for run in runs), "measured as")
    rows = [
        (name, *(found.get(index, ABSENT) for index in range(len(runs))), how) for (name, how), found in cells.items()
    ]
    return Table([head, *rows], "Evaluations")


def clips_together(runs: Sequence[Run], most: int) -> list[Grid]:
    """Clips of the same place and kind in two runs or more: one row per run."""
    found: dict[tuple[str, str], dict[str, tuple[Sequence[Clip], Sequence[str]]]] = {}
    for run in runs:
        for group in clip_groups(run.folder, most):
            if not isinstance(group, Grid) or DURING_TRAINING in group.label:
                continue
            for kind, clips in group.rows.items():
                found.setdefault((group.label, kind), {})[run.name] = clips, group.columns
    grids = []
    for (label, kind), rows in found.items():
        if len(rows) > 1:
            columns = next(iter(rows.values()))[1]
            if all(len(clips) == len(columns) or not columns for clips, _ in rows.values()):
                grids.append(Grid(f"{label}: {kind}", {name: clips for name, (clips, _) in rows.items()}, columns))
    return grids
