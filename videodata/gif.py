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
        times = [round(index * 100 / fps) for index in range(len(frames) + 1)]
        for index, picture in enumerate(frames):
            frame = _indexed(picture, palette)
            frame.pts, frame.time_base = times[index], Fraction(1, 100)
            packets = stream.encode(frame)
            for packet in packets:
                packet.duration = times[index + 1] - times[index]
            container.mux(packets)
        container.mux(stream.encode(None))


def _palette(frames: list[np.ndarray]) -> np.ndarray:
    """At most 256 colours, uint8 (N, 3): median cut, each colour moved to the exact mean of its pixels."""
    pixels = np.concatenate(frames[:: -(-len(frames) // PALETTE_FRAMES)])
    indices = np.asarray(Image.fromarray(pixels).quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)).ravel()
    counts = np.bincount(indices, minlength=256)
    sums = np.stack([np.bincount(indices, pixels[..., channel].ravel(), 256) for channel in range(3)], axis=-1)
    return np.round(sums[counts > 0] / counts[counts > 0, None]).astype(np.uint8)


def _indexed(picture: np.ndarray, palette: np.ndarray) -> av.VideoFrame:
    """Each pixel gets the nearest colour of the palette (Pillow's own search is 1.7 levels too dark on average)."""
    colours = palette.astype(np.float32)
    half_norms = (colours**2).sum(-1) / 2
    rows = [(row.astype(np.float32) @ colours.T - half_norms).argmax(-1) for row in picture]  # each (W,)
    argb = np.full((256, 4), 255, np.uint8)
    argb[: len(palette), 1:] = palette
    return av.VideoFrame.from_ndarray((np.stack(rows).astype(np.uint8), argb), format="pal8")
