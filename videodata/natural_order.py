"""Sort names as people do: frame 2 before frame 10."""

from __future__ import annotations

import re
from pathlib import PurePath


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
