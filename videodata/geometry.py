"""Where the pixels go when frames change size: the scaled size, the crop box and the padding of each resize rule."""

from __future__ import annotations

from typing import NamedTuple

from videodata.errors import UserError

Size = tuple[int, int]  # (height, width)
RESIZE_RULES = ("crop", "squeeze", "pad", "none")


class Placement(NamedTuple):
    """Scale a frame to `scaled`, cut `target` out of it at (top, left), which are negative where black is added."""

    scaled: Size
    target: Size
    top: int
    left: int


def as_size(size: int | Size | None) -> Size | None:
    """An int means a square; None means the native size. Raises UserError for anything that is no size."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height < 1 or width < 1:
        raise UserError(f"size must be a positive number or (height, width), found {size}")
    return int(height), int(width)


def place(native: Size, target: Size | None, rule: str = "crop", short_side: int | None = None) -> Placement:
    """Placement of a frame of size `native` in `target`.

    crop: scale until the target is covered, cut the centre. squeeze: scale both sides, aspect ratio ignored.
    pad: scale until all fits, black around. none: the size must already be the target's.
    short_side: with crop, the length of the shorter side after scaling (default: just covers the target).
    """
    if rule not in RESIZE_RULES:
        raise UserError(f"unknown resize rule {rule!r}: use one of {', '.join(RESIZE_RULES)}")
    if rule == "none" and target not in (None, native):
        raise UserError(
            f'resize "none" keeps {native[0]}x{native[1]}, but {target[0]}x{target[1]} was asked for (height x width)'
        )
    if target is None and short_side is None:
        return Placement(native, native, 0, 0)
    scaled = _scaled_size(native, target, rule, short_side)
    target = target or scaled
    if rule == "crop" and (scaled[0] < target[0] or scaled[1] < target[1]):
        raise UserError(f"short_side {short_side} is smaller than the crop of {target[0]}x{target[1]}")
    return Placement(scaled, target, _centre(scaled[0], target[0]), _centre(scaled[1], target[1]))


def _scaled_size(native: Size, target: Size | None, rule: str, short_side: int | None) -> Size:
    height, width = native
    if rule == "squeeze" and target is not None:
        return target
    if rule == "crop" and short_side is not None:
        # The longer side is cut to a whole number, as torchvision's Resize does.
        return (
            (short_side, short_side * width // height)
            if height <= width
            else (short_side * height // width, short_side)
        )
    ratios = (target[0] / height, target[1] / width)
    if rule == "crop":
        scale = max(ratios)
        return max(target[0], round(height * scale)), max(target[1], round(width * scale))
    scale = min(ratios)
    return max(1, min(target[0], round(height * scale))), max(1, min(target[1], round(width * scale)))


def _centre(scaled: int, target: int) -> int:
    return round((scaled - target) / 2)
