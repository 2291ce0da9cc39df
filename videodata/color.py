"""Decoded pictures to RGB: colour matrix, range, alpha, rotation and size, with full-accuracy rounding."""

from __future__ import annotations

import threading

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videodata.geometry import Placement, Size, place

# Flags of the scaler by value, because not every PyAV release names them all.
AREA, BICUBIC, BILINEAR = 0x20, 0x4, 0x2
# Full chroma interpolation on both sides and accurate rounding: without them pictures come out 1.2 levels too dark.
ACCURATE = 0x2000 | 0x4000 | 0x40000
BT709, BT601 = 1, 5  # colour matrices as the scaler numbers them
UNTAGGED = (0, 2)  # AVCOL_SPC_RGB and AVCOL_SPC_UNSPECIFIED: for YUV pictures neither says which matrix was used

_process = threading.local()


def reformatter(step: str = "color") -> VideoReformatter:
    """The one scaler of this thread for one step: making a new one per frame costs more than the conversion itself."""
    if not hasattr(_process, step):
        setattr(_process, step, VideoReformatter())
    return getattr(_process, step)


def matrix_for(height: int) -> int:
    """Colour matrix of a picture that carries no tag: BT.709 from 720 lines up, else BT.601, as players assume."""
    return BT709 if height >= 720 else BT601


def to_rgb(frame: av.VideoFrame, size: Size | None = None, resize: str = "crop") -> np.ndarray:
    """Decoded frame -> uint8 (H, W, 3) RGB, upright, alpha over black, resized by the rule of `geometry.place`."""
    turns = round(frame.rotation / 90) % 4
    native = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
    placement = place(native, size, resize)
    stored = placement.scaled if turns % 2 == 0 else placement.scaled[::-1]
    rgb = _convert(frame, stored)
    if turns:
        rgb = np.rot90(rgb, turns)
    return cut(rgb, placement)


def cut(frames: np.ndarray, placement: Placement) -> np.ndarray:
    """Scaled frames (..., h, w, 3) -> (..., H, W, 3): the placement's crop box, black where it lies outside."""
    (height, width), (top, left) = placement.target, (placement.top, placement.left)
    if (height, width) == placement.scaled:
        return frames
    inside = frames[..., max(top, 0) : top + height, max(left, 0) : left + width, :]
    if top >= 0 and left >= 0:
        return inside
    padded = np.zeros((*frames.shape[:-3], height, width, 3), frames.dtype)
    y, x = max(-top, 0), max(-left, 0)
    padded[..., y : y + inside.shape[-3], x : x + inside.shape[-2], :] = inside
    return padded


def _convert(frame: av.VideoFrame, size: Size) -> np.ndarray:
    """Colour conversion and scaling in one pass of the scaler."""
    height, width = size
    shrinks = height < frame.height or width < frame.width
    alpha = _has_alpha(frame.format)
    is_yuv = not frame.format.is_rgb and frame.format.name != "pal8"
    # Planar RGB on the way: the scaler has vector code for YUV to planes, and plain code, two to three times slower,
    # for YUV to packed pixels. At most a thousandth of the pixels differ, by one level.
    converted = reformatter().reformat(
        frame,
        width=width,
        height=height,
        format="rgba" if alpha else "gbrp" if is_yuv else "rgb24",
        src_colorspace=matrix_for(frame.height) if is_yuv and frame.colorspace in UNTAGGED else None,
        interpolation=(AREA if shrinks else BICUBIC) | ACCURATE,
        threads=1,  # the processes that read in parallel share the cores already
    )
    if converted.format.name == "gbrp":
        converted = reformatter("packing").reformat(converted, format="rgb24", threads=1)
    pixels = converted.to_ndarray()
    return _over_black(pixels) if alpha else pixels


def _has_alpha(pixel_format: av.VideoFormat) -> bool:
    return pixel_format.name == "pal8" or any(component.is_alpha for component in pixel_format.components)


def _over_black(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) -> (H, W, 3): each pixel times its opacity, rounded."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)
