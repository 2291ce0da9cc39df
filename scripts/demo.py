"""Prepare data, train every model for a few minutes of CPU, and write one page to look at.

What is run and shown stands in configs/demo.yaml: sources of clips, and for each model its commands, numbers with their
baselines, clips and curves.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import command_line, make_parser, positive_float, run

if TYPE_CHECKING:
    from evaluation.gallery import Gallery, Grid, Overview, Row
    from evaluation.gallery.content import Curve
    from training.lanes import Stage

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "configs" / "demo.yaml"
WEIGHTS = ROOT / "weights"
GENERATED = ("digits", "shapes")  # sources that are drawn here; any other is a folder of videos
MODELS = ("flow_pred", "lvt", "video_vae", "vqgan", "vvae", "tokenizer3d")
FRAMES, SIZE = 16, 32  # of a clip
SHOWN = 4  # clips of a kind
SETTINGS = "demo.json"  # in the folder: what the demonstration there is made with
LEAST_CLIPS = 200  # of a generated source, however low the effort
LEAST_SECONDS = 2.0  # that a command takes, however low the effort


@dataclass(frozen=True)
class Scaled:
    """{steps:N} in a command: N at effort 1, in proportion otherwise, and at least `least`."""

    effort: float
    least: int

    def __format__(self, count: str) -> str:
        return str(max(min(self.least, int(count)), round(int(count) * self.effort)))


@dataclass
class Demo:
    """One demonstration: `folder` holds all that it writes."""

    folder: Path
    table: dict[str, Any]
    source: str = "digits"  # or "shapes", or "folder"
    videos: Path | None = None  # of the source "folder"
    effort: float = 1.0  # factor on the steps of every training
    shown: int = SHOWN
    models: list[str] = field(default_factory=lambda: list(MODELS))

    @property
    def words_of_source(self) -> dict[str, Any]:
        """What the table says about the source."""
        return self.table["sources"][self.source]

    def fill(self, text: str) -> str:
        """A text of the table with the words in its braces filled in."""
        least = 2 if self.effort < 1 else 1  # so that there is something to train
        values = {
            **{name: value for name, value in self.words_of_source.items() if isinstance(value, str | int | float)},
            "source": self.source, "out": self.folder, "videos": self.videos, "shown": self.shown,
            "steps": Scaled(self.effort, least), "count": Scaled(self.effort, LEAST_CLIPS),
        }  # fmt: skip
        for name in ("clips", "text"):  # which have braces of their own
            values[name] = str(values[name]).format(**values)
        values["clips_name"] = Path(values["clips"]).name
        return text.format(**values)

    def expanded(self, command: str) -> str:
        """A command of the table with what stands under `common`, and under the `flags` of the source, in its place."""
        for name, text in {**self.table.get("common", {}), **self.words_of_source.get("flags", {})}.items():
            command = command.replace("{" + name + "}", text)
        return command

    def words(self, command: str) -> list[str]:
        """A command of the table as the words of a command line."""
        # split first: a folder's name may hold spaces
        return [self.fill(word) for word in shlex.split(self.expanded(command))]

    def stages(self, commands: dict[str, dict[str, Any]], before: str | None = None) -> list[Stage]:
        """The commands of a model as stages, each after the one above it unless the table says otherwise.

        Those that need weights which are not there are left out.
        """
        from training.lanes import Stage

        stages: list[Stage] = []
        for name, entry in commands.items():
            if not self.has_weights(entry):
                continue
            above = () if before is None else (before,)
            steps = self.expanded(entry["run"]).partition("{steps:")[2].partition("}")[0]
            stages.append(
                Stage(
                    name,
                    self.words(entry["run"]),
                    max(LEAST_SECONDS, entry["seconds"] * (min(1.0, self.effort) if steps else 1.0)),
                    tuple(entry.get("after", above)),
                    Path(self.fill(entry["watch"])) if "watch" in entry else None,
                    int(self.fill("{steps:" + steps + "}")) if steps else 0,
                )
            )
            before = before if "weights" in entry else name  # nothing waits for what only evaluates
        return stages

    def has_weights(self, entry: dict[str, Any]) -> bool:
        """Whether the trained weights that an entry of the table is about are in the repository; True for any other."""
        return "weights" not in entry or (WEIGHTS / f"{self.fill(entry['weights'])}.safetensors").is_file()

    def lanes(self, stages: list[Stage]) -> Any:
        """Stages on all cores, each with its share of them; the environment says so before anything imports torch."""
        from training.lanes import Lanes
        from videodata.prepare import available_cores

        branches = len(self.models) + ("flow_pred" in self.models)  # whose two predictors are trained side by side
        lanes = max(1, min(available_cores(), branches))
        os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // lanes))
        return Lanes(ROOT, self.folder / "log", stages, lanes)

    def run(self, gallery: Gallery) -> list[str]:
        """Prepare, train, evaluate, and add the models' sections; returns a line for each model, as asked for."""
        lines: dict[str, str] = {}
        chains = {
            name: self.stages(self.table["models"][name]["commands"], "prepare the clips") for name in self.models
        }
        first = self.stages({"prepare the clips": {"run": self.words_of_source["prepare"], **self.words_of_source}})
        owners = {stage.name: name for name, chain in chains.items() for stage in chain}
        left = {name: {stage.name for stage in chain} for name, chain in chains.items()}

        def ended(stage: Stage) -> str | None:
            if stage.name not in owners:
                self.look_at_clips()
                return None
            name = owners[stage.name]
            left[name].discard(stage.name)
            if left[name]:
                return None
            lines[name] = f"{name}: {self.show(name, gallery)}"
            return lines[name]

        self.lanes([*first, *(stage for chain in chains.values() for stage in chain)]).run(ended)
        gallery.sections.sort(
            key=lambda section: [self.table["models"][n]["title"] for n in self.models].index(section.name)
        )
        return [lines[name] for name in self.models]

    def look_at_clips(self) -> None:
        """Show no more clips than there are to validate with. Raises UserError where there is none."""
        from videodata.clips import open_clips
        from videodata.errors import UserError

        self.shown = min(self.shown, len(open_clips(self.fill("{clips}"), frames=FRAMES, size=SIZE, split="val")))
        if not self.shown:
            raise UserError(
                f"{self.videos or self.source}: too few videos: none is left to validate with; give 10 or more"
            )

    def show(self, name: str, gallery: Gallery) -> str:
        """Add a model's section; returns a line with its numbers against the baselines."""
        import yaml

        model = self.table["models"][name]
        numbers = [self.number(entry) for entry in model["numbers"] if self.was_measured(entry)]
        reports = dict.fromkeys(entry["report"] for entry in model["numbers"])
        gallery.add_section(
            model["title"],
            model["intro"],
            clips=[
                *(self.grid(entry) for entry in model["grids"]),
                *(self.row(entry) for entry in model.get("rows", ()) if self.has_weights(entry)),
            ],
            curves=[self.curve(entry, model) for entry in model["curves"]],
            table=[("score", "mean"), *(item for report in reports for item in self.scores(report).items())],
            config=yaml.safe_load((self.folder / self.fill(model["config"])).read_text(encoding="utf-8")),
            overview=numbers,
        )
        return "; ".join(
            f"{n.meaning} {n.value}, {n.baseline_meaning} {n.baseline}" + (f", {n.more}" if n.more else "")
            for n in numbers
        )

    def paths(self, pattern: str) -> list[Path]:
        """The files of a pattern of the table, in the order of their names."""
        return sorted(self.folder.glob(self.fill(pattern)))[: self.shown]

    def scores(self, report: str) -> dict[str, float]:
        """The means of an evaluation by name."""
        scores = json.loads((self.folder / report).read_text(encoding="utf-8"))["scores"]
        return {score["name"]: score["mean"] for score in scores}

    def was_measured(self, entry: dict[str, Any]) -> bool:
        """Whether there were clips enough for a score; False only where the table says that it may be missing."""
        return not entry.get("may_be_missing") or bool(fnmatch.filter(self.scores(entry["report"]), entry["score"]))

    def number(self, entry: dict[str, Any]) -> Overview:
        """A score beside its trivial baseline, and beside that of the weights in the repository where they are."""
        from evaluation.gallery import Overview

        scores, unit = self.scores(entry["report"]), entry.get("unit", "dB")
        found = {key: fnmatch.filter(scores, entry[key])[0] for key in ("score", "baseline") if key in entry}
        entry = {**entry, **found}  # names that say how much was measured stand in the table with a *
        digits = ".1f" if unit == "dB" else "#.3g"
        baseline = entry["value"] if "value" in entry else scores[entry["baseline"]]
        hour = entry.get("hour", {})
        more = ""
        if "weights" in hour and self.has_weights(hour):
            more = f"after an hour: {self.scores(hour['report'])[entry['score']]:{digits}} {unit}".rstrip()
        return Overview(
            f"{scores[entry['score']]:{digits}} {unit}".rstrip(),
            entry["of"],
            f"{baseline:{digits}} {unit}".rstrip(),
            entry["baseline_of"],
            more,
        )

    def clips_of(self, kinds: dict[str, Any]) -> dict[str, list[Path]]:
        """The clips of each kind: a pattern, or {weights, clips}, which is left out where the weights are not there."""
        entries = {kind: value if isinstance(value, dict) else {"clips": value} for kind, value in kinds.items()}
        return {kind: self.paths(value["clips"]) for kind, value in entries.items() if self.has_weights(value)}

    def grid(self, entry: dict[str, Any]) -> Grid:
        """Clips below each other, a row for each kind; those of weights that are not there are left out."""
        from evaluation.gallery import Grid

        rows = self.clips_of(entry["rows"])
        columns = [f"clip {number + 1}" for number in range(self.shown)]
        return Grid(entry["title"], rows, columns, given=entry.get("given", 0), note=entry.get("note", ""))

    def row(self, entry: dict[str, Any]) -> Row:
        """Clips or pictures beside each other, or the panels of one video."""
        from evaluation.gallery import Panel, Row

        if "pictures" in entry:
            clips = [(caption, self.folder / name) for caption, name in entry["pictures"].items()]
        elif "panels" in entry:
            count = len(entry["panels"])
            found = self.paths(entry["clips"])[:1]  # none where there are not two clips
            clips = [(text, Panel(path, i, count)) for path in found for i, text in enumerate(entry["panels"])]
        else:
            clips = [(path.stem.replace("_", " "), path) for path in self.paths(entry["clips"])]
        return Row(entry["title"], clips, note=entry.get("note", ""))

    def curve(self, entry: dict[str, Any], model: dict[str, Any]) -> Curve:
        """Learning curves; `baseline` is the place of the number whose baseline is drawn."""
        from evaluation.gallery.content import Curve, Line
        from evaluation.gallery.runs import read_line

        lines = [
            read_line(self.folder / self.fill(run) / "metrics.jsonl", key, label)
            for label, (run, key) in entry["lines"].items()
        ]
        if "baseline" in entry:
            number = model["numbers"][entry["baseline"]]
            baseline = float(self.number(number).baseline.split()[0])
            lines.append(Line(number["baseline_of"], [(0, baseline)], baseline=True))
        return Curve(entry["title"], lines, unit=entry.get("unit", ""))

    def film(self) -> Path | None:
        """The continuations of the predictors beside each other, moving; None where one of them was not trained."""
        from evaluation.gallery.picture import write_film

        entry = self.table["film"]
        if not set(entry["models"]) <= set(self.models):
            return None
        columns = self.clips_of(entry["columns"])
        return write_film(self.folder / "continuations.webp", columns, entry["given"])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__.splitlines()[0], prog="python -m scripts.demo")
    parser.add_argument("--data", default="digits", help="digits, shapes, or a folder of videos")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for all that is written (default: runs/demo, with the name of --data and the effort)",
    )
    parser.add_argument("--effort", type=positive_float, default=1.0, help="factor on the steps of every training")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to show")
    return parser


def open_demo(args: argparse.Namespace) -> Demo:
    """The demonstration that the flags describe. Raises UserError for a folder that is not there."""
    import yaml

    from videodata.errors import UserError

    videos = None if args.data in GENERATED else Path(args.data).resolve()
    if videos and not videos.is_dir():
        raise UserError(f"{args.data}: no such folder; DATA is digits, shapes or a folder of videos")
    name = "demo" if args.data == "digits" else f"demo-{videos.name if videos else args.data}"
    name += "" if args.effort == 1 else f"-effort-{args.effort:g}"  # a run is continued only with its own settings
    source = "folder" if videos else args.data
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return Demo(ROOT / (args.out or Path("runs", name)), table, source, videos, args.effort, models=args.models)


def settle_folder(demo: Demo) -> None:
    """Note in the folder what its demonstration is made with. Raises UserError where that is something else: its clips
    and runs would refuse other settings one by one, some of them after minutes.
    """
    from videodata.errors import UserError
    from videodata.files import read_json, write_json

    note = demo.folder / SETTINGS
    now = {"data": str(demo.videos or demo.source), "effort": demo.effort}
    found = read_json(note) or now
    if found != now:
        words = command_line(["--data", str(found.get("data")), "--effort", str(found.get("effort"))])
        raise UserError(f"{demo.folder}: holds a demonstration of {words}; repeat these, or choose another --out")
    write_json(note, now)


def main(argv: list[str] | None = None) -> None:
    """Run the demonstration."""
    demo = open_demo(build_parser().parse_args(argv))
    settle_folder(demo)
    from evaluation.gallery import Gallery
    from evaluation.gallery.picture import write_picture

    start = time.monotonic()
    print(f"{demo.words_of_source['about']}\nAll commands and what they say: {demo.folder / 'log'}", flush=True)
    gallery = Gallery(demo.table["title"], demo.words_of_source["about"])
    lines = demo.run(gallery)
    page = gallery.write(demo.folder)
    write_picture(demo.folder / "picture.png", gallery.sections)
    demo.film()
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Open {page}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
