"""A stream of frames in overlapping windows, and the windows' results blended back into one stream.

Only the frames of one window and of one overlap are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from .errors import VVAEError
from .padding import FRAMES
from .tiling import ramp

Item = TypeVar("Item")


@dataclass(frozen=True)
class Windows:
    """Windows of `size` frames, of which each shares `overlap` frames with the one before. 0: independent chunks."""

    size: int = 16
    overlap: int = 4

    def __post_init__(self) -> None:
        if self.size < FRAMES or self.size % FRAMES or self.overlap % FRAMES or self.overlap < 0:
            raise VVAEError(
                f"window and overlap must be multiples of {FRAMES} frames, found {self.size} and {self.overlap}"
            )
        if 2 * self.overlap > self.size:
            raise VVAEError(f"an overlap of {self.overlap} frames is more than half of a window of {self.size}")

    @property
    def in_latents(self) -> LatentWindows:
        """The same windows counted in latent frames."""
        return LatentWindows(self.size // FRAMES, self.overlap // FRAMES)


@dataclass(frozen=True)
class LatentWindows:
    """Windows of latent frames."""

    size: int
    overlap: int


def cut(frames: Iterable[Item], windows: Windows | LatentWindows) -> Iterator[tuple[list[Item], bool]]:
    """(frames of a window, whether it is the last), every size - overlap frames; the last window may be shorter."""
    frames = iter(frames)
    stride = windows.size - windows.overlap
    window = list(islice(frames, windows.size))
    if not window:
        return
    while True:
        following = next(frames, None)
        yield window, following is None
        if following is None:
            return
        window = [*window[stride:], following, *islice(frames, stride - 1)]


class Blender:
    """Joins the results of consecutive windows (C, t, H, W): their overlaps are faded linearly into each other."""

    def __init__(self, overlap: int) -> None:
        self.overlap = overlap
        self._pending: Tensor | None = None  # the end of the last window, not yet blended

    def push(self, part: Tensor, last: bool) -> Tensor:
        """Add a window; returns the frames that are now finished."""
        if self.overlap == 0:
            return part
        if self._pending is not None:
            rising = ramp(self.overlap, self.overlap, 0).to(part).view(-1, 1, 1)
            faded = self._pending * (1 - rising) + part[:, : self.overlap] * rising
            part = torch.cat([faded, part[:, self.overlap :]], dim=1)
        finished = part.shape[1] if last else part.shape[1] - self.overlap
        self._pending = part[:, finished:].clone()
        return part[:, :finished]
