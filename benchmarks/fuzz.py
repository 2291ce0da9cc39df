"""Feed damaged files of every kind to the project's readers, and odd numbers to every flag of its scripts.

A reader may give a right result, or refuse with a VideoError, UserError or VVAEError of one line. Findings are: any
other error, a process that dies, more time or memory than the limits, files that are left behind, items that are lost
without a word, and readers that disagree. A case is a function of its kind and number alone: `--case mp4:17`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzzing.cases import ALL, FLAGS, Limits, Result, is_ours, memory_line, run_case  # noqa: E402
from training.cli import nonnegative_int, positive_float, positive_int  # noqa: E402

PATIENCE = 10  # times the limit that a case may wait for a processor or a disk, which the machine may owe it
TELLING = 2.0  # seconds in which a process that hangs writes down where


def serve(connection: Any, others_end: Any, scratch: Path, limits: Limits) -> None:
    """The loop of a worker process: cases come in, results go out. It ends when the process that sends them does."""
    others_end.close()  # the copy of this process, which would keep the pipe open for ever
    log = open(scratch / "log", "wb", buffering=0)  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)
    tempfile.tempdir = str(scratch / "temporary")
    warnings.simplefilter("ignore")
    logging.getLogger("libav").disabled = True
    most = int((memory_line("VmSize") + 3 * limits.megabytes) * 1e6)  # a wall behind the limit that is measured
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        log.truncate(0)
        os.lseek(log.fileno(), 0, os.SEEK_SET)
        for folder in ("case", "temporary"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
            (scratch / folder).mkdir()
        connection.send(run_case(*case, scratch / "case" / str(case[1]), limits))


def processor_seconds(process: int) -> float:
    """What a process has had of the processor."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        ends = other, self.connection
        self.process = context.Process(target=serve, args=(*ends, self.scratch, self.limits), daemon=True)
        self.process.start()
        other.close()
        self.before: deque[int] = deque(maxlen=50)  # memory that one case corrupts may end the process in a later one

    def start(self, case: tuple[str, int]) -> None:
        self.case, self.since, self.used = case, time.monotonic(), processor_seconds(self.process.pid)
        self.before.append(case[1])
        self.connection.send(case)

    def result(self) -> Result | None:
        """The result of the case; None while it runs. A process that died, or has to be killed, is a finding."""
        result = None
        if self.connection.poll():
            try:
                result = self.connection.recv()
            except (EOFError, ConnectionError):
                self.process.join()
                result = self._ended(f"the process died, status {self.process.exitcode}")
        elif self._hangs():
            os.kill(self.process.pid, signal.SIGUSR1)
            self.process.join(TELLING)
            result = self._ended("hang")
        self.case = None if result is not None else self.case
        return result

    def _hangs(self) -> bool:
        limit = self.limits.seconds
        if time.monotonic() - self.since < limit:
            return False
        used = processor_seconds(self.process.pid) - self.used
        return used > limit or time.monotonic() - self.since > PATIENCE * limit

    def _ended(self, what: str) -> Result:
        """What the log says of the end of the process; begins another one."""
        self.close()
        folder = next(iter((self.scratch / "case").glob("*/*")), None)
        size = sum(entry.stat().st_size for entry in folder.rglob("*")) if folder else 0
        details = (self.scratch / "log").read_text(errors="replace")[:6000]
        frames = [match for match in re.finditer(r'File "(.+)", line \d+ in (\S+)', details) if is_ours(match[1])]
        where = f"{Path(frames[0][1]).relative_to(ROOT)}:{frames[0][2]}" if frames else "unknown"
        details += f"\ncases of this process: {', '.join(map(str, self.before))}"
        self.connection.close()
        self._begin()
        return Result(*self.case, "finding", where, what, details, size, folder)

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


def print_row(cells: list[str]) -> None:
    print("".join(cell.rjust(14) if place else cell.ljust(12) for place, cell in enumerate(cells)), flush=True)


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
    add("--seconds", type=positive_float, default=Limits.seconds, help="of the processor for a case, at most")
    add("--megabytes", type=positive_int, default=Limits.megabytes, help="of a case, at most")
    add("--out", type=Path, default=Path("runs/fuzz"), help="folder for the smallest input of each finding")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when there are findings."""
    args = build_parser().parse_args(argv)
    limits, findings = Limits(args.seconds, args.megabytes), Findings(args.out)
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
        print_row(["kind", "cases", "right", "refused", "findings", "seconds", "per minute"])
        for kind in args.kinds:
            share = 60 * args.minutes / len(args.kinds)
            print_row(fuzz(kind, range(args.seed, last), share, workers, findings))
    for (where, what), result in sorted(findings.best.items()):
        print(f"{findings.counts[where, what]:5d}  {where}  {what}  --case {result.case}  ({result.size} bytes)")
    return 1 if findings.best else 0


if __name__ == "__main__":
    sys.exit(main())
