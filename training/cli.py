"""What every script shares: flags, exit statuses, one line for what can go wrong outside the code, and
torchrun in place of this process.

Nothing here imports torch: a script answers --help before it does.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from videodata.errors import UserError, error_number
from videodata.files import parse_size

REMEDIES = {
    errno.ENOSPC: "free disk space or choose another folder",
    errno.EDQUOT: "free disk space or choose another folder",
    errno.EFBIG: "the file size limit is too low (ulimit -f)",
    errno.EACCES: "check the permissions or choose another path",
    errno.EPERM: "check the permissions or choose another path",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is in the way: check the path",
    errno.EISDIR: "a folder is in the way: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many open files: use fewer --workers or raise ulimit -n",
}
OUT_OF_MEMORY = (  # in the text of errors that have no type of their own
    *("DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
)
LESS_MEMORY = (
    "use a smaller --batch_size or clip size, a larger --accumulation, gradient checkpointing or --precision bf16"
)
WORKER_DIED = "a DataLoader worker died, probably for lack of memory; use fewer --workers or smaller clips"


CHECKPOINTS = ("checkpoint", "ckpt_f")  # flags that take a trained model by its name
DTYPE_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)+")  # lvt-digits


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each default, but for flags that have none or whose help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default in (None, []) or "(default: " in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes --like_this for --like-this and the other way round; --help shows the spelling that was added."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # The text is respelled, not the option registered twice: argparse asks --no-<flag> for how it was spelled.
        spellings = {plain_spelling(name): name for name in self._option_string_actions if name.startswith("--")}
        known = set(self._option_string_actions)
        words, respelled = list(sys.argv[1:] if args is None else args), []
        for position, word in enumerate(words):
            if word == "--":
                respelled += words[position:]
                break
            name, equals, value = word.partition("=")
            if word.startswith("--") and name not in known:
                name = spellings.get(plain_spelling(name), name)
            respelled.append(name + equals + value)
        found, rest = super().parse_known_args(respelled, namespace)
        for name in CHECKPOINTS:
            if isinstance(value := getattr(found, name, None), str | Path):
                setattr(found, name, type(value)(opened(value)))
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def opened(checkpoint: str | Path) -> str | Path:
    """The run folder behind the name or the file of a trained model (training/pretrained.py); else what was given.

    A name is no path: nothing of that name is there, and it has neither folders nor a suffix. Raises UserError.
    """
    path = Path(checkpoint)
    if path.suffix == ".safetensors" or (NAME.fullmatch(str(checkpoint)) and not path.exists()):
        from training import pretrained_folder  # here, after --help: it imports torch

        return pretrained_folder(path)
    return checkpoint


def plain_spelling(flag: str) -> str:
    """The flag with underscores only."""
    return "--" + flag[2:].replace("-", "_")


def make_parser(description: str, **options: Any) -> Parser:
    """The parser of a script: both spellings of every flag, defaults in --help, and --debug."""
    parser = Parser(description=description, formatter_class=HelpFormatter, **options)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (or set VIDEOGEN_DEBUG=1)")
    return parser


OF_NO_INTEREST = 10**8  # as an upper limit
MOST_BYTES = 10**15
LARGEST_INT = 2**31 - 1  # of a count: more is a slip of the finger, and overflows somewhere inside


def dtype_name(text: str) -> str:
    """fp32, fp16 or bf16, also called float32, float16 or bfloat16; for argparse."""
    return DTYPE_NAMES.get(text, text)


def number(kind: type, least: float, most: float | None = None, above: bool = False) -> Callable[[str], Any]:
    """A type for argparse: an int, float or Fraction from `least` to `most`; `above`: `least` itself is too little.

    Neither NaN nor infinite. most: None is LARGEST_INT for int, and no limit for the others.
    """
    most = LARGEST_INT if most is None and kind is int else most
    limits = f"{'above' if above else 'at least'} {least}"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ZeroDivisionError as error:  # a Fraction of "1/0"; a ValueError argparse reports by the type's name
            raise ValueError(text) from error
        if not least <= value <= (math.inf if most is None else most) or (above and value == least):
            # A limit that nobody reaches on purpose is named to those who do.
            named = most is not None and (most < OF_NO_INTEREST or value > most)
            raise argparse.ArgumentTypeError(f"must be {limits}{f' and at most {most}' if named else ''}, found {text}")
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"must be finite, found {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def byte_count(text: str) -> int:
    """A type for argparse: a size such as 1GB, in bytes."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not 1 <= size <= MOST_BYTES:
        raise argparse.ArgumentTypeError(f"must be at least 1 byte and at most 1000TB, found {text}")
    return size


positive_int = number(int, 1)
nonnegative_int = number(int, 0)
positive_float = number(float, 0, above=True)
nonnegative_float = number(float, 0)
fraction = number(float, 0, 1)
positive_fraction = number(float, 0, 1, above=True)
guidance_scale = number(float, 0, 100)  # published models use 1 to 15; far above, pictures are only noise
seed_number = number(int, 0, 2**63 - 1)  # what torch takes
seconds = number(float, 0, 10**8, above=True)  # years: a longer time overflows what counts it
frame_rate = number(Fraction, 0, 100_000, above=True)  # such as 25 or 30000/1001


def add_class_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags of a generator of classes: `class_name`, None for no choice, and `guidance`."""
    text = "what to show, of a model of classes (default: no choice; evaluations ask for each clip's own)"
    parser.add_argument("--class", dest="class_name", metavar="NAME", help=text)
    text = "how far to lead the model to the class: 1 asks it plainly, more shows the class more clearly"
    parser.add_argument("--guidance", type=guidance_scale, default=1.0, metavar="G", help=text)


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Call `main(arguments)` and exit: 0 done, 2 user error in one line on stderr, 3 non-finite training, 130 Ctrl-C.

    `--debug` is understood for every script, anywhere on its command line, and lets errors through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("VIDEOGEN_DEBUG") == "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's code page lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status = main([argument for argument in arguments if argument != "--debug"]) or 0
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()  # on success alone: after an error nobody can wait for the others
        sys.exit(status)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        line = explain(error)
        if debug or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(3 if isinstance(error, NonFiniteAbort) else 2)


@contextmanager
def says_when_stopped(advice: str) -> Iterator[None]:
    """In the block, SIGTERM ends the command with one line, which ends in the advice, and the usual status, 143."""
    if threading.current_thread() is not threading.main_thread():  # which alone may take signals
        yield
        return
    own = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() == own:  # and not a worker that was forked off
            print(f"stopped by SIGTERM; {advice}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command_line(words: Sequence[str]) -> str:
    """A command as a user can paste it: Windows' own shell knows no single quotes."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


class NonFiniteAbort(UserError):
    """Too many non-finite steps in a row; scripts exit with status 3."""


def explain(error: BaseException) -> str | None:
    """One line that says what is wrong and what to do, or None for an error that is a bug and needs its traceback."""
    if isinstance(error, UserError):
        text = " ".join(str(error).split())
        pretrained = sys.modules.get("training.pretrained")  # unless nothing was unpacked
        return pretrained.named(text) if pretrained else text
    if is_out_of_memory(error):
        return f"out of memory: {LESS_MEMORY}"
    if isinstance(error, OSError) and (number := error_number(error)) is not None:
        place = error.filename2 or error.filename  # of a copy or a renaming the second is the one that is written
        remedy = REMEDIES.get(number)
        told = error.strerror or ""
        said = told if told and "\n" not in told else os.strerror(number)  # HDF5 tells a page
        return (f"{place}: " if place else "") + said + (f"; {remedy}" if remedy else "")
    if isinstance(error, RuntimeError):
        return explain_loader(error)
    return None


def remedy_for(error: OSError) -> str:
    """What helps against an error of the disk."""
    return REMEDIES.get(error.errno, "look at the disk or choose another folder")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, the CUDA allocator, CUDA's libraries or torch's CPU allocator ran out of memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def explain_loader(error: BaseException) -> str | None:
    """One line for a loader worker that died or hangs, None for any other error.

    The text is torch's own; it gives these two no type of their own.
    """
    text = str(error)
    if text.startswith("DataLoader timed out"):
        return f"{text.split('.')[0]}: a worker hangs; raise --loader_timeout or look at the storage of the data"
    if text.startswith("DataLoader worker"):
        return f"{text.splitlines()[0].rstrip('. ')}: {WORKER_DIED}"
    return None


def relaunch(
    script: str, arguments: list[str], gpus: int, machines: int = 1, machine: int = 0, dist_url: str = "auto"
) -> None:
    """Replace this process by `torchrun script arguments`; does nothing for one process, or under torchrun already.

    dist_url: tcp://host:port where the machines meet; "auto" for a single machine. Raises UserError.
    """
    if "RANK" in os.environ or gpus * machines == 1:
        return
    if gpus < 1 or machines < 1 or not 0 <= machine < machines:
        raise UserError("--num-gpus and --num-machines must be at least 1, --machine-rank below --num-machines")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus)]
    command += [*_meeting_flags(machines, machine, dist_url), script, *arguments]
    if hasattr(os, "fork"):
        os.execv(sys.executable, command)
    # Windows would begin another process and end this one at once, with status 0. Its torch has no libuv.
    sys.exit(subprocess.run(command, env={"USE_LIBUV": "0", **os.environ}, check=False).returncode)


def _meeting_flags(machines: int, machine: int, dist_url: str) -> list[str]:
    """torchrun's flags for where the processes meet."""
    if dist_url == "auto":
        if machines > 1:
            raise UserError("several machines need --dist-url tcp://<host of machine 0>:<port>")
        return ["--standalone"]
    address = urlsplit(dist_url)
    if address.scheme != "tcp" or not address.hostname or not address.port:
        raise UserError(f"--dist-url {dist_url}: write tcp://<host>:<port>")
    place = ["--master-addr", address.hostname, "--master-port", str(address.port)]
    return ["--nnodes", str(machines), "--node-rank", str(machine), *place]
