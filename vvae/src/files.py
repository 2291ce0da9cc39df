"""Files that are complete or absent: written under a temporary name beside them, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it gets the final name when the block ends, and is removed if it raises."""
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows brings to the disk only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        with suppress(OSError):  # unless nothing was written to them
            for folder in made:
                folder.rmdir()
