"""Pages of run folders: what there is to see of a run (curves, evaluations, clips, pictures, configuration), and of
several side by side (where their configurations differ, their curves in one diagram, their clips together).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.gallery.content import PICTURES, Clip, Curve, Grid, Line, Row, Section, Table
from evaluation.gallery.page import Gallery
from evaluation.protocols import CHANGED
from evaluation.report import FORMAT, departs_in
from videodata.errors import UserError
from videodata.files import Unreadable, files_in_folder, natural_key, parse_json, read_json
from videodata.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)
DEPTH = 3  # folders below the run's
SHOWN_CURVES = 4  # the others are folded
NOT_MEASURED = {"step", "epoch", "samples", "samples_per_second"}
SETS = ("train", "validation")  # prefixes of names in metrics.jsonl
OF_THE_OPTIMIZERS = {"lr", "grad_norm", "skipped_steps"}
Points = list[tuple[float, float]]
CLIPS_DEPTH = 4  # the same, for clips
LEFT_OUT = {"checkpoints", "log", "logs", "samples", "media"}
STEPS_SHOWN = 4  # of a training run, from its first pictures to its last
DURING_TRAINING = "during the training"
NUMBERED = re.compile(r"(?:(?P<first>\d+)[_-](?P<after>.+)|(?P<before>.+?)[_-]?(?P<last>\d+))")
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


@dataclass
class Run:
    """A run as it lies on the disk."""

    name: str
    folder: Path
    series: dict[str, Points]  # "validation/psnr": points (step, value)
    reports: list[dict[str, Any]]
    config: dict[str, Any]

    def section(self, most: int) -> Section:
        """The run as a section with at most `most` clips of a kind. Raises UserError when there is nothing to show."""
        curves = self.curves()
        clips = clip_groups(self.folder, most)
        tables = [table for report in self.reports for table in report_tables(report)]
        telling = [c for c in curves if c.title.split("/")[0] not in OF_THE_OPTIMIZERS][:SHOWN_CURVES]
        others = [curve for curve in curves if curve not in telling]
        if not (curves or clips or tables):
            raise UserError(f"{self.folder}: neither metrics.jsonl, clips, pictures nor evaluations; name a run folder")
        return Section(self.name, "", clips, telling, config=self.config, more_curves=others, tables=tables)

    def curves(self) -> list[Curve]:
        """One curve for each quantity, the telling ones first; training and validation share it."""
        return [
            Curve(quantity, [Line(part or "value", points) for part, points in parts.items()])
            for quantity, parts in by_quantity(self.series).items()
        ]


def read_run(folder: Path, name: str = "") -> Run:
    """Read a run folder, or a folder of several stages. Raises UserError when there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    series: dict[str, Points] = {}
    for path in files_named(folder, "metrics.jsonl"):
        stage = path.parent.relative_to(folder).as_posix()
        for key, points in read_series(path).items():
            series[key if stage == "." else f"{key} of {stage}"] = points
    configs = {
        path.parent.relative_to(folder).as_posix(): read_yaml(path) for path in files_named(folder, "config.yaml")
    }
    config = configs["."] if list(configs) == ["."] else configs
    return Run(name or folder.resolve().name, folder, series, list(read_reports(folder)), config)


def read_series(path: Path) -> dict[str, Points]:
    """All numbers of a metrics.jsonl over the step; a half-written line is skipped."""
    series: dict[str, Points] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            record = parse_json(text)
        except ValueError:
            continue
        if not isinstance(record, dict) or not is_number(record.get("step")):
            continue
        for key, value in record.items():
            if key not in NOT_MEASURED and is_number(value):
                series.setdefault(key, []).append((float(record["step"]), float(value)))
    return series


def read_line(path: Path | str, key: str, label: str = "") -> Line:
    """The values of `key` over the step in a metrics.jsonl. Raises UserError when there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such metrics file; train first")
    return Line(label or key, read_series(path).get(key, []))


def read_reports(folder: Path) -> Iterator[dict[str, Any]]:
    """The results that scripts/evaluate.py and its like have written below the folder."""
    for path in files_named(folder, "*.json"):
        content = read_json(path) or {}
        if content.get("format") == FORMAT:  # others are not ours
            yield {**content, "file": path.relative_to(folder).as_posix()}


def read_yaml(path: Path) -> Any:
    """A configuration as plain values."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error


def found_below(folder: Path, pattern: str, depths: Iterable[int]) -> list[Path]:
    """What fits a pattern so many folders below, near ones first; hidden ones are left out."""
    found = [path.relative_to(folder) for depth in depths for path in folder.glob("*/" * depth + pattern)]
    return [folder / path for path in found if not any(part.startswith(".") for part in path.parts)]


def files_named(folder: Path, pattern: str) -> list[Path]:
    """Files of a name down to a few folders below."""
    found = [path for path in found_below(folder, pattern, range(DEPTH)) if path.is_file()]
    return sorted(found, key=lambda path: (len(path.parts), natural_key(path)))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def by_quantity(series: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """{"psnr": {"train": points, "validation": points}}: what was measured on both sets is together.

    Validation comes first, then losses and other numbers of the training, then what the optimisers did.
    """
    losses = [key for key in series if key.startswith("loss/")]
    charts: dict[str, dict[str, Points]] = {}
    for key, points in series.items():
        part, _, quantity = key.partition("/")
        if part == "loss" and len(losses) == 1 and "train/loss" not in series:
            part, quantity = "train", "loss"  # of the only optimiser
        elif part not in SETS or not quantity:
            part, quantity = "", key
        charts.setdefault(quantity, {})[part] = points
    return dict(sorted(charts.items(), key=lambda chart: importance(chart[0], chart[1])))


def importance(quantity: str, parts: Mapping[str, Points]) -> int:
    """Sort key of the curves."""
    if "validation" in parts:
        return 0
    return 3 if quantity.split("/")[0] in OF_THE_OPTIMIZERS else 2 if "train" not in parts else 1


def report_tables(report: dict[str, Any]) -> list[Table]:
    """A result with its definitions in words, and what papers have by its protocol."""
    rows = [("metric", "mean", "95 % interval", "std over clips", "clips", "definition")]
    for score in report["scores"]:
        interval = score.get("interval") or {}
        bounds = f"{interval['low']:.4g} ... {interval['high']:.4g}" if is_number(interval.get("low")) else ""
        deviation = score.get("deviation_over_clips")
        cells = with_unit(score), bounds, "" if deviation is None else deviation, score.get("clips") or ""
        rows.append((score["name"], *cells, score.get("meaning", "")))
    tables = [Table(rows, f"{report['file']}: {protocol(report)}")]
    if published := report.get("published"):
        head = ("method", "published", "source")
        name = report["details"]["protocol"]["id"].removesuffix(CHANGED)
        rows = [tuple(row[key] for key in ("method", "values", "source")) for row in published]
        tables.append(Table([head, *rows], f"published for {name}, not measured here"))
    return tables


def protocol(report: dict[str, Any]) -> str:
    """What was scored, in a line."""
    excluded = f", the first {n} not scored" if (n := report.get("excluded_frames")) else ""
    details = report.get("details", {})
    split, named = details.get("split") or "all", details.get("protocol")
    of = f"protocol {named['id']}{departs_in(named)}; " if named else ""
    seen = f", {n} of {report['clips']} clips trained on" if (n := report.get("clips_trained_on")) else ""
    return f"{of}{report['frames']} frames of {report['width']}x{report['height']}{excluded}, split {split}{seen}"


def with_unit(score: dict[str, Any]) -> str:
    """The mean with its unit; a dash where it is not finite."""
    return f"{score['mean']:.4g} {score.get('unit', '')}".strip() if is_number(score.get("mean")) else "–"


def clip_groups(folder: Path, most: int) -> list[Row | Grid]:
    """All that can be seen below `folder`: first what the training drew, then each folder of clips and of pictures."""
    groups: list[Row | Grid] = []
    drawn = {path.parent for path in walk(folder) if path.name.startswith("step-")}
    for samples in sorted(path for path in drawn if path.name == "samples"):
        groups += training_groups(samples, title(folder, samples.parent))
    beside: dict[tuple, dict[Path, list[Path]]] = {}
    shown = [path for path in (folder, *walk(folder)) if not LEFT_OUT & set(path.relative_to(folder).parts)]
    for parent, files in {path: seen_in(path) for path in shown}.items():
        if not files:
            continue
        names = tuple(file.name for file in files)
        beside.setdefault((parent.parent, names), {})[parent] = files
    for (above, _), parents in beside.items():
        if len(parents) > 1:  # original/clip_0.mp4 and reconstruction/clip_0.mp4
            rows = {parent.name: files[:most] for parent, files in parents.items()}
            columns = [file.stem for file in next(iter(rows.values()))]
            groups.append(Grid(title(folder, above) or "Clips", rows, columns, note=remainder(parents, most)))
        else:
            parent, files = next(iter(parents.items()))
            groups += folder_groups(files, title(folder, parent), most)
    return groups


def training_groups(samples: Path, name: str) -> list[Row | Grid]:
    """The last pictures of a training run, and how each of them came about."""
    steps = sorted((path for path in samples.glob("step-*") if path.is_dir()), key=natural_key)
    names = {path: f"step {int(re.sub('[^0-9]', '', path.name) or 0)}" for path in steps}
    of, kinds, groups = f" of {name}" if name else "", seen_in(steps[-1]), []
    if kinds:
        groups.append(Grid(f"Pictures{of}, {names[steps[-1]]}", {path.stem: [path] for path in kinds}))
    chosen = sorted({round(i * (len(steps) - 1) / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)})
    for path in kinds:
        earlier = {names[steps[i]]: [steps[i] / path.name] for i in chosen}
        if len(chosen) > 1 and path.stem != "original" and all(file.is_file() for (file,) in earlier.values()):
            groups.append(Grid(f"{path.stem.capitalize()}{of} {DURING_TRAINING}", earlier))
    return groups


def folder_groups(files: Sequence[Path], name: str, most: int) -> list[Row | Grid]:
    """The files of one folder: numbered ones as a grid of kinds and numbers, the others as they are."""
    videos, pictures = ([f for f in files if (f.suffix.lower() in VIDEO_SUFFIXES) is kind] for kind in (True, False))
    kinds: dict[str, dict[int, Path]] = {}
    for file in videos:
        kind, number = parse(file.stem)
        if number is not None:
            kinds.setdefault(kind, {})[number] = file
    numbers = sorted(set().union(*kinds.values()))
    ordered = sorted(kinds, key=lambda kind: kind != "original")  # what all others are compared with comes first
    complete = {kind: kinds[kind] for kind in ordered if sorted(kinds[kind]) == numbers}
    groups: list[Row | Grid] = []
    if len(complete) > 1:
        shown = numbers[:most]
        rows = {kind.replace("_", " "): [found[n] for n in shown] for kind, found in complete.items()}
        groups.append(Grid(name or "Clips", rows, [str(n) for n in shown], note=remainder(numbers, most)))
        videos = [file for file in videos if parse(file.stem)[0] not in complete]
    for group in (videos, pictures):
        if group:
            clips = [(file.stem.replace("_", " "), file) for file in group[:most]]
            groups.append(Row(name or "Clips", clips, note=remainder(group, most)))
    return groups


def parse(stem: str) -> tuple[str, int | None]:
    """("sample_0", 3) of "3_sample_0", ("clip", 7) of "clip_007", ("comparison", None) of "comparison"."""
    match = NUMBERED.fullmatch(stem)
    if not match:
        return stem, None
    return match["after"] or match["before"], int(match["first"] or match["last"])


def seen_in(folder: Path) -> list[Path]:
    """Videos and pictures of one folder; of files that differ in the suffix alone, the video."""
    unreadable: Unreadable = {}
    files = files_in_folder(folder, VIDEO_SUFFIXES | PICTURES, deep=False, unreadable=unreadable)
    for path, reason in unreadable.items():
        logger.warning("%s: %s; it is left out", path, reason)
    best: dict[str, Path] = {}
    for path in sorted(
        files, key=lambda p: (p.suffix.lower() in PICTURES, p.suffix.lower() == ".gif", natural_key(p.name))
    ):
        best.setdefault(path.stem, path)
    return sorted(best.values(), key=lambda p: natural_key(p.name))


def walk(folder: Path) -> list[Path]:
    """Folders below, in natural order."""
    return sorted(filter(Path.is_dir, found_below(folder, "", range(1, CLIPS_DEPTH + 1))), key=natural_key)


def title(folder: Path, below: Path) -> str:
    """The path below the run's folder as a heading; empty for the folder itself."""
    return "" if below == folder else below.relative_to(folder).as_posix().replace("_", " ")


def remainder(files: Sequence | dict, most: int) -> str:
    """Says so when not all is shown."""
    count = len(next(iter(files.values()))) if isinstance(files, dict) else len(files)
    return f"{most} of {count} are shown." if count > most else ""


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
