"""Commands of the project run side by side, with the time left: each in a process of its own, forked from one that has
imported torch and the rest already, so that thirty commands pay for the imports once. Where forking is not safe, each
imports its own.

A command is run as a user would type it (`log/<name>.txt` begins with it), and its output goes to that file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from training.cli import command_line, run
from videodata.errors import UserError
from videodata.files import parse_json, write_file

PRELOADED = ("torch", "torch.utils.tensorboard", "torchvision", "evaluation.runner", "evaluation.networks")
POLL = 0.5  # seconds between looks at the processes
WORD_EVERY = 15.0  # seconds between lines where there is no terminal
PATIENCE = 30.0  # seconds that a process has to save and leave when all is called off
TAIL = 4096  # bytes at the end of a metrics.jsonl; its last rows are shorter


@dataclass
class Stage:
    """One command: `words` are those after `python`. Names are unique."""

    name: str
    words: list[str]
    seconds: float = 1.0  # of one core, as measured: what the progress is reckoned by
    after: tuple[str, ...] = ()  # the stages whose results it needs
    run_dir: Path | None = None  # of a training, whose metrics.jsonl tells its step
    steps: int = 0  # of the training
    started: float | None = None
    done: bool = False
    process: BaseProcess | None = field(default=None, repr=False)
    shown: float = 0.0  # share of it that was last reported: progress never goes back

    def share(self, now: float) -> float:
        """How much of it is done, from 0 to 1: by its steps where it trains, and by the clock."""
        if self.done:
            return 1.0
        if self.started is None:
            return 0.0
        share = min(0.97, (now - self.started) / self.seconds)
        if self.run_dir and self.steps and (step := last_step(self.run_dir / "metrics.jsonl")):
            share = min(max(share, 0.9 * step / self.steps), 0.9 * step / self.steps + 0.1)
        self.shown = max(self.shown, min(0.97, share))
        return self.shown


def last_step(metrics: Path) -> int:
    """The step of the last whole row of a metrics.jsonl; 0 where there is none."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            rows = file.read().splitlines()
    except OSError:
        return 0
    for row in reversed(rows):
        with suppress(ValueError, KeyError, TypeError):
            return int(parse_json(row)["step"])
    return 0


class Lanes:
    """Runs stages in `lanes` processes at a time, the longest way to the end first."""

    def __init__(
        self, root: Path, log: Path, stages: Sequence[Stage], lanes: int, preloaded: Sequence[str] = PRELOADED
    ) -> None:
        self.root, self.log, self.lanes = root, log, lanes
        self.stages = {stage.name: stage for stage in stages}
        default = multiprocessing.get_all_start_methods()[0]  # spawn where forking is unsafe, or not there
        self.context = multiprocessing.get_context("spawn" if default == "spawn" else "forkserver")
        if hasattr(self.context, "set_forkserver_preload"):
            self.context.set_forkserver_preload(list(preloaded))
        self.started = time.monotonic()
        self.total = remaining(stages, lanes, self.started)

    def run(self, ended: Callable[[Stage], str | None]) -> None:
        """Run all. `ended(stage)` is told of each that is done, and may give a line to show.

        Raises UserError with the end of the log of a stage that failed; the others are called off then.
        """
        self.log.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            with Words(self.total) as words:
                while waiting := [stage for stage in self.stages.values() if not stage.done]:
                    self.start(waiting)
                    self.collect(waiting, ended, words)
                    running = [stage.name for stage in waiting if stage.process and not stage.done]
                    now = time.monotonic()
                    words.show(self.total - remaining(self.stages.values(), self.lanes, now), running)
                    time.sleep(POLL)
        finally:
            self.call_off()
            signal.signal(signal.SIGTERM, before)

    def start(self, waiting: Sequence[Stage]) -> None:
        """Fill the free lanes with stages that have all they need."""
        free = self.lanes - sum(stage.process is not None for stage in waiting)
        for stage in ready(waiting)[: max(0, free)]:
            path = self.log / f"{stage.name.replace(' ', '-')}.txt"
            write_file(path, command_line(["python", *stage.words]) + "\n")
            stage.process = self.context.Process(target=run_command, args=(self.root, stage.words, path))
            stage.started = time.monotonic()
            stage.process.start()

    def collect(self, waiting: Sequence[Stage], ended: Callable[[Stage], str | None], words: Words) -> None:
        """Take note of the stages that have ended. Raises UserError for a failure."""
        for stage in waiting:
            if stage.process is None or stage.process.exitcode is None:
                continue
            if stage.process.exitcode != 0:
                path = self.log / f"{stage.name.replace(' ', '-')}.txt"
                lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = (lines[1:] or ["no output"])[-1]
                raise UserError(f"stopped while it wanted to {stage.name}: {last} (all of it: {path})")
            stage.done, stage.process = True, None
            if line := ended(stage):
                words.say(line)

    def call_off(self) -> None:
        """End what still runs: a training saves its state and leaves, so that the same command goes on with it."""
        running = [stage.process for stage in self.stages.values() if stage.process and stage.process.exitcode is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in running:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                process.kill()


def interrupt(*_: object) -> None:
    """SIGTERM is taken as Ctrl-C."""
    raise KeyboardInterrupt


def run_command(root: Path, words: list[str], log: Path) -> None:
    """In a process of its own: a script of the project as `python SCRIPT ...` runs it, with its output in a file."""
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    os.chdir(root)
    sys.argv = list(words)
    module = import_module(words[0].removesuffix(".py").replace("/", "."))
    try:
        run(module.main, words[1:])
    except SystemExit as end:
        if not end.code:
            spent = os.times()
            seconds = spent.user + spent.system + spent.children_user + spent.children_system
            print(f"{seconds:.1f} seconds of one core")  # noqa: T201
        raise


def ready(waiting: Sequence[Stage]) -> list[Stage]:
    """Stages that can start, those with the longest way to the end first."""
    open_names = {stage.name for stage in waiting}
    free = [stage for stage in waiting if stage.process is None and not open_names & set(stage.after)]
    ways = longest_ways(waiting)
    return sorted(free, key=lambda stage: -ways[stage.name])


def longest_ways(stages: Sequence[Stage]) -> dict[str, float]:
    """Seconds from the start of each stage to the end of the last that waits for it. Raises UserError for a circle."""
    ways: dict[str, float] = {}
    while len(ways) < len(stages):
        left = [stage for stage in stages if stage.name not in ways]
        last = [stage for stage in left if not any(stage.name in other.after for other in left)]
        if not last:
            raise UserError(f"these stages wait for each other: {', '.join(stage.name for stage in left)}")
        for stage in last:
            ways[stage.name] = stage.seconds + max((ways[s.name] for s in stages if stage.name in s.after), default=0.0)
    return ways


def remaining(stages: Sequence[Stage], lanes: int, now: float) -> float:
    """Seconds until all is done if every stage takes what its table says: the schedule, played through."""
    stages = [stage for stage in stages if not stage.done]
    left = {stage.name: stage.seconds * (1 - stage.share(now)) for stage in stages}
    running = [stage.name for stage in stages if stage.process is not None]
    ways, clock = longest_ways(stages), 0.0
    while left:
        free = [s for s in stages if s.name in left and s.name not in running and not set(s.after) & set(left)]
        free = sorted(free, key=lambda stage: -ways[stage.name])[: max(0, lanes - len(running))]
        running += [stage.name for stage in free]
        first = min(running, key=left.__getitem__)
        step = left[first]
        clock += step
        for name in running:
            left[name] -= step
        running.remove(first)
        del left[first]
    return clock


class Words:
    """What the user sees: one bar with the time left, or a line every now and then where there is no terminal."""

    def __init__(self, total: float) -> None:
        self.total, self.started, self.said = max(total, 1e-9), time.monotonic(), 0.0
        self.bar = tqdm(
            total=100, bar_format="{percentage:3.0f} % |{bar}| {desc}", dynamic_ncols=True, leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, done: float, running: Sequence[str]) -> None:
        """`done` of the seconds in all are behind us."""
        elapsed = time.monotonic() - self.started
        pace = (elapsed + 20) / (max(done, 0.0) + 20)  # of this machine; at first as the table says
        left = round(pace * (self.total - done))
        text = f"{left // 60}:{left % 60:02} left, {' and '.join(running) or 'last touches'}"
        share = 100 * done / self.total
        if not self.bar.disable:
            self.bar.n = max(self.bar.n, min(99.0, share))
            self.bar.set_description_str(text)
        elif elapsed - self.said >= WORD_EVERY or not self.said:
            self.said = max(elapsed, 1e-9)
            print(f"{share:3.0f} %, {text}", flush=True)  # noqa: T201

    def say(self, line: str) -> None:
        """A line that stays."""
        self.bar.write(line) if not self.bar.disable else print(line, flush=True)  # noqa: T201
