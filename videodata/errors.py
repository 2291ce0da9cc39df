"""Errors that a user can cause: each message is one line that says what is wrong and what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A problem outside the code: a bad file, flag or environment. Scripts print its one line and exit with 2."""


class VideoError(UserError):
    """A video, frame folder or array that cannot be read, or cannot be read as asked."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:  # so that it survives the trip from a worker process
        return type(self), (self.path, self.reason)


def in_one_line(error: BaseException) -> str:
    """What an error of a library says, shortened; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes to `path`, into a UserError."""
    try:
        yield
    except OSError as error:
        number = _number(error)
        reason, remedy = ("no room left", "free some space") if number in FULL else ("cannot be written", "mend that")
        said = os.strerror(number) if number else str(error).splitlines()[0]
        raise UserError(
            f"{path}: {reason} ({said}); {remedy} and run the same command again: it continues where it stopped"
        ) from error


def _number(error: OSError) -> int | None:
    """The error number; HDF5 hides it in its message."""
    hidden = re.search(r"errno = (\d+)", str(error))
    return int(hidden[1]) if hidden else error.errno
