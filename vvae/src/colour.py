"""Decoded pictures to RGB and back, with full-accuracy rounding and one colour matrix for both ways.

The default conversion of FFmpeg's scaler makes pictures 1.2 grey levels too dark. H, W: height and width.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

AREA, BICUBIC = 0x20, 0x4  # flags of the scaler, by value, because not every PyAV names them
ACCURATE = 0x2000 | 0x4000 | 0x40000  # full chroma on both sides, accurate rounding
BT709, BT601 = 1, 5  # colour matrices as the scaler numbers them
UNTAGGED = (0, 2)
LIMITED = 1  # Y in 16..235
LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}  # weights of red and blue (ITU-R BT.601 and BT.709)
SQUARE = Fraction(1)
BARELY_WIDER = 0.01  # pixels that are so nearly square are not worth the blur of another scaling
WIDEST = 4  # pixels beyond any that was ever in use: a damaged header

_thread = threading.local()


def matrix_for(height: int) -> int:
    """Colour matrix of a picture without a tag, as players assume it: BT.709 from 720 lines up, else BT.601."""
    return BT709 if height >= 720 else BT601


class Orientation(NamedTuple):
    """How a stored picture becomes the one that is shown: rows and columns exchanged first, then mirrored."""

    transposed: bool
    left_right: bool
    top_bottom: bool

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


def shown_size(frame: av.VideoFrame, upright: Orientation, pixel_aspect: Fraction = SQUARE) -> tuple[int, int]:
    """(height, width) at which players show a frame whose pixels are `pixel_aspect` times as wide as high."""
    height, width = frame.height, frame.width
    if pixel_aspect != 1 and abs(pixel_aspect - 1) >= BARELY_WIDER and 1 / WIDEST <= pixel_aspect <= WIDEST:
        width = max(1, round(width * pixel_aspect))
    return (width, height) if upright.transposed else (height, width)


def to_rgb(
    frame: av.VideoFrame,
    size: tuple[int, int] | None = None,
    pixel_aspect: Fraction = SQUARE,
    upright: Orientation = AS_STORED,
) -> np.ndarray:
    """Decoded frame -> uint8 (H, W, 3) as players show it, scaled to `size` (height, width).

    That is upright, with square pixels, and with opacity over black.
    """
    size = size or shown_size(frame, upright, pixel_aspect)
    height, width = size[::-1] if upright.transposed else size
    shrinks = height < frame.height or width < frame.width
    alpha = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
    yuv = not frame.format.is_rgb and frame.format.name != "pal8"
    pixels = (
        _reformatter()
        .reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if alpha else "rgb24",
            src_colorspace=matrix_for(frame.height) if yuv and frame.colorspace in UNTAGGED else None,
            interpolation=(AREA if shrinks else BICUBIC) | ACCURATE,
        )
        .to_ndarray()
    )
    if alpha:
        pixels = ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype(np.uint8)
    return upright.apply(pixels)


def to_yuv(rgb: np.ndarray) -> av.VideoFrame:
    """uint8 (H, W, 3) -> yuv420p, or yuv444p where a side is odd, limited range."""
    height, width = rgb.shape[:2]
    pixel_format = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    frame = _reformatter().reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"),
        format=pixel_format,
        dst_colorspace=matrix_for(height),
        dst_color_range=LIMITED,
        interpolation=AREA | ACCURATE,
    )
    if pixel_format == "yuv420p":
        _refine_flat_cells(rgb, frame)
        _keep_brightness(rgb, frame)
    return frame


def tag(context: av.VideoCodecContext, height: int) -> None:
    """Write matrix and range into the stream, so that no reader has to guess."""
    context.color_range = LIMITED
    context.colorspace = 1 if matrix_for(height) == BT709 else 6  # the stream's own numbers: BT.709, SMPTE 170M
    context.color_primaries = context.color_trc = 1


def _reformatter() -> VideoReformatter:
    if not hasattr(_thread, "reformatter"):
        _thread.reformatter = VideoReformatter()  # making one per frame costs more than the conversion
    return _thread.reformatter


def _refine_flat_cells(rgb: np.ndarray, frame: av.VideoFrame) -> None:
    """In 2x2 cells of one colour, store the YUV triple that comes back nearest to that colour.

    Rounding Y, Cb and Cr one by one errs by up to two levels in RGB; over an area of one colour that is visible.
    """
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    corner = packed[::2, ::2]
    flat = (corner == packed[1::2, ::2]) & (corner == packed[::2, 1::2]) & (corner == packed[1::2, 1::2])
    colours, inverse = np.unique(corner[flat], return_inverse=True)
    if not len(colours):
        return
    triples = np.concatenate([_nearest_triples(part, matrix_for(rgb.shape[0])) for part in _parts(colours)])[inverse]
    for index, plane in enumerate(frame.planes):
        values = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        if index == 0:
            cells = values.reshape(corner.shape[0], 2, corner.shape[1], 2)
            cells.transpose(0, 2, 1, 3)[flat] = triples[:, 0, None, None]
        else:
            values[flat] = triples[:, index]


def _keep_brightness(rgb: np.ndarray, frame: av.VideoFrame) -> None:
    """Move some luma samples by one level, so that the mean of the picture comes back as it was.

    Chroma is averaged over 2x2 pixels; where colours are saturated the result leaves the RGB cube and is clipped, which
    shifts the mean. The samples that move are spread by an ordered dither. Where many are at an end of the range and
    cannot move, one round does not suffice.
    """
    frame.colorspace, frame.color_range = matrix_for(rgb.shape[0]), LIMITED
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    rows, columns = -(-plane.height // 8), -(-plane.width // 8)
    threshold = np.tile(_dither(), (rows, columns))[: plane.height, : plane.width]
    for _ in range(4):
        shift = float(to_rgb(frame).mean() - rgb.mean()) * 219 / 255
        if abs(shift) < 0.015:  # what the 64 steps of the dither can put right
            return
        luma[:] = np.clip(luma + np.floor(threshold - shift), 1, 254)


def _dither() -> np.ndarray:
    """(8, 8) ordered-dither thresholds in (0, 1) (Bayer 1973)."""
    matrix = np.zeros((1, 1))
    for _ in range(3):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return (matrix + 0.5) / 64


def _parts(colours: np.ndarray) -> list[np.ndarray]:
    return np.array_split(colours, -(-len(colours) // 256))


def _nearest_triples(colours: np.ndarray, matrix: int) -> np.ndarray:
    """Packed colours (N,) -> YUV uint8 (N, 3): the best of all triples near the exact one.

    The score is the squared error of R, G, B plus four times the squared sum of their errors: a shift in brightness
    counts more than one in tint.
    """
    rgb = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=-1).astype(np.float64)  # (N, 3)
    red, blue = LUMA[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    cb, cr = ([0, 0, 1] - luma) / (2 * (1 - blue)), ([1, 0, 0] - luma) / (2 * (1 - red))
    forward = np.stack([luma * 219, cb * 224, cr * 224]) / 255
    offset = np.array([16.0, 128.0, 128.0])
    steps = np.array(list(product(range(-3, 4), repeat=3)))  # (343, 3)
    triples = np.clip(np.round(rgb @ forward.T + offset)[:, None] + steps, 1, 254)  # (N, 343, 3)
    decoded = np.clip(np.round((triples - offset) @ np.linalg.inv(forward).T), 0, 255)
    error = decoded - rgb[:, None]
    score = (error**2).sum(-1) + 4 * error.sum(-1) ** 2
    return np.take_along_axis(triples, score.argmin(1)[:, None, None], axis=1)[:, 0].astype(np.uint8)
