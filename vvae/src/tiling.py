"""Clips of any size cut to what the model takes, and its results joined to that size again.

Three ways, which go together: a clip is padded to whole latent cells (`pad_video`); a large one is cut into tiles that
overlap (`Tiling`, `blend_tiles`); a stream of frames goes through in windows (`Windows`, `cut`, `Blender`), one at a
time. Where parts overlap they are faded linearly into each other. Tiles are planned in latent units (4 frames, 8
pixels), so that encoding and decoding cut at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import VVAEError

FRAMES, PIXELS = 4, 8  # compression in time, and in height and width

LATENT, PIXEL = (1, 1, 1), (FRAMES, PIXELS, PIXELS)  # size of a latent cell in latent and in pixel units

Size = tuple[int, int, int]  # frames, height, width
Span = tuple[int, int]  # start, end
Item = TypeVar("Item")


def padded_length(length: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-length // multiple) * multiple


def pad_video(video: Tensor, image: bool = False) -> tuple[Tensor, Size]:
    """Repeat the last frame, row and column of a clip (B, C, T, H, W) up to the next size that the model takes.

    Returns the clip and its size before, for `crop_video`. image: the number of frames stays.
    """
    frames, height, width = video.shape[2:]
    missing_frames = 0 if image else padded_length(frames, FRAMES) - frames
    if missing_frames:
        last = video[:, :, -1:].expand(-1, -1, missing_frames, -1, -1)
        video = torch.cat([video, last], dim=2)
    bottom, right = padded_length(height, PIXELS) - height, padded_length(width, PIXELS) - width
    if bottom or right:
        video = F.pad(video, (0, right, 0, bottom, 0, 0), mode="replicate")
    return video, (frames, height, width)


def crop_video(video: Tensor, size: Size) -> Tensor:
    """Cut a padded clip (B, C, T, H, W) back to `size`."""
    frames, height, width = size
    return video[:, :, :frames, :height, :width]


def check_video(video: Tensor, image: bool = False) -> None:
    """Raises VVAEError, naming the number, unless the clip (B, 3, T, H, W) has a size that the model takes."""
    if video.dim() != 5 or video.shape[1] != 3:
        raise VVAEError(f"a clip must be (B, 3, T, H, W) or (3, T, H, W), found shape {tuple(video.shape)}")
    if not video.is_floating_point():
        raise VVAEError(f"a clip must be floating point in [-1, 1], found {video.dtype}; divide by 127.5, subtract 1")
    frames, height, width = video.shape[2:]
    if not image and (frames % FRAMES or frames == 0):
        raise VVAEError(f"the number of frames must be a multiple of {FRAMES}, found {frames}; pad_video makes it one")
    for name, length in (("height", height), ("width", width)):
        if length % PIXELS or length == 0:
            raise VVAEError(f"the {name} must be a multiple of {PIXELS}, found {length}; pad_video makes it one")


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


class TiledCoding:
    """Tiling switches; mixed into the autoencoder."""

    _tiling: Tiling | None

    def enable_tiling(
        self,
        tile_sample_min_height: int = 256,
        tile_sample_min_width: int = 256,
        tile_sample_min_num_frames: int = 16,
        tile_sample_stride_height: int = 192,
        tile_sample_stride_width: int = 192,
        tile_sample_stride_num_frames: int = 12,
    ) -> None:
        """Cut longer or larger clips into tiles of this size in frames and pixels, one every stride, and blend them.

        An axis that fits into one tile is not cut.
        """
        self._tiling = Tiling(
            frames=tile_sample_min_num_frames,
            height=tile_sample_min_height,
            width=tile_sample_min_width,
            stride_frames=tile_sample_stride_num_frames,
            stride_height=tile_sample_stride_height,
            stride_width=tile_sample_stride_width,
        )

    def disable_tiling(self) -> None:
        """Encode and decode a clip in one piece."""
        self._tiling = None

    def plan(self, shape: tuple[int, int, int], unit: tuple[int, int, int], image: bool) -> list[list[Span]] | None:
        """Tiles of a clip or latent of that size along its axes, in latent cells; None when it needs no cut."""
        if self._tiling is None:
            return None
        unit = (1, *unit[1:]) if image else unit  # the latent of an image has its frames
        cells = tuple(length // size for length, size in zip(shape, unit, strict=True))
        cuts = self._tiling.spans(cells)
        if image:
            cuts[0] = spans(cells[0], cells[0], cells[0])
        return cuts if any(len(axis) > 1 for axis in cuts) else None

    def code_tiles(
        self, function: Callable[[Tensor], Tensor], x: Tensor, cuts: list[list[Span]], image: bool, decode: bool
    ) -> Tensor:
        """Apply `function` to every tile of a clip (or, to decode, of a latent) and blend the results."""
        pixel = (1, *PIXEL[1:]) if image else PIXEL
        return blend_tiles(function, x, cuts, *((LATENT, pixel) if decode else (pixel, LATENT)))


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
