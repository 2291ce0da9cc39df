"""The result of an evaluation: numbers with their definitions and circumstances, as JSON and as a table."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from evaluation.confidence import Interval, over_clips
from evaluation.definitions import definition_of
from videodata.files import atomic_path

FORMAT = "evaluation-report"
VERSION = 1


@dataclass
class Score:
    """One metric over a set of clips. `definition` is an id of evaluation/definitions.py, `label` tells variants apart.

    A metric of the whole set, such as FVD, has a `value` and nothing per clip.
    """

    definition: str
    per_clip: list[float]
    label: str = ""
    per_frame: list[float] | None = None  # mean over clips at each frame index
    notes: dict[str, Any] = field(default_factory=dict)
    value: float | None = None  # of the whole set
    interval: Interval | None = None

    def __post_init__(self) -> None:
        definition_of(self.definition)

    @property
    def name(self) -> str:
        """The metric's name as it is printed."""
        return f"{definition_of(self.definition).name} {self.label}".strip()

    @property
    def mean(self) -> float:
        """The value of the set, else the mean over clips; nan when there is none."""
        if self.value is not None:
            return self.value
        return fmean(self.per_clip) if self.per_clip else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over clips; nan where nothing is per clip."""
        mean = self.mean
        return math.sqrt(fmean((value - mean) ** 2 for value in self.per_clip)) if self.per_clip else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything about the score, as plain types."""
        definition = definition_of(self.definition)
        interval = self.interval or over_clips(self.per_clip)
        return {
            "name": self.name,
            "definition": self.definition,
            "meaning": definition.text,
            "unit": definition.unit,
            "better": definition.better,
            "mean": self.mean,
            "interval": interval.to_dict() if interval else None,
            "deviation_over_clips": self.deviation,
            "clips": len(self.per_clip),
            "per_clip": self.per_clip,
            "per_frame": self.per_frame,
            **self.notes,
        }


@dataclass
class Report:
    """What was scored, on what, with what. Every field ends in the JSON file."""

    model: str
    checkpoint: str | None
    data: str
    frames: int  # per clip
    stride: int
    height: int
    width: int
    resize: str = "crop"
    excluded_frames: int = 0  # conditioning frames at the start of each clip, not scored
    repetitions: int = 1  # whole evaluations, each with its own seed
    scores: list[Score] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # checkpoint hash, data fingerprint, split, seed ...

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        circumstances = {key: value for key, value in vars(self).items() if key not in ("scores", "details")}
        return {
            "format": FORMAT,
            "version": VERSION,
            **circumstances,
            "details": self.details,
            "versions": versions(),
            "scores": [score.to_dict() for score in self.scores],
        }

    def write(self, path: Path | str) -> Path:
        """Write the JSON file, whole or not at all. Numbers that are not finite are written as null."""
        text = json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return Path(path)

    def rows(self, meaning: bool = False) -> list[tuple[str, ...]]:
        """The scores as rows of text below a head; the last column is the definition's id, or its words."""
        rows = [("metric", "mean", "std over clips", "clips", "definition")]
        for score in self.scores:
            definition = definition_of(score.definition)
            mean = f"{score.mean:.4g} {definition.unit}".strip()
            words = definition.text if meaning else score.definition
            spread = f"{score.deviation:.2g}" if score.per_clip else ""
            rows.append((score.name, mean, spread, str(len(score.per_clip) or ""), words))
        return rows

    def table(self) -> str:
        """The scores as text for a terminal, each definition in words below."""
        rows = [(*row[:2], *interval, *row[2:]) for row, interval in zip(self.rows(), self._intervals(), strict=True)]
        used = dict.fromkeys(score.definition for score in self.scores)
        notes = [f"  {name}: {definition_of(name).text}" for name in used]
        methods = dict.fromkeys(score.interval.method for score in self.scores if score.interval)
        notes += [f"  intervals hold 95 % of the probability: {method}" for method in methods]
        return "\n".join([format_table(rows), "", *notes])

    def _intervals(self) -> list[tuple[str, ...]]:
        """A column with the intervals of the scores, head included; no column where there are none."""
        if not any(score.interval for score in self.scores):
            return [()] * (len(self.scores) + 1)
        cells = [f"{i.low:.4g} ... {i.high:.4g}" if i else "" for i in (score.interval for score in self.scores)]
        return [("interval",), *((cell,) for cell in cells)]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first being the head, as aligned columns: names to the left, the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of the code and of what computes the numbers."""
    packages = {name: package_version(name) for name in ("numpy", "torchvision", "lpips", "av")}
    return {"code": code_version(), "python": platform.python_version(), "torch": str(torch.__version__), **packages}


def package_version(name: str) -> str:
    """The version of an installed package, "absent" without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def code_version() -> str:
    """The commit of this checkout ("-dirty" when changed), "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip()


def _finite(value: Any) -> Any:
    """The same plain structure with None for nan and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
