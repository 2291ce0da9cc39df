"""Files on disk: complete or absent, one process at a time, listed in one way."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from videodata.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it gets the final name when the block ends, and is removed if it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def natural_key(name: str | PurePath) -> tuple:
    """Sort key: runs of digits compare as numbers, folder by folder; ties are broken by the name itself."""
    text = PurePath(name).as_posix()
    parts = [
        tuple((0, int(run), "") if run.isdecimal() else (1, 0, run.lower()) for run in re.findall(r"\d+|\D+", part))
        for part in text.split("/")
    ]
    return tuple(parts), text


def is_hidden(name: str) -> bool:
    """Names that belong to the system: `.index.json`, and the `._x.png` that some file systems add to each file."""
    return name.startswith(".")


def scan_files(root: str | Path, suffixes: Collection[str], warn_about_others: str = "") -> Iterator[tuple[str, str]]:
    """Yield (folder, name) of the files below `root` with one of the suffixes; hidden files are passed over.

    warn_about_others: what is looked for ("videos"); all other files are then counted in one warning.
    """
    others = Counter()
    for folder, names in _walk(root):
        for name in names:
            if has_suffix(name, suffixes):
                yield folder, name
            elif not is_hidden(name):
                others[os.path.splitext(name)[1] or name] += 1
    if others and warn_about_others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        logger.warning("%s: %d files that are not %s are left out (%s)", root, others.total(), warn_about_others, kinds)


def find_files(root: str | Path, suffixes: Collection[str], warn_about_others: str = "") -> list[Path]:
    """The files of `scan_files` in natural order."""
    files = [Path(folder, name) for folder, name in scan_files(root, suffixes, warn_about_others)]
    return sorted(files, key=lambda file: natural_key(file.relative_to(root)))


def holds_files(root: str | Path, suffixes: Collection[str]) -> bool:
    """Whether there is such a file anywhere below `root`."""
    return any(has_suffix(name, suffixes) for _, names in _walk(root) for name in names)


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a visible file has one of the suffixes, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in suffixes and not is_hidden(name)


def _walk(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of the files in them. Links are followed; a link back to a folder above is not."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, names
