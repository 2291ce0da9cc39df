"""Everything that is worth measuring when a GPU is at hand, in one command of at most eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only steps compiled-vqgan --minutes 4
    python benchmarks/gpu.py --device cpu --small

The parts, in this order: where the outputs of VideoVAE+ and the 3-D tokenizer part from those of the CPU; the training
step of every model; sampling codes and frames, encoding and decoding clips; tests/gpu; sampling with CUDA graphs; the
training steps once more, compiled. Each runs in a process of its own, with a limit to its time, and is left out where
too little is left for it. Results are in --out after every line, so that a run can be killed; parts that are measured
again replace their results there, others stay.

MFU: FLOPs of forward and backward passes, nothing recomputed, over time and the peak of the GPU for that precision.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `python benchmarks/...` finds the packages

import numpy as np
import torch

from benchmarks.gpu_parts import generation, steps
from benchmarks.gpu_parts.layers import compare_layers, parted
from benchmarks.gpu_parts.measure import Job, one_line, peak_flops, tf32
from training.cli import make_parser, number, run, says_when_stopped
from training.step import decided
from videodata import read_video, write_video
from videodata.errors import UserError
from videodata.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
APART, SHOWN = 1e-5, 8  # layers further apart than this, and how many of them are named
CLOSING = 3.0  # seconds for a process to end by itself
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What a part does, the seconds without which it is not begun, and those after which it is stopped."""

    rows: Callable[[Job], Iterator[Row]]
    least: float
    limit: float


def device_difference(job: Job) -> Iterator[Row]:
    """The first layers whose outputs in float32 part from those of the CPU, and what becomes of it: in the
    reconstruction, and in a film of it, whose encoder may make more of small differences.
    """
    size = 32 if job.small else 64
    models = {
        "VideoVAE+": (generation.vvae_model, 8),
        "VideoVAE+, tiny": (lambda _: generation.vvae_model(small=True), 16),
        "3-D tokenizer": (generation.tokenizer3d_model, 9),
    }
    for name, (build, frames) in list(models.items())[1 if job.small else 0 :]:
        torch.manual_seed(0)
        reference = build(job.small)
        clip = torch.rand(1, 3, frames, size, size) * 2 - 1
        with tf32(False):
            other = deepcopy(reference).to(job.device)
            layers, results = compare_layers(reference, other, reconstruct, clip)
        for layer in parted(layers, APART, SHOWN):
            yield {"what": name, **layer, "shape": "x".join(map(str, layer["shape"]))}
        expected, found = results
        levels = 127.5 * (expected - found).abs()
        films = [film(made[0]).astype(int) for made in results]
        worst = max((layer for layer in layers if layer.alone is not None), key=lambda layer: layer.alone)
        yield {
            "what": name, "name": "reconstruction, in levels of 255", "mean": float(levels.mean()),
            "largest": float(levels.max()), "mean of films": float(abs(films[0] - films[1]).mean()),
            "layers": len(layers), "furthest by itself": worst.name, "alone": worst.alone,
        }  # fmt: skip


def reconstruct(model: torch.nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """Through the autoencoder and back."""
    return model.decode(model.encode(clip).mode()).clamp(-1, 1)


def film(clip: torch.Tensor) -> np.ndarray:
    """What is left of a clip (3, T, H, W) in an H.264 file: uint8 (T, H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        return read_video(write_video(Path(folder) / "clip.mp4", clip, 8))[0]


def gpu_tests(job: Job, tests: Path = ROOT / "tests" / "gpu") -> Iterator[Row]:
    """What failed, as pytest names it, then how many passed. Lines that came before the time was over count."""
    if importlib.util.find_spec("pytest") is None:
        yield {"what": str(tests), "problem": "pytest is missing: pip install -r requirements-dev.txt"}
        return
    command = [sys.executable, "-m", "pytest", str(tests), "-o", "addopts=", "--import-mode=importlib", "-v"]
    command += ["--tb=short", "-rfEs", "--color=no", "-p", "no:cacheprovider"]
    counts, last = dict.fromkeys(("passed", "failed", "error", "skipped"), 0), ""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    wide = {**os.environ, "COLUMNS": "400"}  # pytest cuts what failed to the width of the terminal
    with subprocess.Popen(command, cwd=ROOT, env=wide, **options) as process:
        for line in process.stdout:
            last = line.strip() or last
            if match := re.match(r"\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                counts[match[1].lower()] += 1
                yield {"what": "so far", **counts}
            elif match := re.match(r"(FAILED|ERROR|SKIPPED) (.*)", line):
                yield {"what": match[1].lower(), "name": match[2][:300]}
    yield {"what": "all", **counts, "status": process.returncode, "note": last.strip("= ")}


def parts() -> dict[str, Part]:
    """All of them, by name, the most telling first."""
    found = {"devices": Part(device_difference, 15, 60)}
    for name in steps.MODELS:
        found[f"steps-{name}"] = Part(partial(steps.training_step, name), 10, 40)
    found["sampling"] = Part(generation.lvt_sampling, 15, 60)
    found["river"] = Part(generation.river, 10, 30)
    found["codecs"] = Part(generation.codecs, 10, 30)
    found["tests"] = Part(gpu_tests, 40, 150)
    found["graphs"] = Part(generation.lvt_graphs, 40, 150)
    for name in steps.MODELS:
        found[f"compiled-{name}"] = Part(partial(steps.compiled_step, name), 35, 120)
    return found


PARTS = parts()


def machine(job: Job) -> Row:
    """What the results were measured on."""
    device = job.device
    facts = {"torch": torch.__version__, "python": platform.python_version(), "processors": os.cpu_count()}
    if device.type != "cuda":
        return {"device": "cpu", **facts, "note": "no GPU: MFU and peaks of memory are left out"}
    name, properties = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device)
    facts |= {"device": name, "GiB": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    facts["auto precision"] = decided("auto", device)
    if peak_flops(name, "fp32") is None:
        facts["note"] = "its peak is not in the table of benchmarks/gpu_parts/measure.py: MFU is left out"
    return facts


def work(sender: Connection, name: str, job: Job) -> None:
    """In a process of its own: send the rows of a part, then how it ended."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # what it starts ends with it
    try:
        for row in [machine(job)] if name == "machine" else PARTS[name].rows(job):
            sender.send(("row", row))
        sender.send(("done", None))
    except UserError as error:
        sender.send(("refused", str(error)))
    except Exception as error:  # noqa: BLE001 - the other parts go on
        sender.send(("failed", one_line(error)))


def events(name: str, job: Job) -> Iterator[tuple[str, Any]]:
    """What a part in a process of its own sends; the last event says how it ended: done, refused, failed or stopped.

    The process is a fork, where there are forks, which has the large libraries already. CUDA is only touched there.
    """
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, name, job))
    sys.stdout.flush()
    process.start()
    sender.close()
    job.start = time.monotonic()
    try:
        while True:
            if not receiver.poll(max(0.0, job.left)):
                yield "stopped", f"after {job.seconds:.0f} s, its limit; what it had measured is kept"
                return
            kind, value = receiver.recv()
            yield kind, value
            if kind != "row":
                process.join(CLOSING)
                return
    except EOFError:
        process.join(CLOSING)
        yield "failed", f"its process ended with status {process.exitcode}"
    finally:
        end(process)


def end(process: multiprocessing.Process) -> None:
    """Kill the process, where it lives, and all that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no group of its own, or no longer
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


class Results:
    """The JSON file: what the machine is, and for every part its rows, how it ended and the seconds that it took."""

    def __init__(self, path: Path, facts: Row) -> None:
        self.path = path
        self.value: dict[str, Any] = {"machine": facts, "parts": {}}
        if path.exists():
            stored = read_json(path)
            if not isinstance((stored or {}).get("parts"), dict) or stored.get("machine") != facts:
                raise UserError(f"{path}: is no file of results of this machine and this torch; choose another --out")
            self.value = stored
        path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        self.value["parts"][name] = {"rows": [], "state": "begun", "seconds": 0.0}

    def add(self, name: str, row: Row) -> None:
        """Add a line; lines of the same count of tests replace each other."""
        rows = self.value["parts"][name]["rows"]
        if rows and rows[-1]["what"] == "so far":
            rows.pop()
        rows.append(row)
        self.write()

    def finish(self, name: str, state: str, note: str | None, seconds: float) -> None:
        self.value["parts"][name] |= {"state": state, "seconds": round(seconds, 1), **({"note": note} if note else {})}
        self.write()

    def write(self) -> None:
        write_json(self.path, self.value, sort_keys=False)


def measure(name: str, results: Results, job: Job) -> None:
    """Run a part, and print its table."""
    results.begin(name)
    start = time.monotonic()
    for kind, value in events(name, job):
        if kind == "row":
            results.add(name, value)
        else:
            results.finish(name, kind, value, time.monotonic() - start)
    own = results.value["parts"][name]
    print(f"\n## {name}: {own['state']} in {own['seconds']:.0f} s" + (f" ({own['note']})" if "note" in own else ""))
    if own["rows"]:
        print(table(own["rows"]), flush=True)


def table(rows: list[Row]) -> str:
    """Rows as markdown, with all their keys as columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Any) -> str:
    """A cell: numbers with three digits that count."""
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
    text = f"{value:.0f}" if isinstance(value, float) and abs(value) >= 1000 else text
    return text.replace("|", "\\|")


def chosen(words: list[str] | None) -> list[str]:
    """Names of parts; a word stands for all whose names begin with it. Raises UserError."""
    if not words:
        return list(PARTS)
    groups = [[name for name in PARTS if name == word or name.startswith(f"{word}-")] for word in words]
    unknown = [word for word, names in zip(words, groups, strict=True) if not names]
    if unknown:
        raise UserError(f"--only {' '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    return [name for name in PARTS if any(name in names for names in groups)]


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--minutes", type=number(float, 0, 10_000, above=True), default=8.0, help="of the whole")
    add("--only", nargs="+", metavar="PART", help=f"parts, or beginnings of their names: {', '.join(PARTS)}")
    add("--out", type=Path, default=Path("runs/gpu.json"), metavar="FILE", help="gets the results")
    add("--small", action="store_true", help="tiny models and clips: to see on a CPU that everything runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure the chosen parts while there is time."""
    args = build_parser().parse_args(argv)
    names, deadline = chosen(args.only), time.monotonic() + 60 * args.minutes
    facts: Row = {}
    for kind, value in events("machine", Job(args.device, args.small, 60.0)):
        if kind not in ("row", "done"):
            raise UserError(value)
        facts = value or facts
    facts["small"] = args.small
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    results = Results(args.out, facts)
    with says_when_stopped(f"what was measured is in {args.out}"):
        for name in names:
            left = deadline - time.monotonic()
            if left < PARTS[name].least:
                print(f"\n## {name}: left out, of {args.minutes:g} minutes {max(0.0, left):.0f} s are left", flush=True)
                if name not in results.value["parts"]:
                    results.begin(name)
                    results.finish(name, "left out", None, 0.0)
                continue
            limit = left if args.small else min(left, PARTS[name].limit)  # a CPU may be busy
            measure(name, results, Job(args.device, args.small, limit))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    run(main)
