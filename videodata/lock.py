"""One process per target: an advisory lock that the kernel gives back when its holder dies, even by kill -9."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videodata.errors import UserError


@contextmanager
def exclusive(target: str | os.PathLike, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold `<target>.lock` for the length of the block.

    `doing` completes the sentence "another process is ... <target>". wait: wait for another process that holds it.
    Raises UserError at once when another process holds the lock, or when the folder cannot be written.
    """
    lock = Path(f"{target}.lock")
    refusal = f"another process is {doing} {target}: wait for it, or choose another name"
    descriptor = _locked_descriptor(lock, refusal, wait)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while still held, so that nobody can hold the removed file and believe it counts
        os.close(descriptor)


def _locked_descriptor(lock: Path, refusal: str, wait: bool) -> int:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{lock.parent}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(refusal) from error
        if _is_still(lock, descriptor):
            return descriptor
        os.close(descriptor)  # the former holder removed the file between our open and our lock


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
