"""An .npy file that is filled part by part, and goes on where a killed process stopped.

    array = GrowingArray(path, made_from)
    array.open(np.float16, shape)
    for number in range(array.done, count):
        array.values[number] = ...
        array.note(number + 1)
    array.publish()
    array.forget()

While it is made it is <path>.partial; <path>.progress says from what, and how many parts are on the disk. A note costs
a flush of the mapped pages: after every part where they are large, else after some.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from videodata.errors import UserError
from videodata.files import publish, read_json, write_json
from videodata.npy import allocated_array, read_array

logger = logging.getLogger(__name__)


class GrowingArray:
    """The array `path` while it is made. done: parts that an earlier call left in it; begun_from: what that call made
    it from, which may be something else.
    """

    def __init__(self, path: Path, made_from: Any) -> None:
        """made_from: what its values follow from, as JSON has it; `open` begins an array of something else again."""
        self.path, self.made_from = path, made_from
        self.partial = path.with_name(path.name + ".partial")
        self.progress = path.with_name(path.name + ".progress")
        self.values: np.memmap | None = None
        noted = (read_json(self.progress) or {}) if self.partial.exists() else {}
        self.begun_from = noted.get("made_from")
        self.done = noted.get("done", 0) if self.begun_from == made_from else 0

    def open(self, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        """Map `values`, whose room on the disk is taken at once. Raises OSError, and UserError for a damaged one."""
        if self.done:
            self.values = np.lib.format.open_memmap(self.partial, "r+")
            if self.values.shape != tuple(shape) or self.values.dtype != dtype:
                found = f"{self.values.dtype} {self.values.shape}, not {np.dtype(dtype)} {tuple(shape)}"
                raise UserError(f"{self.partial}: is {found}; remove it to begin again")
            return
        if self.partial.exists():
            logger.info("%s: is of something else; begun again", self.partial)
        self.forget()  # a kill after the array got its name leaves the note, which would speak of the new one
        self.values = allocated_array(self.partial, dtype, shape)

    def note(self, done: int) -> None:
        """The first `done` parts stay when the process is killed."""
        self.values.flush()
        write_json(self.progress, {"made_from": self.made_from, "done": done})

    def read(self) -> np.ndarray:
        """What is on the disk, mapped to be read only."""
        return read_array(self.partial)

    def publish(self) -> None:
        """Give it its name."""
        self.values = None  # Windows renames no file that is mapped
        publish(self.partial, self.path)

    def forget(self) -> None:
        """Remove the note: everything that goes with the array has been written."""
        self.progress.unlink(missing_ok=True)
