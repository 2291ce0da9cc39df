"""Find the files of one kind below a folder, in natural order."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from videodata.natural_order import is_hidden, natural_key

logger = logging.getLogger(__name__)


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
