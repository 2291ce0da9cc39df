"""What there is to see of a training run: its curves, evaluations, clips, pictures and configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.curves import Curve, Line
from evaluation.gallery.content import Section, Table
from evaluation.gallery.found_clips import clip_groups
from evaluation.report import FORMAT
from videodata.errors import UserError
from videodata.files import natural_key

DEPTH = 3  # folders below the run's
SHOWN_CURVES = 4  # the others are folded
NOT_MEASURED = {"step", "epoch", "samples", "samples_per_second"}
SETS = ("train", "validation")  # prefixes of names in metrics.jsonl
OF_THE_OPTIMIZERS = {"lr", "grad_norm", "skipped_steps"}
Points = list[tuple[float, float]]


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
        tables = [report_table(report) for report in self.reports]
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
            record = json.loads(text)
        except ValueError:
            continue
        if not isinstance(record, dict) or not is_number(record.get("step")):
            continue
        for key, value in record.items():
            if key not in NOT_MEASURED and is_number(value):
                series.setdefault(key, []).append((float(record["step"]), float(value)))
    return series


def read_reports(folder: Path) -> Iterator[dict[str, Any]]:
    """The results that scripts/evaluate.py and its like have written below the folder."""
    for path in files_named(folder, "*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue  # not ours
        if isinstance(content, dict) and content.get("format") == FORMAT:
            yield {**content, "file": path.relative_to(folder).as_posix()}


def report_table(report: dict[str, Any]) -> Table:
    """A result with its definitions in words."""
    rows = [("metric", "mean", "95 % interval", "std over clips", "clips", "definition")]
    for score in report["scores"]:
        interval = score.get("interval") or {}
        bounds = f"{interval['low']:.4g} ... {interval['high']:.4g}" if is_number(interval.get("low")) else ""
        deviation = score.get("deviation_over_clips")
        cells = with_unit(score), bounds, "" if deviation is None else deviation, score.get("clips") or ""
        rows.append((score["name"], *cells, score.get("meaning", "")))
    return Table(rows, f"{report['file']}: {protocol(report)}")


def protocol(report: dict[str, Any]) -> str:
    """What was scored, in a line."""
    excluded = f", the first {n} not scored" if (n := report.get("excluded_frames")) else ""
    split = report.get("details", {}).get("split") or "all"
    return f"{report['frames']} frames of {report['width']}x{report['height']}{excluded}, split {split}"


def with_unit(score: dict[str, Any]) -> str:
    """The mean with its unit; a dash where it is not finite."""
    return f"{score['mean']:.4g} {score.get('unit', '')}".strip() if is_number(score.get("mean")) else "–"


def files_named(folder: Path, pattern: str) -> list[Path]:
    """Files of a name down to a few folders below, near ones first; hidden ones are left out."""
    found = [path for depth in range(DEPTH) for path in folder.glob("*/" * depth + pattern) if path.is_file()]
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted(visible, key=lambda path: (len(path.parts), natural_key(path)))


def read_yaml(path: Path) -> Any:
    """A configuration as plain values."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
