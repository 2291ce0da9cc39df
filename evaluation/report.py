"""The result of an evaluation: numbers with their definitions, intervals and circumstances, as JSON and as a table.

A result carries the id of its definition; two ids never share a column of a table.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from evaluation.journal import Journal
from evaluation.protocols import CHANGED, published_text
from evaluation.set_definitions import RAW as _RAW
from evaluation.set_definitions import ROUNDED as _ROUNDED
from evaluation.set_definitions import Definition, definition_of_set
from training.cli import remedy_for
from videodata.errors import UserError
from videodata.files import read_json, write_file

FORMAT = "evaluation-report"
VERSION = 1
LEVEL = 0.95
RESAMPLES = 2000
# What two results have in common when the later one may take the place of the earlier: all that is not of the weights.
PROTOCOL = ("model", "data", "frames", "stride", "height", "width", "resize", "excluded_frames", "repetitions", "clips")
OF_THE_RUN = (  # parts of the details that may differ
    *("command", "checkpoint_sha256", "checkpoint_step", "device", "processes"),
    *("codes_used", "codebook_perplexity", "codebook_size", "bits_per_frame", "codes_per_frame"),
)


@dataclass
class Score:
    """One metric over a set of clips. `definition` is an id of DEFINITIONS, `label` tells variants apart.

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

    @property
    def standard_error(self) -> float:
        """Of the mean over clips; nan for fewer than two."""
        count = len(self.per_clip)
        return stdev(self.per_clip) / math.sqrt(count) if count > 1 else math.nan

    @property
    def remarks(self) -> list[str]:
        """What is printed beneath the table: the terms of a proper score, and the distance of half of a set."""
        found = []
        if self.notes.get("samples", 1) > 1 and "skill" in self.notes:
            terms = "{skill:.4g} from the truth, {half_spread:.4g} half spread; plain form {plain:.4g}"
            found.append(f"{terms.format(**self.notes)} ({self.notes['samples']} samples)")
        if half := self.notes.get("half_sample"):
            found.append(f"{half['value']:.4g} of every other one ({half['real']} and {half['generated']})")
        return [f"{self.name}: {remark}" for remark in found]

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
            "interval": asdict(interval) if interval else None,
            "deviation_over_clips": self.deviation,
            "standard_error": self.standard_error,
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
    clips: int | None = None  # that were scored; None: files of any length
    clips_trained_on: int | None = None  # of these, that were in the model's training set; None: not known
    published: list[dict[str, str]] = field(default_factory=list)  # rows of papers for the protocol, printed beneath
    scores: list[Score] = field(default_factory=list)
    journal: Journal | None = None  # of its batches, forgotten when the report is delivered
    details: dict[str, Any] = field(default_factory=dict)  # checkpoint hash, data fingerprint, split, seed ...

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        circumstances = {key: value for key, value in vars(self).items() if key not in ("scores", "details", "journal")}
        return {
            "format": FORMAT,
            "version": VERSION,
            **circumstances,
            "details": self.details,
            "versions": versions(),
            "scores": [score.to_dict() for score in self.scores],
        }

    def replaces(self, found: dict[str, Any]) -> bool:
        """Whether the content of a JSON file is an earlier result of the same protocol."""
        return found.get("format") == FORMAT and identity(found) == identity(self.to_dict())

    def write(self, path: Path | str) -> Path:
        """Write the JSON file, whole or not at all. Numbers that are not finite are written as null."""
        text = json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False) + "\n"
        write_file(path, text)
        return Path(path)

    def deliver(self, path: Path) -> None:
        """Write the JSON file and print the table, that also where the disk refuses. Raises UserError.

        The file comes first, because whoever reads the table may leave.
        """
        failure = None
        try:
            self.write(path)
        except OSError as error:
            failure = error
        print(self.table(), flush=True)  # noqa: T201
        if failure:
            remedy = remedy_for(failure)
            raise UserError(f"{path}: cannot be written ({failure.strerror}); {remedy}") from failure
        if self.journal is not None:
            self.journal.clear()

    @property
    def note(self) -> str:
        """Whether what was scored had been trained on; empty for files, which no model is known of."""
        if self.clips is None:
            return ""
        seen = "it is not known how many" if self.clips_trained_on is None else self.clips_trained_on
        note = f"of these {self.clips} clips, {seen} were in this run's training set"
        return f"WARNING: {note}: the numbers are not those of new clips" if self.clips_trained_on else note

    def rows(self) -> list[tuple[str, ...]]:
        """The scores as rows of text below a head; the last column is the definition's id."""
        rows = [("metric", "mean", "std over clips", "clips", "definition")]
        for score in self.scores:
            definition = definition_of(score.definition)
            mean = f"{score.mean:.4g} {definition.unit}".strip()
            spread = f"{score.deviation:.2g}" if score.per_clip else ""
            rows.append((score.name, mean, spread, str(len(score.per_clip) or ""), score.definition))
        return rows

    def table(self) -> str:
        """The scores as text for a terminal, each definition in words below."""
        rows, intervals = self.rows(), [score.interval for score in self.scores]
        if any(intervals):
            cells = ["interval", *(f"{i.low:.4g} ... {i.high:.4g}" if i else "" for i in intervals)]
            rows = [(*row[:2], cell, *row[2:]) for row, cell in zip(rows, cells, strict=True)]
        used = dict.fromkeys(score.definition for score in self.scores)
        notes = [f"  {name}: {definition_of(name).text}" for name in used]
        notes += [f"  {remark}" for score in self.scores for remark in score.remarks]
        methods = dict.fromkeys(interval.method for interval in intervals if interval)
        notes += [f"  intervals hold 95 % of the probability: {method}" for method in methods]
        notes += [f"  {self.note}"] if self.note else []
        if named := self.details.get("protocol"):
            notes += ["", f"protocol {named['id']}{departs_in(named)}"]
            notes += [published_text(named["id"].removesuffix(CHANGED), self.published)]
        return "\n".join([format_table(rows), "", *notes])


def departs_in(named: dict[str, Any]) -> str:
    """In words, what an evaluation did otherwise than its protocol, by the facts about that."""
    changes = [f"{name} {used} in place of {asked}" for name, (asked, used) in named["departs_in"].items()]
    return f": {', '.join(changes)}" if changes else ", to the letter"


def identity(content: dict[str, Any]) -> str:
    """The protocol of a result as a text, from its plain values."""
    facts = {key: value for key, value in content.items() if key in PROTOCOL}
    details = {key: value for key, value in content["details"].items() if key not in OF_THE_RUN}
    names = [score["name"] for score in content["scores"]]
    return json.dumps(_finite({**facts, "details": details, "scores": names}), sort_keys=True, default=str)


def default_place(checkpoint: Path | str | None) -> Path:
    """Where the result of a checkpoint is written: into its run folder, where the gallery finds it, else here."""
    path = Path(checkpoint or "evaluation.json")
    whole_run = path.is_dir() and not (path.parent.name == "checkpoints" and path.name.startswith("step-"))
    folder = path if whole_run else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if any((folder / name).exists() for name in ("checkpoints", "trained_on.json")):
        return folder / "evaluation.json"
    return Path("evaluation.json" if checkpoint is None or path.is_dir() else f"evaluation_{path.stem}.json")


def beside_others(path: Path, makes_room: Callable[[dict[str, Any]], bool]) -> Path:
    """The path, or one with a number where that name belongs to something that does not make room for a new result."""
    number, candidate = 1, path
    while candidate.exists() and not makes_room(read_json(candidate) or {}):
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate


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
    """Versions of the code and of what computes the numbers; "absent" for a package that is not installed."""
    found = {"code": code_version(), "python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("numpy", "torchvision", "lpips", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def code_version() -> str:
    """The commit of this checkout ("-dirty" when changed), "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.decode("utf-8", "replace").strip()


def _finite(value: Any) -> Any:
    """The same plain structure with None for nan and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def merge_repetitions(runs: list[list[Score]]) -> list[Score]:
    """One Score per metric: the mean over the repetitions, with Student's t interval and the value of each.

    What is per clip holds the clips of all repetitions, one after another; notes are those of the first.
    """
    if len(runs) == 1:
        return runs[0]
    return [_merged(list(scores)) for scores in zip(*runs, strict=True)]


def _merged(scores: list[Score]) -> Score:
    values, first = [score.mean for score in scores], scores[0]
    curves = [score.per_frame for score in scores]
    return Score(
        first.definition,
        [value for score in scores for value in score.per_clip],
        first.label,
        [fmean(column) for column in zip(*curves, strict=True)] if all(curves) else None,
        {**first.notes, "per_repetition": values},
        value=fmean(values),
        interval=over_repetitions(values),
    )


@dataclass(frozen=True)
class Interval:
    """Where the mean lies with the probability `level`, and how that was found."""

    low: float
    high: float
    method: str
    level: float = LEVEL


def over_repetitions(values: Sequence[float]) -> Interval | None:
    """Student's t interval for the mean of repeated measurements; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # here: trainings write reports too, of one repetition

    mean = fmean(values)
    quantile = float(stdtrit(len(values) - 1, 0.5 + LEVEL / 2))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half, f"Student's t over {len(values)} repetitions")


def over_clips(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval for the mean over clips (Efron 1979); None for fewer than two."""
    if len(values) < 2:
        return None
    clips, draws = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = [clips[draws.integers(len(clips), size=len(clips))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high), f"bootstrap over {len(clips)} clips, {RESAMPLES} resamples")


_MEAN = "mean over frames, then over clips"
_PSNR = f"10 log10(1/MSE) of each frame in [0, 1], at most 100 dB, {_MEAN}"
_SSIM = f"Gaussian window 11x11, sigma 1.5, data range 1, per channel, inner pixels, {_MEAN}"
_LPIPS = f"v0.1, frames at their own size, {_MEAN}"
_NO_NUMBER = "a network of RANDOM weights: no number to report"
_ENERGY = "E|X - y| - E|X - X'| / 2 of samples X and truth y, over pairs of different samples, in [0, 1]"
_CLIP = f"{_ENERGY}, norm over a clip's values / root of their number, mean over clips"
_FRAME = f"{_ENERGY}, norm over a frame's values / root of their number, {_MEAN}"
_CRPS = f"{_ENERGY}, of each value by itself, {_MEAN}"
_COVERED = (
    "share of the values of true frames between the lowest and the highest of n samples, ties broken at random: "
    "(n - 1) / (n + 1) for samples of the true distribution"
)
_DIGITS = "by weights/digit_classifier.safetensors, a vote of"
_PAIRS = "mean over pairs of samples for one condition, then over conditions"
DEFINITIONS = {
    "psnr-frame-8bit": Definition("PSNR", "dB", "higher", f"{_PSNR}; {_ROUNDED}"),
    "psnr-frame-raw": Definition("PSNR", "dB", "higher", f"{_PSNR}; {_RAW}"),
    "ssim-gaussian11-8bit": Definition("SSIM", "", "higher", f"{_SSIM}; {_ROUNDED}"),
    "ssim-gaussian11-raw": Definition("SSIM", "", "higher", f"{_SSIM}; {_RAW}"),
    "ssim-vvae-8bit": Definition("SSIM-vvae", "", "higher", f"window 7x7, data range of each frame; {_ROUNDED}"),
    "ssim-vvae-raw": Definition("SSIM-vvae", "", "higher", f"window 7x7, data range of each frame; {_RAW}"),
    "ssim-openstl-8bit": Definition("SSIM-openstl", "", "higher", f"window 7x7, data range 2; {_ROUNDED}"),
    "ssim-openstl-raw": Definition("SSIM-openstl", "", "higher", f"window 7x7, data range 2; {_RAW}"),
    "mse-pixels-raw": Definition("MSE", "", "lower", f"square error in [0, 1], summed over a frame's pixels, {_MEAN}"),
    "mae-pixels-raw": Definition(
        "MAE", "", "lower", f"absolute error in [0, 1], summed over a frame's pixels, {_MEAN}"
    ),
    "lpips-alex-8bit": Definition("LPIPS-alex", "", "lower", f"{_LPIPS}; {_ROUNDED}"),
    "lpips-alex-raw": Definition("LPIPS-alex", "", "lower", f"{_LPIPS}; {_RAW}"),
    "lpips-vgg-8bit": Definition("LPIPS-vgg", "", "lower", f"{_LPIPS}; {_ROUNDED}"),
    "lpips-vgg-raw": Definition("LPIPS-vgg", "", "lower", f"{_LPIPS}; {_RAW}"),
    "lpips-RANDOM-8bit": Definition("LPIPS-RANDOM", "", "lower", f"{_LPIPS}; {_NO_NUMBER}; {_ROUNDED}"),
    "lpips-RANDOM-raw": Definition("LPIPS-RANDOM", "", "lower", f"{_LPIPS}; {_NO_NUMBER}; {_RAW}"),
    "es-clip": Definition("ES-clip", "", "lower", f"{_CLIP}; {_ROUNDED}"),
    "es-clip-raw": Definition("ES-clip", "", "lower", f"{_CLIP}; {_RAW}"),
    "es-frame": Definition("ES-frame", "", "lower", f"{_FRAME}; {_ROUNDED}"),
    "es-frame-raw": Definition("ES-frame", "", "lower", f"{_FRAME}; {_RAW}"),
    "crps": Definition("CRPS", "", "lower", f"{_CRPS}; {_ROUNDED}"),
    "crps-raw": Definition("CRPS", "", "lower", f"{_CRPS}; {_RAW}"),
    "coverage": Definition("coverage", "", "(n - 1) / (n + 1)", f"{_COVERED}, {_MEAN}; {_ROUNDED}"),
    "coverage-raw": Definition("coverage", "", "(n - 1) / (n + 1)", f"{_COVERED}, {_MEAN}; {_RAW}"),
    "mse-frame-raw": Definition("MSE", "", "lower", f"mean square error of each frame in [0, 1], {_MEAN}; {_RAW}"),
    "kl-bits": Definition("KL", "bits", "lower", "divergence of the posterior from the prior, bits per clip"),
    "bits-per-token": Definition(
        "bits per token", "bits", "lower", "negative log-likelihood in bits per predicted latent token, not per pixel"
    ),
    "bits-per-subpixel": Definition(
        "bits per subpixel", "bits", "lower", "the same per red, green or blue value of the predicted frames"
    ),
    "masked-bits-per-token": Definition(
        "masked bits", "bits", "lower", "negative log-likelihood in bits of each masked latent token, given the others"
    ),
    "masked-accuracy": Definition(
        "masked accuracy", "", "higher", "share of the masked latent tokens whose likeliest value is right"
    ),
    "random-order-bound": Definition(
        "bits bound",
        "bits",
        "lower",
        "upper bound, by Jensen over orders, on bits per latent token of a sampler that makes one at a time in random "
        "order; no likelihood of fewer passes or other orders",
    ),
    "code-bits-per-frame": Definition(
        "code map", "bits", "lower", "codes of a frame times log2(size of the codebook): what storing them costs"
    ),
    "code-bits-per-clip": Definition("codes", "bits", "lower", "codes of a clip times log2(size of the codebook)"),
    "codebook-usage": Definition("codebook usage", "", "higher", "share of the codes that occur in the whole set"),
    "codebook-perplexity": Definition(
        "codebook perplexity", "", "higher", "exp(entropy in nats) of the histogram of codes over the whole set"
    ),
    "diversity-rmse-8bit": Definition(
        "diversity RMSE", "levels", "higher", f"root mean square difference, of 255, {_PAIRS}; {_ROUNDED}"
    ),
    "diversity-lpips-alex-8bit": Definition("diversity LPIPS-alex", "", "higher", f"LPIPS v0.1 {_PAIRS}; {_ROUNDED}"),
    "diversity-lpips-RANDOM-8bit": Definition(
        "diversity LPIPS-RANDOM", "", "higher", f"LPIPS {_PAIRS}; {_NO_NUMBER}; {_ROUNDED}"
    ),
    "diversity-lpips-vgg-8bit": Definition("diversity LPIPS-vgg", "", "higher", f"LPIPS v0.1 {_PAIRS}; {_ROUNDED}"),
    "boundary-ratio": Definition(
        "boundary ratio", "", "lower", "mean change of the error from frame to frame at window borders / elsewhere"
    ),
    "digit-identity": Definition(
        "identity", "", "higher", f"share of clips in which the digits of the label are seen; {_DIGITS} three frames"
    ),
    "digit-agreement": Definition(
        "class agreement", "", "higher", f"share of clips that show the class asked for; {_DIGITS} all frames"
    ),
    "digit-recognised": Definition(
        "recognised",
        "",
        "higher",
        f"share of clips whose digits are seen with confidence above 0.9; {_DIGITS} all frames",
    ),
    "motion-distance": Definition(
        "motion",
        "pixels",
        "lower",
        "distance of what is seen of each thing from the path on which the generator moves it, in frames whose shorter "
        f"side has 32 pixels, 16 where nothing is seen, by weights/factors-....safetensors; {_MEAN}",
    ),
    "identity-in-place": Definition(
        "identity in place",
        "",
        "higher",
        "share of clips in which each thing is seen within 4 pixels of where the generator moves it, in frames whose "
        "shorter side has 32 pixels, and is of its kind; by weights/factors-....safetensors, a vote of three frames",
    ),
    "brightness-bias": Definition("brightness bias", "levels", "lower", "mean of prediction minus original, of 255"),
}


def definition_of(name: str) -> Definition:
    """The definition of an id. Raises ValueError for an unknown one."""
    found = DEFINITIONS.get(name) or definition_of_set(name)
    if found is None:
        raise ValueError(f"no definition named {name!r}; add it to evaluation/report.py")
    return found
