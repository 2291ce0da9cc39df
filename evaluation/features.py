"""What a feature network is to a distance between sets of clips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor

from videodata.files import sha256_of


class FeatureExtractor(ABC):
    """Clips float32 (B, 3, T, H, W) in [-1, 1] -> features (B * n, dimensions), n of each clip."""

    name: str  # part of the definition's id
    text: str  # what happens to a clip, in words
    dimensions: int
    minimum_frames: int

    def __init__(self, weights: Path | None) -> None:
        self.weights = weights
        self.sha256 = sha256_of(weights) if weights else None

    @abstractmethod
    def __call__(self, clips: Tensor) -> Tensor: ...

    @property
    def identity(self) -> str:
        """Changes when the features would."""
        return f"{self.name}-{(self.sha256 or 'none')[:16]}"

    def facts(self) -> dict[str, str | None]:
        """What a result says about the network."""
        return {
            "name": self.name,
            "text": self.text,
            "file": self.weights.name if self.weights else None,
            "sha256": self.sha256,
        }
