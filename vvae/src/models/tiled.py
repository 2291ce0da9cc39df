"""Encoding and decoding in overlapping tiles: a part of the autoencoder class."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..tiling import LATENT, PIXEL, Span, Tiling, blend_tiles, spans


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
