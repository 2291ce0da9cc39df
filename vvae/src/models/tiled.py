"""Encoding and decoding in overlapping tiles: a part of the autoencoder class."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..padding import PIXELS
from ..tiling import LATENT, PIXEL, Span, Tiling, blend_tiles, shared_statistics, spans


class TiledCoding:
    """Tiling switches; mixed into the autoencoder."""

    _tiling: Tiling | None
    _shared_statistics: bool

    def enable_tiling(
        self,
        tile_sample_min_height: int = 256,
        tile_sample_min_width: int = 256,
        tile_sample_min_num_frames: int = 16,
        tile_sample_stride_height: int = 192,
        tile_sample_stride_width: int = 192,
        tile_sample_stride_num_frames: int = 12,
        shared_statistics: bool = False,
    ) -> None:
        """Cut longer or larger clips into tiles of this size in frames and pixels, one every stride, and blend them.

        An axis that fits into one tile is not cut. shared_statistics: the normalisations of all tiles of a frame use
        statistics of the whole frame, taken from a small copy of it, which keeps the brightness of tiles alike.
        """
        self._tiling = Tiling(
            frames=tile_sample_min_num_frames,
            height=tile_sample_min_height,
            width=tile_sample_min_width,
            stride_frames=tile_sample_stride_num_frames,
            stride_height=tile_sample_stride_height,
            stride_width=tile_sample_stride_width,
        )
        self._shared_statistics = shared_statistics

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
        self,
        function: Callable[[Tensor], Tensor],
        stage: nn.Module,
        x: Tensor,
        cuts: list[list[Span]],
        image: bool,
        decode: bool,
    ) -> Tensor:
        """Apply `function` (a pass through `stage`) to the tiles of x: windows in time, in each the tiles in space."""
        pixel = (1, *PIXEL[1:]) if image else PIXEL
        unit_in, unit_out = (LATENT, pixel) if decode else (pixel, LATENT)
        time, height, width = cuts
        whole = [[(0, height[-1][1])], [(0, width[-1][1])]]

        def window(part: Tensor) -> Tensor:
            if len(height) == len(width) == 1:
                return function(part)
            length = part.shape[2] // unit_in[0]
            inside = [[(0, length)], height, width]
            if not self._shared_statistics:
                return blend_tiles(function, part, inside, unit_in, unit_out)
            with shared_statistics([stage, *stage.companions], lambda: function(self._small(part, decode))):
                return blend_tiles(function, part, inside, unit_in, unit_out)

        return blend_tiles(window, x, [time, *whole], unit_in, unit_out)

    def _small(self, x: Tensor, decode: bool) -> Tensor:
        """A copy of a clip or latent that fits in one tile. Latents are thinned out, because averaging would shrink
        their variance."""
        unit = 1 if decode else PIXELS
        limits = (self._tiling.height // PIXELS * unit, self._tiling.width // PIXELS * unit)
        scale = min(1.0, *(limit / length for limit, length in zip(limits, x.shape[3:], strict=True)))
        size = [max(unit, int(length * scale) // unit * unit) for length in x.shape[3:]]
        mode = "nearest-exact" if decode else "area"
        flat = x.transpose(1, 2).flatten(0, 1)  # (B T, C, H, W)
        return F.interpolate(flat, size=size, mode=mode).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
