"""A disk of a few megabytes for the tests, which really fills up."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MEGABYTES = 20


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs at the folder; the test is skipped where it cannot be mounted."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system has no tmpfs to fill")
    folder.mkdir(parents=True)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(folder)]
        told = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"this system has no tmpfs to mount ({error})")
    if told.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({told.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a test that failed may have a file mapped


def leave(disk: Path, free: int) -> Path:
    """Fill the disk until so many bytes are free; gives the file that does it, to be removed for room."""
    gc.collect()  # arrays of an earlier test that still map a removed file, whose room would come free afterwards
    ballast, state = disk / "ballast", os.statvfs(disk)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - free)
    return ballast
