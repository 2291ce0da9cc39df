"""Animated GIFs: one palette for the whole clip, times in hundredths of a second."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videodata.errors import UserError

FASTEST = 50  # players show anything faster at 10 frames per second
PALETTE_FRAMES = 32  # how many frames, evenly spread, the palette is made from


def write_gif(path: Path, pictures: Iterable[np.ndarray], fps: Fraction) -> None:
    """Write uint8 (H, W, 3) frames. Times are rounded frame by frame, so the length stays right. Raises UserError."""
    if fps > FASTEST:
        raise UserError(f"a GIF shows at most {FASTEST} frames per second, found {fps}: write an mp4")
    frames = list(pictures)
    palette = _palette(frames)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=100)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        for index, picture in enumerate(frames):
            frame = _indexed(picture, palette)
            frame.pts, frame.time_base = round(index * 100 / fps), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _palette(frames: list[np.ndarray]) -> Image.Image:
    chosen = frames[:: -(-len(frames) // PALETTE_FRAMES)]
    return Image.fromarray(np.concatenate(chosen)).quantize(256, Image.Quantize.MEDIANCUT)


def _indexed(picture: np.ndarray, palette: Image.Image) -> av.VideoFrame:
    image = Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    argb = np.full((256, 4), 255, np.uint8)
    argb[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.asarray(image), argb), format="pal8")
