"""What every script shares: one-line errors, exit statuses, --debug and logging."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from training.distributed import teardown
from training.explain import exit_status, explain


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
