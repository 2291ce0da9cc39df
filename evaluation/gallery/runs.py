"""What there is to see of a training run: its curves, evaluations, clips, pictures and configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.curves import Curve, Line
from evaluation.gallery.content import PICTURES, Grid, Row, Section, Table
from evaluation.report import FORMAT
from videodata.errors import UserError
from videodata.natural_order import natural_key
from videodata.video import VIDEO_SUFFIXES

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
    seen = f", {n} of {report['clips']} clips trained on" if (n := report.get("clips_trained_on")) else ""
    return f"{report['frames']} frames of {report['width']}x{report['height']}{excluded}, split {split}{seen}"


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


CLIPS_DEPTH = 4  # folders below the given one
LEFT_OUT = {"checkpoints", "log", "logs", "samples", "media"}
STEPS_SHOWN = 4  # of a training run, from its first pictures to its last
DURING_TRAINING = "during the training"
NUMBERED = re.compile(r"(?:(?P<first>\d+)[_-](?P<after>.+)|(?P<before>.+?)[_-]?(?P<last>\d+))")


def clip_groups(folder: Path, most: int) -> list[Row | Grid]:
    """All that can be seen below `folder`: first what the training drew, then each folder of clips and of pictures."""
    groups: list[Row | Grid] = []
    for samples in sorted({path.parent for path in walk(folder, "samples") if path.name.startswith("step-")}):
        groups += training_groups(samples, title(folder, samples.parent))
    beside: dict[tuple, dict[Path, list[Path]]] = {}
    for parent, files in by_folder(folder).items():
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
    complete = {kind: found for kind, found in kinds.items() if sorted(found) == numbers}
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


def by_folder(folder: Path) -> dict[Path, list[Path]]:
    """Videos and pictures by their folders, in natural order."""
    found: dict[Path, list[Path]] = {}
    for path in [folder, *walk(folder)]:
        if path.is_dir() and not LEFT_OUT & set(path.relative_to(folder).parts) and (files := seen_in(path)):
            found[path] = files
    return found


def seen_in(folder: Path) -> list[Path]:
    """Videos and pictures of one folder; of files that differ in the suffix alone, the video."""
    files = [
        p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES | PICTURES and not p.name.startswith(".")
    ]
    best: dict[str, Path] = {}
    for path in sorted(
        files, key=lambda p: (p.suffix.lower() in PICTURES, p.suffix.lower() == ".gif", natural_key(p.name))
    ):
        best.setdefault(path.stem, path)
    return sorted(best.values(), key=lambda p: natural_key(p.name))


def walk(folder: Path, inside: str = "") -> list[Path]:
    """Folders below, in natural order, hidden ones left out; `inside`: only those in a folder of that name."""
    found = [p for depth in range(1, CLIPS_DEPTH + 1) for p in folder.glob("*/" * depth) if p.is_dir()]
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted((p for p in visible if not inside or p.parent.name == inside), key=natural_key)


def title(folder: Path, below: Path) -> str:
    """The path below the run's folder as a heading; empty for the folder itself."""
    return "" if below == folder else below.relative_to(folder).as_posix().replace("_", " ")


def remainder(files: Sequence | dict, most: int) -> str:
    """Says so when not all is shown."""
    count = len(next(iter(files.values()))) if isinstance(files, dict) else len(files)
    return f"{most} of {count} are shown." if count > most else ""
