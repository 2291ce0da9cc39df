"""What an evaluation has measured so far, batch by batch on disk: a killed one goes on where it was.

A batch is a small file of numbers and features, never of pixels. It holds for one evaluation alone: everything that
moves a number is in the name of the folder, so that another command, other weights or other data find nothing.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from videodata.files import write_file


def digest_of(key: Any) -> str:
    """Hash of plain values, the same in every process: for names of what holds for them alone."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


class Journal:
    """Records of batches in a folder beside the result. No path: nothing is kept.

    A record is what `torch.load(weights_only=True)` gives back: tensors, numbers, texts, lists, dictionaries.
    """

    def __init__(self, result: Path | None, key: Mapping[str, Any] | None = None) -> None:
        self.folder = None if result is None else result.with_name(f"{result.name}.{digest_of(key)[:12]}.partial")

    def __len__(self) -> int:
        return 0 if self.folder is None else len(list(self.folder.glob("*.pt")))

    def read(self, name: str) -> Any:
        """The record of that name; None where there is none, or none that is whole."""
        if self.folder is None or not (path := self.folder / f"{name}.pt").is_file():
            return None
        try:
            return torch.load(path, weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):  # cut short; measured again
            return None

    def write(self, name: str, record: Any) -> None:
        """Keep a record, whole or not at all."""
        if self.folder is None:
            return
        write_file(self.folder / f"{name}.pt", lambda file: torch.save(record, file))

    def clear(self) -> None:
        """Forget all: the result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
