"""Features of real clips on the disk: the costly half of FVD, which does not change from one model to the next."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videodata.files import atomic_path

DEFAULT_FOLDER = Path("~/.cache/videogen/features")


class FeatureCache:
    """Features (N, D) of the clips that `key` describes: data, windows, preprocessing, network. No folder: no cache."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self.path = None if folder is None else folder.expanduser() / f"{digest[:32]}.npy"

    def read(self, count: int) -> Tensor | None:
        """The features, where they are known of that many clips."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            features = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError):
            return None  # cut short; they are computed again
        return torch.from_numpy(features) if features.ndim == 2 and len(features) == count else None

    def write(self, features: Tensor) -> None:
        """Keep the features."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            np.save(file, features.numpy(), allow_pickle=False)
