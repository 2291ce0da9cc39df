"""Open files that survive fork, spawn and pickling: each process opens its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class PerProcess:
    """Calls `open_file(path)` on first use in each process; never pickled, never shared over a fork."""

    def __init__(self, open_file: Callable[[str], Any], path: str | os.PathLike) -> None:
        self._open_file = open_file
        self._path = str(path)
        self._process: int | None = None
        self._handle: Any = None

    def get(self) -> Any:
        """The handle of this process."""
        if self._process != os.getpid():
            self._handle = self._open_file(self._path)
            self._process = os.getpid()
        return self._handle

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_process": None, "_handle": None}
