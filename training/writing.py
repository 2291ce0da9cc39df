"""What the disk refuses: one policy for all that a run writes.

A failure is a warning and the run goes on. What is lost when it is not written now (a checkpoint, the files of an
epoch, pictures) is the run's error after ATTEMPTS failures in a row. Text that grows line by line waits in memory and
is written with what follows. Whatever is still missing at the end of the run is its error.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from training.cli import remedy_for
from videodata.errors import UserError
from videodata.files import made_folder, short_name

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # failures in a row after which training without a checkpoint is pointless


class Attempts:
    """The writes of one run, into `place`, by what is written."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.failures: Counter[str] = Counter()  # in a row
        self.missing: dict[str, OSError] = {}  # what could not be written, at its last attempt
        self.quiet = False  # another process of the run has the same writes, and says so

    def attempt(self, what: str, write: Callable[[], object], waits: bool = False) -> bool:
        """Whether something could be written. `waits`: it is kept and tried again, so that no number of failures ends
        the run, and only the first of them is worth a warning.
        """
        try:
            write()
        except OSError as error:
            self.failures[what] += 1
            self.missing[what] = error
            if not self.quiet and (not waits or self.failures[what] == 1):
                logger.warning("WARN %s not saved: %s; training goes on", what, error)
            if not waits and self.failures[what] >= ATTEMPTS:
                raise UserError(
                    f"{self.place}: no {what} saved in {ATTEMPTS} attempts ({error}); {remedy_for(error)}"
                ) from error
            return False
        if self.failures.pop(what, 0) and waits:
            logger.info("%s is written again, with all that was missing", what)
        self.missing.pop(what, None)
        return True

    def finish(self) -> None:
        """Raises UserError when the last attempt to write something failed."""
        for what, error in self.missing.items():
            raise UserError(
                f"{self.place}: the last {what} could not be saved ({error}); {remedy_for(error)} and run again"
            )


class GrowingFile:
    """A text file that grows by whole lines; those that the disk refuses are kept and come first the next time."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)  # a buffer would hold on to bytes that were refused
        self.waiting = b""

    def add(self, text: str) -> None:
        """Write all that is waiting, and the text. Raises OSError; then the file ends as before."""
        self.waiting += text.encode(errors="backslashreplace")
        end = os.fstat(self.file.fileno()).st_size
        try:
            written = 0
            while written < len(self.waiting):  # a disk that is nearly full takes a part
                written += append(self.file.fileno(), self.waiting[written:])
        except OSError:
            with suppress(OSError):  # not half a line
                os.ftruncate(self.file.fileno(), end)
            raise
        self.waiting = b""

    def close(self) -> None:
        """Close the file. Raises OSError when something is still waiting."""
        try:
            if self.waiting:
                self.add("")
        finally:
            self.file.close()


def append(descriptor: int, content: bytes) -> int:
    """Write what fits; gives how many bytes that were."""
    return os.write(descriptor, content)


class LogFile(logging.Handler):
    """Writes a log to a file that outlives a full disk; Python's own handler would print tracebacks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = GrowingFile(path)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # kept, and tried again with the next line
            self.file.add(self.format(record) + "\n")

    def close(self) -> None:
        with suppress(OSError):
            self.file.close()
        super().close()


def check_place(path: Path) -> None:
    """See, before anything is computed, that a file can be written to `path`; nothing is left there. Raises UserError.

    Also for a device such as /dev/null, in whose place a finished file would come.
    """
    beside = path.with_name(f".{short_name(path.name)}.{os.getpid()}.tmp")
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # the name may be too long, where that of the file beside it is not
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no plain file; name another place")
        if path.parent.is_file():  # which mkdir calls "File exists"
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with made_folder(path.parent):
            with beside.open("xb"):
                pass
            beside.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy_for(error)}") from error
