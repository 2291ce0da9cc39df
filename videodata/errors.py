"""Errors that a user can cause: each message is one line that says what is wrong and what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What would end a line or cannot be written as UTF-8: control characters, line separators, and the bytes of a file name
# that are no text, which Python keeps as lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: object) -> str:
    """A name that somebody else gave as one line that can be written anywhere; the rest becomes `\\n`, `\\xff`."""
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"  # as os.fsdecode keeps it
    return f"\\x{ord(character) - 0xDC00:02x}" if is_byte else character.encode("unicode_escape").decode()


class UserError(Exception):
    """A problem outside the code: a bad file, flag or environment. Scripts print its one line and exit with 2."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))  # it may quote what stood in somebody's file


class VideoError(UserError):
    """A video, frame folder or array that cannot be read, or cannot be read as asked."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:  # so that it survives the trip from a worker process
        return type(self), (self.path, self.reason)


def said_by(error: BaseException) -> str:
    """What an error of a library or of the system says, in one short line; its type where it says nothing.

    Not the names of files that errors of the system end with: the message around it has them, as they are to be shown.
    """
    text = getattr(error, "strerror", None) or error
    return " ".join(str(text).split())[:200] or type(error).__name__


FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
BAD_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # the last by exFAT and NTFS, for `12:30`


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes to `path`, into a UserError; a VideoError where the name is why."""
    try:
        yield
    except OSError as error:
        number = error_number(error)
        if number in BAD_NAME:
            raise VideoError(path, f"cannot be written under this name ({os.strerror(number)})") from error
        reason, remedy = ("no room left", "free some space") if number in FULL else ("cannot be written", "mend that")
        said = os.strerror(number) if number else said_by(error)
        raise UserError(
            f"{path}: {reason} ({said}); {remedy} and run the same command again: it continues where it stopped"
        ) from error


def error_number(error: OSError) -> int | None:
    """The number of an error of the system; HDF5 hides it in its message."""
    hidden = re.search(r"errno = (\d+)", str(error))
    return int(hidden[1]) if hidden else error.errno
