"""Files that are complete or absent: temporary name, fsync, rename, SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"  # suffix of files that are being written; what a killed run leaves is removed at the next start


class HashingFile:
    """A write-only file that knows the SHA-256 and size of what was written, and the first error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def write_file(
    path: Path, write: Callable[[HashingFile], None], before_rename: Callable[[], None] | None = None
) -> str:
    """Let `write` fill the file under a temporary name, then give it its name. Gives its SHA-256.

    Raises OSError when the disk refuses; then neither the file nor its temporary form is left.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as raw:
            file = HashingFile(raw)
            try:
                write(file)
            except RuntimeError as error:  # torch's zip writer reports a failing disk in its own words
                raise file.error or error from error
            raw.flush()
            os.fsync(raw.fileno())
        if before_rename:
            before_rename()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return file.digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes on disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_debris(folder: Path) -> list[str]:
    """Remove the unfinished files of a killed run; gives their names."""
    debris = [path for path in folder.glob(f"*{TEMPORARY}") if path.is_file()]
    for path in debris:
        path.unlink()
    return [path.name for path in debris]


def canonical(value: Any) -> Any:
    """The same nested plain values and tensors, with equal strings as one object.

    torch.save writes an object that comes twice once and refers to it, so that equal contents give equal bytes only
    if their strings are shared alike; those of a resumed run are not.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {canonical(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(entry) for entry in value)
    return value
