"""Feed damaged files of every kind to the project's readers, and odd numbers to every flag of its scripts.

A reader may give a right result, or refuse with a VideoError, UserError or VVAEError of one line. Findings are: any
other error, a process that dies, more time or memory than the limits, files that are left behind, items that are lost
without a word, and readers that disagree. A case is a function of its kind and number alone: `--case mp4:17`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import itertools
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_data import KINDS, OUTPUTS, Seed  # noqa: E402
from benchmarks.fuzz_models import MODEL_KINDS  # noqa: E402
from benchmarks.fuzz_mutations import mutate  # noqa: E402
from training.cli import nonnegative_int, positive_float, positive_int  # noqa: E402
from videodata.errors import UserError  # noqa: E402
from vvae.src.errors import CheckpointError, VVAEError  # noqa: E402

FLAGS = "flags"  # the kind that has no files
ALL = {**KINDS, **MODEL_KINDS}
VALUES = ("-1", "0", "1", "nan", "inf", "-inf", "1e309", "9" * 30, "", "text", "0.5", "1e-400", "0x10", "²")
EXPECTED = (UserError, VVAEError)
INDEX = ".videodata-index.json"
PATIENCE = 5  # seconds beyond the limit, after which a process that does not even tell where it hangs is killed
CUT = ("truncate",)  # mutations after which fewer items than before must be said


@dataclass(frozen=True)
class Limits:
    """What one case may take."""

    seconds: float = 20.0
    megabytes: int = 1500  # above what the process had at its start


@dataclass
class Result:
    """How a case ended; `where` and `what` tell findings apart."""

    kind: str
    number: int
    outcome: str  # right, refused or finding
    where: str = ""
    what: str = ""
    details: str = ""
    size: int = 0  # bytes of the damaged file
    folder: Path | None = None

    @property
    def case(self) -> str:
        return f"{self.kind}:{self.number}"


@cache
def seeds_of(kind: str) -> list[Seed]:
    """The valid files of a kind, made once in a process."""
    return ALL[kind]()


@cache
def items_of(kind: str, number: int) -> list[int | None]:
    """What the readers of a seed count in the file as it is. Raises what they raise: then the seed is wrong."""
    seed = seeds_of(kind)[number]
    with tempfile.TemporaryDirectory() as name:
        return [
            read(written(Path(name, str(place)), seed.files, seed.target)) for place, read in enumerate(seed.readers)
        ]


def written(folder: Path, files: dict[str, bytes], target: str) -> Path:
    """Write files into a folder; gives the path of one of them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / target


def run_case(kind: str, number: int, folder: Path, limits: Limits) -> Result:
    """Make the case, let the readers have it, and judge what they say."""
    rng = random.Random(f"{kind}:{number}")
    if kind == FLAGS:
        return judge_flag(number)
    seeds = seeds_of(kind)
    if not seeds:
        return Result(kind, number, "right")
    which = rng.randrange(len(seeds))
    seed, others = seeds[which], KINDS[rng.choice(sorted(KINDS))]()
    other = rng.choice(others).files if others else {"": b""}
    name, content, done = mutate(seed.target, seed.files[seed.target], rng, next(iter(other.values())))
    files = {**{key: value for key, value in seed.files.items() if key != seed.target}, name: content}
    expected = items_of(kind, which) if done == list(CUT) and not seed.torn_is_valid else [None] * len(seed.readers)
    outcomes = []
    for place, (read, items) in enumerate(zip(seed.readers, expected, strict=True)):
        own = folder / str(place)  # each reader has files that none has touched
        outcome = judge(read, written(own, files, name), own, items, limits)
        if outcome.outcome == "finding":
            details = f"seed {which} of {kind}, {seed.target}; {', '.join(done)}\n{outcome.details}"
            return Result(kind, number, "finding", outcome.where, outcome.what, details, len(content), own)
        outcomes.append(outcome.outcome)
        shutil.rmtree(own)
    return Result(kind, number, "refused" if "refused" in outcomes else "right")


@dataclass
class Outcome:
    outcome: str
    where: str = ""
    what: str = ""
    details: str = ""


class Heard(logging.Handler):
    """What was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def judge(read: Callable[[Path], Any], path: Path, folder: Path, items: int | None, limits: Limits) -> Outcome:
    """Let one reader have the file. items: how many there are in it, where fewer must be said."""
    before, heard = set(folder.rglob("*")), Heard()
    name = getattr(read, "__name__", "")
    logging.getLogger().addHandler(heard)
    forget_peak()
    try:
        found = read(path)
    except EXPECTED as error:
        found, said = None, str(error)
        if "\n" in said and not isinstance(error, CheckpointError):
            return Outcome("finding", place_of(error), "message of several lines", said)
    except Exception as error:  # noqa: BLE001
        reason = type(error).__name__
        said = f": {error}" if reason == "Disagreement" else ""
        return Outcome("finding", place_of(error), reason + said, traceback.format_exc())
    else:
        said = ""
    finally:
        logging.getLogger().removeHandler(heard)
    peak = peak_megabytes()
    if peak > limits.megabytes:
        return Outcome("finding", name, "memory", f"{peak:.0f} MB above the start\n{said}")
    if found is not None and items is not None and found < items and not heard.lines:
        return Outcome("finding", name, "fewer items without a word", f"{found} of {items}")
    left = [entry for entry in set(folder.rglob("*")) - before if not is_output(entry.relative_to(folder), said)]
    if left:
        return Outcome("finding", name, "files left behind", f"{sorted(map(str, left))}\n{said}")
    return Outcome("refused" if said else "right", details=said)


def is_output(path: Path, said: str) -> bool:
    """Whether a reader may leave this: its output, whole, or where it says so what the next run continues with."""
    if path.name == INDEX:
        return True
    return path.parts[0] in OUTPUTS and (".partial" not in path.as_posix() or "kept for the next run" in said)


def place_of(error: BaseException) -> str:
    """file:function of the project in which an error arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_ours(frame.filename)]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}" if frames else "outside"


def is_ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in ("benchmarks", "tests", ".venv")


_start = 0.0  # megabytes of this process before its first case


def memory_line(name: str) -> float:
    """A line of /proc/self/status, in megabytes."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1000


def forget_peak() -> None:
    """Let the kernel measure the peak anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """How far the resident memory was above that of the start."""
    return memory_line("VmHWM") - _start


@cache
def flag_cases() -> list[tuple[str, tuple[str, ...], list[str], str]]:
    """(script, words before, the flag with its dashes or none for a positional one, value) of every typed argument."""
    found = []
    scripts = ["main", "prepare_ucf101", *(f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("*.py")))]
    for script in scripts:
        for words, action in typed_arguments(parser_of(script), ()):
            flag = [max(action.option_strings, key=len)] if action.option_strings else []
            found += [(script, words, flag, value) for value in VALUES]
    return found


@cache
def parser_of(script: str) -> argparse.ArgumentParser:
    return import_module(script).build_parser()


def typed_arguments(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[tuple, argparse.Action]]:
    """Arguments that are more than a text, with the words that a command line needs before them."""
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in commands:
        for name, command in action.choices.items():
            yield from typed_arguments(command, (*words, *required(parser, action), name))
    if not commands:
        for action in parser._actions:
            if action.type not in (None, str, Path):
                yield (*words, *required(parser, action)), action


def required(parser: argparse.ArgumentParser, but: argparse.Action) -> list[str]:
    """Words for the arguments that a parser cannot do without, other than `but`."""
    words = []
    for action in parser._actions:
        if action.required and action is not but and action.nargs not in ("*", argparse.PARSER):
            value = str(next(iter(action.choices))) if action.choices else "1"
            flag = [max(action.option_strings, key=len)] if action.option_strings else []
            words += flag + [value] * (action.nargs if isinstance(action.nargs, int) else 1)
    return words


def judge_flag(number: int) -> Result:
    """Give a value to a flag: the parser takes it, or ends with status 2 and one line."""
    script, words, flag, value = flag_cases()[number % len(flag_cases())]
    given = [f"{flag[0]}={value}"] if flag else [value]
    errors = io.StringIO()
    where, details = f"{script} {' '.join(flag)}", f"{script} {' '.join(words)} {' '.join(given)}"
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            parser_of(script).parse_args([*words, *given])
    except SystemExit as stop:
        lines = errors.getvalue().splitlines()
        if stop.code == 2 and len(lines) == 1:
            return Result(FLAGS, number, "refused")
        return Result(FLAGS, number, "finding", where, f"status {stop.code}, {len(lines)} lines", details)
    except UserError:
        return Result(FLAGS, number, "refused")
    except Exception as error:  # noqa: BLE001
        details += f"\n{traceback.format_exc()}"
        return Result(FLAGS, number, "finding", where, type(error).__name__, details)
    return Result(FLAGS, number, "right")


def serve(connection: Any, scratch: Path, limits: Limits) -> None:
    """The loop of a worker process: cases come in, results go out; a limit ends the process and says where it was."""
    global _start
    log = open(scratch / "log", "wb", buffering=0)  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    faulthandler.enable()
    tempfile.tempdir = str(scratch / "temporary")
    warnings.simplefilter("ignore")
    logging.getLogger("libav").disabled = True
    _start = memory_line("VmRSS")
    most = int((memory_line("VmSize") + 3 * limits.megabytes) * 1e6)  # a wall behind the limit that is measured
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (case := connection.recv()) is not None:
        log.truncate(0)
        os.lseek(log.fileno(), 0, os.SEEK_SET)
        for folder in ("case", "temporary"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
            (scratch / folder).mkdir()
        faulthandler.dump_traceback_later(limits.seconds, exit=True)
        result = run_case(*case, scratch / "case" / str(case[1]), limits)
        faulthandler.cancel_dump_traceback_later()
        connection.send(result)


class Worker:
    """A process that runs one case at a time, and is replaced when it dies or hangs."""

    def __init__(self, scratch: Path, limits: Limits) -> None:
        self.scratch, self.limits = scratch, limits
        self.case: tuple[str, int] | None = None
        scratch.mkdir()
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("fork")  # what was imported is there at once, torch among it
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.scratch, self.limits), daemon=True)
        self.process.start()
        other.close()

    def start(self, case: tuple[str, int]) -> None:
        self.case, self.since = case, time.monotonic()
        self.connection.send(case)

    def result(self) -> Result | None:
        """The result of the case; None while it runs. A process that died, or has to be killed, is a finding."""
        kind, number = self.case
        result = None
        if self.connection.poll():
            with contextlib.suppress(EOFError, ConnectionError):
                result = self.connection.recv()
            if result is None:
                self.process.join()
                result = self._died(Result(kind, number, "finding"), self.process.exitcode)
        elif time.monotonic() - self.since > self.limits.seconds + PATIENCE:
            self.process.kill()
            self.process.join()
            result = self._died(Result(kind, number, "finding"), None)
        self.case = None if result is not None else self.case
        return result

    def _died(self, result: Result, status: int | None) -> Result:
        """What the log says of the end of the process; begins another one."""
        result.details = (self.scratch / "log").read_text(errors="replace")[-6000:]
        hung = status is None or "Timeout (" in result.details
        result.what = "hang" if hung else f"the process died, status {status}"
        frames = [
            match for match in re.finditer(r'File "(.+)", line \d+ in (\S+)', result.details) if is_ours(match[1])
        ]
        result.where = f"{Path(frames[0][1]).relative_to(ROOT)}:{frames[0][2]}" if frames else "unknown"
        result.folder = next(iter((self.scratch / "case").glob("*/*")), None)
        result.size = sum(entry.stat().st_size for entry in result.folder.rglob("*")) if result.folder else 0
        self.connection.close()
        self._begin()
        return result

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def results_of(cases: Iterable[tuple[str, int]], workers: list[Worker]) -> Iterator[Result]:
    """Run the cases in the workers."""
    cases = iter(cases)
    while True:
        for worker in workers:
            if worker.case is None and (case := next(cases, None)) is not None:
                worker.start(case)
        busy = [worker for worker in workers if worker.case is not None]
        if not busy:
            return
        wait([worker.connection for worker in busy], timeout=1)
        for worker in busy:
            if (result := worker.result()) is not None:
                yield result


@dataclass
class Findings:
    """The distinct findings, each with its smallest file, which lies in a folder of its own."""

    out: Path
    best: dict[tuple[str, str], Result] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        key = result.where, result.what
        self.counts[key] += 1
        known = self.best.get(key)
        if known is not None and known.size <= result.size:
            return
        if known is not None:
            shutil.rmtree(self._place(known))
        self.best[key], place = result, self._place(result)
        shutil.rmtree(place, ignore_errors=True)
        if result.folder is not None and result.folder.is_dir():
            shutil.copytree(result.folder, place, symlinks=True)
        place.mkdir(parents=True, exist_ok=True)
        (place / "finding.txt").write_text(f"{result.case}\n{result.what}\n{result.where}\n{result.details}\n")

    def _place(self, result: Result) -> Path:
        return self.out / result.case.replace(":", "-")


def fuzz(kind: str, numbers: Iterable[int], seconds: float, workers: list[Worker], findings: Findings) -> list[str]:
    """Run the cases of a kind until its time is over; gives its row of the table."""
    counts, begin, before = Counter(), time.monotonic(), len(findings.best)
    in_time = itertools.takewhile(lambda _: time.monotonic() - begin < seconds, numbers)
    with tqdm(desc=kind, unit="case", disable=None, leave=False) as bar:
        for result in results_of(((kind, number) for number in in_time), workers):
            counts[result.outcome] += 1
            if result.outcome == "finding":
                findings.add(result)
            bar.update()
    took = time.monotonic() - begin
    distinct = f"{counts['finding']} ({len(findings.best) - before} new)" if counts["finding"] else "0"
    rate = f"{60 * counts.total() / max(took, 1e-9):.0f}"
    return [kind, str(counts.total()), str(counts["right"]), str(counts["refused"]), distinct, f"{took:.1f}", rate]


def build_parser() -> argparse.ArgumentParser:
    kinds = (*ALL, FLAGS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=positive_float, default=5.0, help="for all kinds together, in equal shares")
    add("--seed", type=nonnegative_int, default=0, help="number of the first case of each kind")
    add("--kinds", nargs="+", choices=kinds, default=kinds, metavar="KIND", help=f"of {', '.join(kinds)}")
    add("--cases", type=positive_int, help="of each kind, at most (default: what the time allows)")
    add("--case", nargs="+", metavar="KIND:NUMBER", help="run these cases alone, and tell all of each")
    add("--workers", type=positive_int, default=1, help="processes that read")
    add("--seconds", type=positive_float, default=Limits.seconds, help="of a case, at most")
    add("--megabytes", type=positive_int, default=Limits.megabytes, help="of a case, at most")
    add("--out", type=Path, default=Path("runs/fuzz"), help="folder for the smallest input of each finding")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when there are findings."""
    args = build_parser().parse_args(argv)
    limits, findings = Limits(args.seconds, args.megabytes), Findings(args.out)
    rows = [["kind", "cases", "right", "refused", "findings", "seconds", "per minute"]]
    tqdm.monitor_interval = 0  # its thread would be copied into the workers
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        workers = [Worker(Path(scratch, str(number)), limits) for number in range(args.workers)]
        for worker in workers:
            stack.callback(worker.close)
        if args.case:
            cases = [(kind, int(number)) for kind, _, number in (case.partition(":") for case in args.case)]
            for result in results_of(cases, workers):
                print(result.case, result.outcome, result.where, result.what, result.details, sep="\n")
                findings.counts[result.outcome] += result.outcome == "finding"
            return 1 if findings.counts.total() else 0
        last = args.seed + args.cases if args.cases else sys.maxsize
        for kind in args.kinds:
            share = 60 * args.minutes / len(args.kinds)
            rows.append(fuzz(kind, range(args.seed, last), share, workers, findings))
    for row in rows:
        print("".join(cell.rjust(14) if place else cell.ljust(12) for place, cell in enumerate(row)))
    for (where, what), result in sorted(findings.best.items()):
        print(f"{findings.counts[where, what]:5d}  {where}  {what}  --case {result.case}  ({result.size} bytes)")
    return 1 if findings.best else 0


if __name__ == "__main__":
    sys.exit(main())
