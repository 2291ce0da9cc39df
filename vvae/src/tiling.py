"""Long and large clips in overlapping tiles, blended linearly.

Tiles are planned in latent units (4 frames, 8 pixels), so that encoding and decoding cut at the same places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .errors import VVAEError
from .padding import FRAMES, PIXELS

Span = tuple[int, int]  # start, end

LATENT, PIXEL = (1, 1, 1), (FRAMES, PIXELS, PIXELS)  # size of a latent cell in latent and in pixel units


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and strides in frames and pixels. Overlap is size minus stride."""

    frames: int = 16
    height: int = 256
    width: int = 256
    stride_frames: int = 12
    stride_height: int = 192
    stride_width: int = 192

    def __post_init__(self) -> None:
        for name, size, stride, unit in (
            ("frames", self.frames, self.stride_frames, FRAMES),
            ("height", self.height, self.stride_height, PIXELS),
            ("width", self.width, self.stride_width, PIXELS),
        ):
            if size % unit or stride % unit or not 0 < stride <= size:
                raise VVAEError(
                    f"tiles: {name} {size} and its stride {stride} must be multiples of {unit}, with stride <= size"
                )

    def spans(self, latent_shape: tuple[int, int, int]) -> list[list[Span]]:
        """Tiles of a latent (T/4, H/8, W/8) along each axis. An axis that fits in one tile is not cut."""
        frames, height, width = latent_shape
        return [
            spans(frames, self.frames // FRAMES, self.stride_frames // FRAMES),
            spans(height, self.height // PIXELS, self.stride_height // PIXELS, keep_size=True),
            spans(width, self.width // PIXELS, self.stride_width // PIXELS, keep_size=True),
        ]


def spans(length: int, size: int, stride: int, keep_size: bool = False) -> list[Span]:
    """Spans of `size` every `stride` that cover [0, length). The last is cut short, or moved left with keep_size.

    Windows in time are cut short, as chunks of the original are; tiles in space keep the size that the weights know.
    """
    found: list[Span] = []
    start = 0
    while True:
        end = min(start + size, length)
        found.append((max(0, end - size) if keep_size else start, end))
        if end == length:
            return found
        start += stride


def blend_weights(cuts: list[Span], unit: int = 1) -> list[Tensor]:
    """Weight of each span along an axis, `unit` samples per cell; over all spans they sum to 1 at every sample.

    Linear in the overlap with the neighbours, exactly 1 outside.
    """
    total = torch.zeros(cuts[-1][1] * unit, dtype=torch.float64)
    weights = []
    for index, (start, end) in enumerate(cuts):
        left = cuts[index - 1][1] - start if index else 0
        right = end - cuts[index + 1][0] if index + 1 < len(cuts) else 0
        weight = ramp((end - start) * unit, left * unit, right * unit)
        total[start * unit : end * unit] += weight
        weights.append(weight)
    return [(w / total[s * unit : e * unit]).float() for w, (s, e) in zip(weights, cuts, strict=True)]


def ramp(length: int, left: int, right: int) -> Tensor:
    """Weights (length,), float64: rising over the first `left` samples, falling over the last `right`, else 1."""
    position = torch.arange(length, dtype=torch.float64) + 0.5
    weight = torch.ones(length, dtype=torch.float64)
    if left > 0:
        weight = torch.minimum(weight, position / left)
    if right > 0:
        weight = torch.minimum(weight, (length - position) / right)
    return weight


def blend_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, cuts: list[list[Span]], unit_in: tuple, unit_out: tuple
) -> Tensor:
    """Apply `function` to every tile of x (B, C, T, H, W) and blend the results (B, C', T', H', W').

    cuts: spans of the three axes in cells; unit_in and unit_out: size of a cell in x and in the result.
    """
    weights = [blend_weights(axis, unit) for axis, unit in zip(cuts, unit_out, strict=True)]
    out: Tensor | None = None
    for tile in product(*(range(len(axis)) for axis in cuts)):
        place = [cuts[axis][index] for axis, index in enumerate(tile)]
        part = function(x[(..., *_scaled(place, unit_in))])
        if out is None:
            shape = [axis[-1][1] * unit for axis, unit in zip(cuts, unit_out, strict=True)]
            out = part.new_zeros(*part.shape[:2], *shape, dtype=torch.float32)
        for axis, index in enumerate(tile):
            shape = [-1 if other == axis else 1 for other in range(3)]
            part = part * weights[axis][index].to(part.device).view(shape)
        out[(..., *_scaled(place, unit_out))] += part
    return out


def _scaled(place: list[Span], unit: tuple) -> list[slice]:
    return [slice(start * size, end * size) for (start, end), size in zip(place, unit, strict=True)]
