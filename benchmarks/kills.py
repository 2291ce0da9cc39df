"""Kill commands with SIGKILL at random moments, run each again, and compare all that it has written with an undisturbed
run, byte by byte.

Every command of benchmarks/faults/commands.yaml, which preparing, training, encoding and evaluating have. The moments
are uniform over the CPU time of an undisturbed run. After a kill, files with a final name must be whole; then the same
command runs again, to be killed again or, as a coin says, to come to its end.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.faults.commands import (
    KINDS,
    Workshop,
    compared,
    contents,
    files_below,
    is_unfinished,
    preload,
    read_commands,
    torn_files,
    watch,
)
from training.cli import make_parser, nonnegative_int, seed_number

PAUSE = 0.005  # seconds


@dataclass
class Tally:
    """What became of one command."""

    kills: int = 0
    results: int = 0  # that were compared
    left: int = 0  # unfinished files beside results
    findings: list[str] = field(default_factory=list)


def stress(shop: Workshop, name: str, kills: int, draws: random.Random) -> Tally:
    """Kill a command so many times; whenever it has come to its end, compare, and begin with an empty folder."""
    command, log = shop.commands[name], shop.log(name)
    straight = shop.undisturbed(name)
    whole, seconds = contents(straight), shop.seconds[name]
    folder, tally = shop.folder / "killed", Tally()
    command.run(straight, log)  # once more: it finds its own results, and changes none
    compare(whole, straight, tally, "when it is run twice")
    while tally.kills < kills:
        shop.lay_out(name, folder)
        ends = False
        while not ends:
            ends = tally.kills == kills or (tally.kills > 0 and draws.random() < 0.5)
            process = command.start(folder, log)
            watch(process, math.inf if ends else draws.uniform(0, seconds))
            process.join(0 if not ends else None)
            if process.exitcode is None:
                time.sleep(draws.uniform(0, PAUSE))  # it may wait for the disk now
                process.kill()
                process.join()
                tally.kills += 1
                tally.findings += [f"after kill {tally.kills}: {torn}" for torn in torn_files(folder, whole)]
            else:
                command.check(process, log)
                ends = True
        tally.results += 1
        compare(whole, folder, tally, f"after {tally.kills} kills")
    shutil.rmtree(folder, ignore_errors=True)
    return tally


def compare(whole: dict[str, str], folder: Path, tally: Tally, when: str) -> None:
    """Note how a folder differs from the undisturbed one."""
    tally.left += sum(is_unfinished(path) for path in files_below(folder))
    tally.findings += [f"{when}: {line}" for line in compared(whole, contents(folder))]


def main() -> int:
    """Print a line for each command; exit status 1 when something differs."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--kills", type=nonnegative_int, default=50, help="SIGKILLs of each command")
    parser.add_argument("--kinds", nargs="+", choices=KINDS[:-1], default=KINDS[:-1], help="of commands")
    parser.add_argument("--only", nargs="+", choices=list(read_commands()), metavar="NAME", help="commands")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder that stays (default: a temporary one)")
    args = parser.parse_args()
    preload()
    failed, total, begin = [], Tally(), time.monotonic()
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shop = Workshop(work.resolve())
        for name in args.only or [n for n, command in shop.commands.items() if command.kind in args.kinds]:
            start = time.monotonic()
            tally = stress(shop, name, args.kills, random.Random(f"{args.seed} {name}"))
            total.kills, total.results = total.kills + tally.kills, total.results + tally.results
            print(
                f"{shop.commands[name].kind:9} {name:20} {tally.kills} kills, {tally.results} results, "
                f"{len(tally.findings)} findings, {tally.left} unfinished files left; undisturbed "
                f"{shop.seconds[name]:.2f} s of CPU, all {time.monotonic() - start:.0f} s",
                flush=True,
            )
            for finding in tally.findings[:10]:
                print(f"    {finding}", flush=True)
            failed += [name] if tally.findings else []
    print(
        f"{total.kills} kills, {total.results} results in {time.monotonic() - begin:.0f} s; {len(failed)} commands fail"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
