"""Prepare data, train every model for a few minutes of CPU, and write one page to look at.

What is run and shown stands in configs/demo.yaml: a table of commands, numbers with their baselines, clips and curves.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python scripts/...` finds the packages

from training.cli import make_parser, positive_float, run

if TYPE_CHECKING:
    from evaluation.gallery import Gallery, Grid, Overview, Row
    from evaluation.gallery.content import Curve

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "configs" / "demo.yaml"
MODELS = ("video_vae", "vqgan", "vvae", "lvt", "flow_pred")
LONGEST = ("flow_pred", "video_vae", "vvae", "lvt", "vqgan")  # first, so that all end at about the same time
FRAMES, SIZE = 8, 64  # of a clip
SHOWN = 4  # clips of a kind
SHAPES = 450  # generated videos, one clip of each
MOST_VIDEOS = 150  # of the user's own
FLOW_DATA = (  # what the six commands of flow_pred have in common
    "data.data_root={clips} data.skip_frames=0 training.num_observations=8 model.vector_field_regressor.inner_dim=96 "
    "model.autoencoder.ckpt_path={out}/flow_pred/shapes_run-autoencoder"
)


@dataclass(frozen=True)
class Steps:
    """{steps:N} in a command: N optimiser steps at effort 1, and at least two, so that there is something to train."""

    effort: float

    def __format__(self, count: str) -> str:
        return str(max(2, round(int(count) * self.effort)))


@dataclass
class Demo:
    """One demonstration: `folder` holds all that it writes."""

    folder: Path
    effort: float = 1.0  # factor on the steps of every training
    threads: int | None = None  # of each command; None: as many as PyTorch wants
    shown: int = SHOWN

    @property
    def clips(self) -> Path:
        """The prepared data."""
        return self.folder / "clips.npy"

    def words(self, command: str) -> list[str]:
        """A command of the table as the words of a command line."""
        values = {"clips": self.clips, "clips_name": self.clips.name, "out": self.folder, "shown": self.shown}
        words = shlex.split(command.replace("{flow}", FLOW_DATA))  # split first: a folder's name may hold spaces
        return [word.format(**values, steps=Steps(self.effort)) for word in words]

    def run(self, what: str, command: list[str]) -> None:
        """Run one of the project's scripts as a user would; its output goes to the log folder.

        Raises UserError with the end of the log when it fails.
        """
        from videodata.errors import UserError

        log = self.folder / "log" / f"{what.replace(' ', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"  {what} ...", flush=True)
        start = time.monotonic()
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with open(log, "w") as output:
            output.write(shlex.join(["python", *command]) + "\n")
            output.flush()
            result = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False,
                env=os.environ | threads,
            )  # fmt: skip
        if result.returncode != 0:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise UserError(f"the demonstration stopped while it wanted to {what}: {last} (all of it: {log})")
        print(f"  {what}: done in {time.monotonic() - start:.0f} s", flush=True)

    def paths(self, pattern: str) -> list[Path]:
        """The files of a pattern of the table, in the order of their names."""
        return sorted(self.folder.glob(pattern))

    def scores(self, report: str) -> dict[str, float]:
        """The means of an evaluation by name."""
        return {score["name"]: score["mean"] for score in json.loads((self.folder / report).read_text())["scores"]}

    def prepare(self, data: Path | None) -> str:
        """Make the clips that all models are trained on; returns a line that describes them."""
        from videodata.clips import open_clips
        from videodata.errors import UserError

        videos = self.folder / "shapes" if data is None else data.resolve()
        if data is None:
            made = f"--format videos --count {SHAPES} --frames {2 * FRAMES} --size {SIZE}"
            self.run("generate shapes", self.words(f"scripts/prepare_data.py shapes --out {{out}}/shapes {made}"))
        elif not data.is_dir():
            raise UserError(f"{data}: no such folder; DATA must name a folder of videos")
        options = (
            f"--num_frames {FRAMES} --stride 2 --width {SIZE} --height {SIZE} --workers 2 --resize crop "
            f"--max_videos {0 if data is None else MOST_VIDEOS}"
        )
        command = ["prepare_ucf101.py", "--video_folder", str(videos), "--output_npy_file", str(self.clips)]
        self.run("prepare clips", [*command, *options.split()])
        self.shown = min(SHOWN, len(open_clips(str(self.clips), frames=FRAMES, size=SIZE, split="val")))
        if not self.shown:
            raise UserError(f"{videos}: too few videos: none is left to validate with; give ten or more")
        source = f"{SHAPES} generated videos of moving shapes" if data is None else f"the videos in {data}"
        return f"Clips of {FRAMES} frames of {SIZE}x{SIZE}, from {source}"

    def show(self, name: str, model: dict[str, Any], gallery: Gallery) -> str:
        """Run a model's commands and add its section; returns a line with its numbers against the baselines."""
        import yaml

        for what, command in model["commands"].items():
            self.run(what, self.words(command))
        numbers = [self.number(entry, model.get("report", "")) for entry in model["numbers"]]
        reports = dict.fromkeys(entry.get("report", model.get("report")) for entry in model["numbers"])
        gallery.add_section(
            name,
            model["intro"],
            clips=[
                *(self.grid(entry) for entry in model["grids"]),
                *(self.row(entry) for entry in model.get("rows", ())),
            ],
            curves=[self.curve(entry, model) for entry in model["curves"]],
            table=[("score", "mean"), *(item for report in reports for item in self.scores(report).items())],
            config=yaml.safe_load((self.folder / model["config"]).read_text()),
            overview=numbers,
        )
        return "; ".join(f"{n.meaning} {n.value}, {n.baseline_meaning} {n.baseline}" for n in numbers)

    def number(self, entry: dict[str, Any], report: str) -> Overview:
        """A score beside its trivial baseline."""
        from evaluation.gallery import Overview

        scores, unit = self.scores(entry.get("report", report)), entry.get("unit", "dB")
        baseline = entry["value"] if "value" in entry else scores[entry["baseline"]]
        digits = 1 if unit == "dB" else 2
        return Overview(
            f"{scores[entry['score']]:.{digits}f} {unit}",
            entry["of"],
            f"{baseline:.{digits}f} {unit}",
            entry["baseline_of"],
        )

    def grid(self, entry: dict[str, Any]) -> Grid:
        """Clips below each other, a row for each kind."""
        from evaluation.gallery import Grid

        rows = {kind: self.paths(pattern) for kind, pattern in entry["rows"].items()}
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
            read_line(self.folder / run / "metrics.jsonl", key, label) for label, (run, key) in entry["lines"].items()
        ]
        if "baseline" in entry:
            number = model["numbers"][entry["baseline"]]
            shown = self.number(number, model.get("report", ""))
            lines.append(Line(number["baseline_of"], [(0, float(shown.baseline.split()[0]))], baseline=True))
        return Curve(entry["title"], lines, unit=entry.get("unit", ""))

    def show_all(self, table: dict[str, Any], models: list[str], gallery: Gallery) -> list[str]:
        """Show the models, several at a time, each on its share of the cores; their lines, in the order asked for."""
        cores = os.cpu_count() or 1
        lanes = min(len(models), cores)
        self.threads = max(1, cores // lanes)
        with ThreadPoolExecutor(lanes) as pool:
            order = sorted(models, key=LONGEST.index)
            shown = {name: pool.submit(self.show, name, table[name], gallery) for name in order}
            ended, waiting = wait(shown.values(), return_when=FIRST_EXCEPTION)
            for future in waiting:  # after a failure
                future.cancel()
            for future in ended:
                future.result()
        gallery.sections.sort(key=lambda section: models.index(section.name))
        return [f"{name}: {shown[name].result()}" for name in models]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__.splitlines()[0], prog="python -m scripts.demo")
    parser.add_argument("--data", type=Path, help="folder of videos; without it, moving shapes are generated")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for all that is written (default: runs/demo, with the name of --data and the effort)",
    )
    parser.add_argument("--effort", type=positive_float, default=1.0, help="factor on the steps of every training")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to show")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the demonstration."""
    args = build_parser().parse_args(argv)
    import yaml

    from evaluation.gallery import Gallery
    from evaluation.gallery.page import write_picture

    name = "demo" if args.data is None else f"demo-{args.data.resolve().name}"
    name += "" if args.effort == 1 else f"-effort-{args.effort:g}"  # a run is continued only with its own settings
    demo = Demo(ROOT / (args.out or Path("runs", name)), args.effort)
    start = time.monotonic()
    print("data")
    gallery = Gallery("Video models, trained while you waited", demo.prepare(args.data))
    lines = demo.show_all(yaml.safe_load(TABLE.read_text()), args.models, gallery)
    page = gallery.write(demo.folder)
    write_picture(demo.folder / "picture.png", gallery.sections)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Open {page}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
