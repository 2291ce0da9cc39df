"""Write clips as H.264 mp4 that plays everywhere, or as GIF."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

from videodata.color import tag, to_yuv
from videodata.container import CODEC_ERRORS, open_file
from videodata.errors import UserError, disk_errors, said_by
from videodata.files import atomic_path
from videodata.sound import SoundCopy

if TYPE_CHECKING:
    from torch import Tensor

    Frames = np.ndarray | Tensor | Iterable[np.ndarray]

CHROMA_IN_THE_MIDDLE = (
    "chromaloc=1"  # of its 2x2 pixels, as `to_yuv` averages; readers assume their left edge otherwise
)
REPRODUCIBLE = "mbtree=0"  # with it x264 reads memory that it has not written: one input had many different files
FEWER_DIGITS = 1001  # largest denominator of a rate that is known to 24 bits: that of 30000/1001
FASTEST = 50  # players show anything faster at 10 frames per second
PALETTE_FRAMES = 32  # how many frames, evenly spread, the palette is made from


def write_video(
    path: str | Path,
    frames: Frames,
    fps: int | float | str | Fraction,
    *,
    quality: int = 15,
    lossless: bool = False,
    sound_from: str | Path | None = None,
) -> Path:
    """Write an mp4 (H.264) or, by the suffix, a GIF; frame count, frame size and frame rate are kept exactly.

    frames: uint8 (T, H, W, 3) RGB, or float (3, T, H, W) in [-1, 1], or any iterable of uint8 (H, W, 3), of which one
    at a time is in memory. fps: an exact rate such as Fraction(30000, 1001). quality: the encoder's rate factor, lower
    is better and bigger. lossless stores RGB without loss (few players show it). Even sizes are stored as yuv420p,
    which every player reads; odd ones need yuv444p to keep their size. Raises UserError, also where the disk refuses;
    errors of the iterable itself come through. sound_from: a video whose sound is copied into the mp4.
    """
    path, rate = Path(path), exact_rate(fps)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"{path}: the name must end in .mp4 or .gif")
    supply = _Supply(_pictures(frames))
    first = next(supply, None)
    if first is None:
        raise UserError(f"{path}: there is no frame to write")
    pictures = chain([first], supply)
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".gif":
                write_gif(temporary, pictures, rate)
            else:
                _write_mp4(temporary, pictures, first.shape[:2], rate, quality, lossless, sound_from)
    except CODEC_ERRORS as error:
        if error is supply.error:
            raise
        if isinstance(error, OSError):
            with disk_errors(path):
                raise
        raise UserError(f"{path}: cannot be written ({said_by(error)})") from error
    return path


class _Supply:
    """The frames to be written. It remembers their own error, which is not one of writing."""

    def __init__(self, pictures: Iterator[np.ndarray]) -> None:
        self._pictures = pictures
        self.error: Exception | None = None

    def __iter__(self) -> _Supply:
        return self

    def __next__(self) -> np.ndarray:
        try:
            return next(self._pictures)
        except CODEC_ERRORS as error:
            self.error = error
            raise


def exact_rate(fps: int | float | str | Fraction) -> Fraction:
    """Frame rate as a fraction: "30000/1001" and Fraction stay exact, floats become the nearest simple fraction.

    So do the scalars of numpy and torch, which have fewer digits.
    """
    try:
        is_scalar = hasattr(fps, "item") and not isinstance(fps, float)
        rate = Fraction(fps.item() if is_scalar else fps).limit_denominator(FEWER_DIGITS if is_scalar else 100_000)
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f"fps must be a number or a fraction such as 30000/1001, found {fps!r}") from error
    if rate <= 0:
        raise UserError(f"fps must be positive, found {fps}")
    return rate


def _pictures(frames: Frames) -> Iterator[np.ndarray]:
    """Each frame as uint8 (H, W, 3), checked."""
    is_tensor = hasattr(frames, "is_floating_point")
    if is_tensor or (isinstance(frames, np.ndarray) and np.issubdtype(frames.dtype, np.floating)):
        import torch  # not above: the processes that only decode videos start without it, several times faster

        from videodata.pixels import to_uint8

        tensor = torch.as_tensor(frames)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError("frames to be written hold NaN or infinite values: there is no colour for these")
        frames = to_uint8(tensor) if tensor.is_floating_point() else tensor.cpu().numpy()
    if isinstance(frames, np.ndarray) and (frames.ndim != 4 or frames.shape[-1] != 3):
        raise UserError(f"frames must be uint8 (T, H, W, 3) or float (3, T, H, W), found shape {frames.shape}")
    shape = None
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != (shape or frame.shape):
            raise UserError(f"each frame must be uint8 {shape or '(H, W, 3)'}, found {frame.dtype} {frame.shape}")
        shape = frame.shape
        yield frame


def _write_mp4(
    path: Path,
    pictures: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: Fraction,
    quality: int,
    lossless: bool,
    sound_from: str | Path | None,
) -> None:
    height, width = size
    with ExitStack() as stack:
        source = None if sound_from is None else stack.enter_context(open_file(sound_from))
        options = {"movflags": "+faststart"}
        container = stack.enter_context(av.open(os.path.abspath(path), "w", format="mp4", options=options))
        stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=fps)
        stream.height, stream.width = height, width
        if lossless:
            stream.pix_fmt, stream.options = "rgb24", {"qp": "0"}
        else:
            stream.pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
            parameters = [REPRODUCIBLE, CHROMA_IN_THE_MIDDLE] if stream.pix_fmt == "yuv420p" else [REPRODUCIBLE]
            stream.options = {"crf": str(quality), "preset": "medium", "x264-params": ":".join(parameters)}
            tag(stream.codec_context, height)
        sound = None if source is None else SoundCopy(source, container)
        for index, picture in enumerate(pictures):
            if lossless:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            else:
                frame = to_yuv(picture, stream.pix_fmt)
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(stream.encode(frame))
            if sound is not None:
                sound.write_until(index / fps)
        container.mux(stream.encode(None))
        if sound is not None:
            sound.write_until(None)


def write_gif(path: Path, pictures: Iterable[np.ndarray], fps: Fraction) -> None:
    """Write uint8 (H, W, 3) frames. Times are rounded frame by frame, so the length stays right. Raises UserError."""
    if fps > FASTEST:
        raise UserError(f"a GIF shows at most {FASTEST} frames per second, found {fps}: write an mp4")
    frames = list(pictures)
    palette = _palette(frames)
    height, width = frames[0].shape[:2]
    with av.open(os.path.abspath(path), "w", format="gif") as container:
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
