"""Decoded pictures to RGB, and RGB to the pictures of an encoder, with full-accuracy rounding.

What is written and read back has the brightness that it had: the fast paths of the scaler are 1.2 levels too dark.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from videodata.resize import ACCURATE, AREA, Size, cut, place, reformatter, scaling_flags

BT709, BT601 = 1, 5  # colour matrices as the scaler numbers them
UNTAGGED = (0, 2)  # AVCOL_SPC_RGB and AVCOL_SPC_UNSPECIFIED: for YUV pictures neither says which matrix was used
LIMITED_RANGE = 1  # Y in 16..235, Cb and Cr in 16..240
LUMA_WEIGHTS = {5: (0.299, 0.114), 1: (0.2126, 0.0722)}  # of red and blue, by colour matrix (BT.601, BT.709)
UNKNOWN = 0
SQUARE = Fraction(1)
BARELY_WIDER = 0.01  # pixels that are so nearly square are not worth the blur of another scaling
WIDEST = 4  # pixels beyond any that was ever in use: a damaged header


def matrix_for(height: int) -> int:
    """Colour matrix of a picture that carries no tag: BT.709 from 720 lines up, else BT.601, as players assume."""
    return BT709 if height >= 720 else BT601


class Orientation(NamedTuple):
    """How a stored picture becomes the one that is shown: rows and columns exchanged first, then mirrored."""

    transposed: bool
    left_right: bool
    top_bottom: bool

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation does the same."""
        return self.transposed ^ self.left_right ^ self.top_bottom

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> the same pixels in their places, (W, H, 3) if transposed."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        return picture[:: -1 if self.top_bottom else 1, :: -1 if self.left_right else 1]


AS_STORED = Orientation(False, False, False)


def orientation(frame: av.VideoFrame) -> Orientation:
    """What the display matrix of a frame asks for, to the nearest quarter turn. To be asked of few frames of a film:

    PyAV ties a frame whose side data was looked at to itself, so that it stays in memory until the garbage collector
    comes, and the decoder has to take new memory for the next one.
    """
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return AS_STORED
    # A row vector (column, row, 1) of the picture times the matrix is its place on the screen.
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def shown_size(frame: av.VideoFrame, upright: Orientation, pixel_aspect: Fraction = SQUARE) -> Size:
    """(height, width) at which players show a frame whose pixels are `pixel_aspect` times as wide as high."""
    height, width = frame.height, frame.width
    if pixel_aspect != 1 and abs(pixel_aspect - 1) >= BARELY_WIDER and 1 / WIDEST <= pixel_aspect <= WIDEST:
        width = max(1, round(width * pixel_aspect))
    return (width, height) if upright.transposed else (height, width)


def to_rgb(
    frame: av.VideoFrame,
    size: Size | None = None,
    resize: str = "crop",
    pixel_aspect: Fraction = SQUARE,
    upright: Orientation = AS_STORED,
) -> np.ndarray:
    """Decoded frame -> uint8 (H, W, 3) RGB as players show it, resized by the rule of `resize.place`.

    That is upright, with square pixels, and with opacity over black.
    """
    placement = place(shown_size(frame, upright, pixel_aspect), size, resize)
    stored = placement.scaled[::-1] if upright.transposed else placement.scaled
    return cut(upright.apply(_convert(frame, stored)), placement)


def _convert(frame: av.VideoFrame, size: Size) -> np.ndarray:
    """Colour conversion and scaling in one pass of the scaler."""
    height, width = size
    alpha = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
    is_yuv = not frame.format.is_rgb and frame.format.name != "pal8"
    # Planar RGB on the way: the scaler has vector code for YUV to planes, and plain code, two to three times slower,
    # for YUV to packed pixels. At most a thousandth of the pixels differ, by one level.
    # Its experimental code (SWS_UNSTABLE) packs the planes in less time, and crashes on pictures of up to 64 columns.
    converted = reformatter().reformat(
        frame,
        width=width,
        height=height,
        format="rgba" if alpha else "gbrp" if is_yuv else "rgb24",
        src_colorspace=matrix_for(frame.height) if is_yuv and frame.colorspace in UNTAGGED else None,
        interpolation=scaling_flags((frame.height, frame.width), size),
        threads=1,  # the processes that read in parallel share the cores already
    )
    if converted.format.name == "gbrp":
        converted = reformatter("packing").reformat(converted, format="rgb24", threads=1)
    pixels = converted.to_ndarray()
    if not alpha:
        return pixels
    over_black = pixels[..., :3].astype(np.uint16) * pixels[..., 3:]  # each pixel times its opacity, rounded
    return ((over_black + 127) // 255).astype(np.uint8)


def to_yuv(rgb: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """uint8 (H, W, 3) RGB -> frame in "yuv420p" or "yuv444p", limited range, with its colour matrix tagged."""
    matrix = matrix_for(rgb.shape[0])
    frame = reformatter().reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
        format=pixel_format,
        dst_colorspace=matrix,
        dst_color_range=LIMITED_RANGE,
        interpolation=AREA | ACCURATE,
        threads=1,  # its threads would be missing in a forked process, which then waits for them forever
    )
    if pixel_format == "yuv420p":
        _refine_flat_blocks(rgb, frame, matrix, block=2)
    else:
        _refine_flat_blocks(rgb, frame, matrix, block=1)
    return frame


def _refine_flat_blocks(rgb: np.ndarray, frame: av.VideoFrame, matrix: int, block: int) -> None:
    """Where neighbouring pixels have one colour, store the YUV triple that comes back as that colour.

    Rounding Y, Cb and Cr one by one errs by up to two levels in RGB. Over a busy picture that averages out; over
    an area of one colour it is a visible shift.
    """
    colours = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    if block == 2:
        corner = colours[::2, ::2]
        flat = (corner == colours[1::2, ::2]) & (corner == colours[::2, 1::2]) & (corner == colours[1::2, 1::2])
    else:
        corner = colours
        same = np.pad(colours[:, 1:] == colours[:, :-1], ((0, 0), (1, 1)), constant_values=colours.shape[1] == 1)
        flat = same[:, 1:] | same[:, :-1]
    if not flat.any():
        return
    triples = _nearest_triples(corner[flat], matrix)  # (N, 3)
    for index, plane in enumerate(frame.planes):
        values = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        if index == 0 and block == 2:
            cells = values.reshape(corner.shape[0], 2, corner.shape[1], 2)
            cells.transpose(0, 2, 1, 3)[flat] = triples[:, 0, None, None]
        else:
            values[flat] = triples[:, index]


def _nearest_triples(colours: np.ndarray, matrix: int) -> np.ndarray:
    """Packed RGB colours (N,) -> the best YUV triple of each, uint8 (N, 3). Each colour is searched for once."""
    table = _table(matrix)
    found = table[colours]
    missing = np.unique(colours[found == UNKNOWN])
    for part in np.array_split(missing, len(missing) // 256 + 1):
        table[part] = _search(part, matrix)
    found = table[colours]
    return np.stack([(found >> 16) & 255, (found >> 8) & 255, found & 255], axis=-1).astype(np.uint8)


@functools.lru_cache(maxsize=2)
def _table(matrix: int) -> np.ndarray:
    """Packed YUV triple by packed RGB colour. Zeros from the system: only the pages of colours in use take memory."""
    return np.zeros(1 << 24, np.uint32)


def _search(colours: np.ndarray, matrix: int) -> np.ndarray:
    """Try all triples near the exact one. The score is the squared error of R, G, B plus four times the squared sum
    of their errors: an error in brightness counts more than one in tint."""
    rgb = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=-1).astype(np.float64)  # (N, 3)
    forward = _rgb_to_yuv(matrix)
    offset = np.array([16.0, 128.0, 128.0])
    steps = np.array(list(product(range(-3, 4), repeat=3)))  # (343, 3)
    triples = np.clip(np.round(rgb @ forward.T + offset)[:, None] + steps, 1, 254)  # (N, 343, 3)
    decoded = np.clip(np.round((triples - offset) @ np.linalg.inv(forward).T), 0, 255)
    error = decoded - rgb[:, None]
    score = (error**2).sum(-1) + 4 * error.sum(-1) ** 2
    best = np.take_along_axis(triples, score.argmin(1)[:, None, None], axis=1)[:, 0].astype(np.uint32)
    return (best[:, 0] << 16) | (best[:, 1] << 8) | best[:, 2]


def _rgb_to_yuv(matrix: int) -> np.ndarray:
    """The (3, 3) matrix of limited-range Y'CbCr (ITU-R BT.601 and BT.709), in 8-bit steps."""
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    luma = np.array([red, green, blue])
    cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    return np.stack([luma * 219, cb * 224, cr * 224]) / 255


def tag(codec_context: av.VideoCodecContext, height: int) -> None:
    """Write into the stream which colour matrix and range `to_yuv` used, so that no reader has to guess."""
    bt709 = matrix_for(height) == BT709
    codec_context.color_range = LIMITED_RANGE
    codec_context.colorspace = 1 if bt709 else 6  # AVCOL_SPC_BT709, AVCOL_SPC_SMPTE170M (the BT.601 matrix)
    codec_context.color_primaries = 1  # RGB pictures have the primaries of BT.709
    codec_context.color_trc = 1
