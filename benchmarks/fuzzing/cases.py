"""One case: a damaged file, the readers that get it, and what is made of their answers; or a flag and its value."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.data import KINDS, OUTPUTS, Seed
from benchmarks.fuzzing.models import MODEL_KINDS
from benchmarks.fuzzing.mutations import mutate, truncate
from videodata.errors import UserError
from vvae.src.errors import CheckpointError, VVAEError

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "flags"  # the kind that has no files
ALL = {**KINDS, **MODEL_KINDS}
VALUES = ("-1", "0", "1", "nan", "inf", "-inf", "1e309", "9" * 30, "", "text", "0.5", "1e-400", "0x10", "²")
EXPECTED = (UserError, VVAEError)
INDEX = ".videodata-index.json"


@dataclass(frozen=True)
class Limits:
    """What one case may take."""

    seconds: float = 20.0  # of the processor; of the clock PATIENCE times as much
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
    """What the readers of a seed count in the file as it is; None for one that is to be refused as it is."""
    seed, counts = seeds_of(kind)[number], []
    with tempfile.TemporaryDirectory() as name:
        for place, read in enumerate(seed.readers):
            counts.append(None)
            with contextlib.suppress(*EXPECTED):
                counts[-1] = read(written(Path(name, str(place)), seed.files, seed.target))
    return counts


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
    seed, others = seeds[which], seeds_of(rng.choice(sorted(KINDS)))
    other = rng.choice(others).files if others else {"": b""}
    name, content, done = mutate(seed.target, seed.files[seed.target], rng, next(iter(other.values())))
    files = {**{key: value for key, value in seed.files.items() if key != seed.target}, name: content}
    torn = done == [truncate.__name__] and not seed.torn_is_valid
    expected = items_of(kind, which) if torn else [None] * len(seed.readers)
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
    start = forget_peak()
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
    peak = memory_line("VmHWM") - start
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


def memory_line(name: str) -> float:
    """A line of /proc/self/status, in megabytes."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1000


def forget_peak() -> float:
    """Let the kernel measure the peak of the resident memory anew; gives what there is now, in megabytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory_line("VmRSS")


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
