"""Frames as a grid of patches, row by row, and back. Works for pictures and for maps of indices alike."""

from __future__ import annotations

from torch import Tensor

from videodata.errors import UserError


def split(frames: Tensor, rows: int, columns: int) -> Tensor:
    """Frames (N, ..., H, W) -> patches (N * rows * columns, ..., H / rows, W / columns); columns vary fastest.

    Raises UserError for a grid that does not divide the frame.
    """
    height, width = frames.shape[-2:]
    if height % rows or width % columns:
        raise UserError(f"frames of {width}x{height} cannot be cut into {columns}x{rows} patches; change the grid")
    grid = frames.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # (N, ..., rows, h, columns, w)
    return grid.movedim((-4, -2), (1, 2)).flatten(0, 2)


def merge(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `split`: patches (N * rows * columns, ..., h, w) -> frames (N, ..., rows * h, columns * w)."""
    grid = patches.unflatten(0, (-1, rows, columns)).movedim((1, 2), (-4, -2))  # (N, ..., rows, h, columns, w)
    return grid.flatten(-2, -1).flatten(-3, -2)
