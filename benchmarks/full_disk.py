"""Commands on a real disk of 20 MB that is nearly full, or fills up meanwhile; then there is room, and they run again.

A command may refuse, with one line that says why and a status other than 0, or do all of its work. Nothing that bears a
final name may be half-written. The run after it gives the bytes of an undisturbed one. Needs the right to mount.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.faults.commands import KINDS, Workshop, compared, contents, preload, read_commands, torn_files, watch
from training.cli import make_parser, positive_int, seed_number

MEGABYTES = 20
SAID = ("No space left", "free space", "free some space", "free disk space", "are free at")
NEVER_SAID = ("Traceback", "Exception ignored", "HDF5-DIAG", "Bus error", "Segmentation fault")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own at the folder. Raises SystemExit where it cannot be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(folder)]
    told = subprocess.run(mount, capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"{folder}: cannot be mounted ({told.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, left: int = 0) -> None:
    """Write a file that takes all but `left` bytes."""
    state = os.statvfs(disk)
    free = state.f_bavail * state.f_frsize
    with open(disk / "ballast", "ab") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), file.tell(), max(1, free - left))


def run_to_a_full_disk(shop: Workshop, name: str, disk: Path, share: float | None, moment: float) -> ForkProcess:
    """Run the command with room for a share of what it writes, or, for None, on a disk that fills at a moment."""
    folder, command = disk / "work", shop.commands[name]
    shop.lay_out(name, folder)
    if share is not None:
        fill(disk, int(share * shop.bytes_written(name)))
    process = command.start(folder, shop.log(name))
    if share is None:
        watch(process, moment)
        fill(disk)
    process.join()
    return process


def try_once(shop: Workshop, name: str, disk: Path, share: float | None, moment: float) -> tuple[list[str], bool]:
    """What is wrong with the command on a full disk and afterwards, and whether it ended with a refusal."""
    folder, log = disk / "work", shop.log(name)
    whole = contents(shop.undisturbed(name))
    log.write_text("")
    process = run_to_a_full_disk(shop, name, disk, share, moment)
    text, found = log.read_text(), []
    found += [f"says {words!r}" for words in NEVER_SAID if words in text]
    if process.exitcode == 0:
        found += [f"status 0, but {line}" for line in compared(whole, contents(folder))]
    else:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        if process.exitcode < 0 or len(errors) != 1 or not any(words in errors[0] for words in SAID):
            found.append(f"status {process.exitcode}, says {errors or text.splitlines()[-1:]}")
    found += torn_files(folder, whole)
    (disk / "ballast").unlink()
    again = shop.commands[name].start(folder, log)
    again.join()
    if again.exitcode:
        found.append(f"with room again: status {again.exitcode}, says {log.read_text().splitlines()[-2:]}")
    else:
        found += [f"with room again: {line}" for line in compared(whole, contents(folder))]
    return found, process.exitcode != 0


def main() -> int:
    """Print a line for each command; exit status 1 when there is a finding."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--levels", type=positive_int, default=4, help="shares of its bytes that a command has room for"
    )
    parser.add_argument("--moments", type=positive_int, default=4, help="at which the disk fills up")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of commands")
    parser.add_argument("--only", nargs="+", choices=list(read_commands()), metavar="NAME", help="commands")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the moments")
    args = parser.parse_args()
    preload()
    failed, runs, begin = [], 0, time.monotonic()
    shares = [*(level / args.levels for level in range(args.levels)), *([None] * args.moments)]
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        for name in args.only or [n for n, command in shop.commands.items() if command.kind in args.kinds]:
            shop.undisturbed(name)
            draws, found, refused = random.Random(f"{args.seed} {name}"), [], 0
            for share in shares:
                when = "filling up" if share is None else f"room for {share:.0%}"
                with small_disk(Path(folder, "disk", str(runs))) as disk:
                    lines, refusal = try_once(shop, name, disk, share, draws.uniform(0, shop.seconds[name]))
                found += [f"{when}: {line}" for line in lines]
                runs, refused = runs + 1, refused + refusal
            print(
                f"{shop.commands[name].kind:9} {name:20} {len(shares)} runs, {refused} refused, {len(found)} findings"
            )
            print("".join(f"    {line}\n" for line in found), end="", flush=True)
            failed += [name] if found else []
    print(f"{runs} runs in {time.monotonic() - begin:.0f} s; {len(failed)} commands with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
