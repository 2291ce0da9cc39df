"""What every script shares: flags, exit statuses, and one line for what can go wrong outside the code."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from training.distributed import teardown
from videodata.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds each default, but for flags that have none or whose help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default in (None, []) or "(default: " in (action.help or "")
        return action.help if told else super()._get_help_string(action)


def make_parser(description: str, **options: object) -> argparse.ArgumentParser:
    """An argument parser whose --help shows the defaults and --debug."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, **options)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (or set VIDEOGEN_DEBUG=1)")
    return parser


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Call `main(arguments)` and exit: 0 done, 2 user error in one line on stderr, 3 non-finite training, 130 Ctrl-C.

    `--debug` is understood for every script, anywhere on its command line, and lets errors through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("VIDEOGEN_DEBUG") == "1"
    set_up_logging()
    try:
        status = main([argument for argument in arguments if argument != "--debug"]) or 0
        teardown()  # on success alone: after an error the other processes cannot be waited for
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
        sys.exit(exit_status(error))


def set_up_logging() -> None:
    """Plain lines on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


REMEDIES = {
    errno.ENOSPC: "free disk space or choose another folder",
    errno.EDQUOT: "free disk space or choose another folder",
    errno.EFBIG: "the file size limit is too low (ulimit -f)",
    errno.EACCES: "check the permissions or choose another path",
    errno.EPERM: "check the permissions or choose another path",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "check the path",
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


class NonFiniteAbort(UserError):
    """Too many non-finite steps in a row; scripts exit with status 3."""


def exit_status(error: BaseException) -> int:
    """3 when training was given up because of non-finite numbers, else 2."""
    return 3 if isinstance(error, NonFiniteAbort) else 2


def explain(error: BaseException) -> str | None:
    """One line that says what is wrong and what to do, or None for an error that is a bug and needs its traceback."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"out of memory: {LESS_MEMORY}"
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno)
        return f"{place}{error.strerror}" + (f"; {remedy}" if remedy else "")
    if isinstance(error, RuntimeError):
        return explain_loader(error)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, the CUDA allocator, CUDA's libraries or torch's CPU allocator ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
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
