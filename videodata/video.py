"""Read video files. The index of a frame is its position in a decode of the whole file, whatever the codec.

Where the times of the packets tell which frame is which, a short clip is found by seeking; everywhere else it is
decoded from the start. Files are opened, and their errors caught, in container.py.
"""

from __future__ import annotations

import functools
import logging
import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import av
import numpy as np

from videodata.color import AS_STORED, orientation, shown_size, to_rgb
from videodata.container import CODEC_ERRORS, Video, damaged, open_video
from videodata.errors import UserError, VideoError, said_by
from videodata.resize import Size, as_size
from videodata.stretch import Stretch

logger = logging.getLogger(__name__)
# The one list of what counts as a video file in a folder.
VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "3gp", "3g2", "f4v", "mkv", "webm", "avi", "divx", "wmv", "asf", "flv", "ogv", "gif"),
        *("ts", "mts", "m2ts", "mpg", "mpeg", "vob", "mxf", "y4m"),
    )
)
# One packet of these holds exactly one shown frame, so that packets can be counted in place of frames. Not among them:
# MPEG-4 part 2 (packed B-frames: two pictures in one packet, then an empty one) and VP8 (packets that show nothing).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "prores", "ffv1", "gif"}
CHECKED = 4  # first frames of a file that are decoded to see whether they are those that its packets promise
SAME_RATE = 0.01  # rates that differ by less are one: times are rounded to milliseconds in some containers
EVERY_FRAME = range(sys.maxsize)
GAP = 1.75  # of the usual time between two frames: more than this and one may be missing, or the rate varies


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a video file say."""

    height: int  # as players show it: upright, and with square pixels
    width: int
    fps: Fraction
    frames: int | None  # as the header claims; real files are off by one or more, count_frames knows
    codec: str
    pixel_format: str
    rotation: int  # degrees, counter-clockwise, already applied by all readers here
    mirrored: bool  # applied too
    pixel_aspect: Fraction  # width of a stored pixel by its height, applied too
    seconds: float | None  # as the header says or FFmpeg estimates; None where neither knows


def probe(path: str | Path | Stretch) -> VideoInfo:
    """Size, frame rate and format of a video file, from its header and first frame. Raises VideoError."""
    with open_video(path) as video:
        frame = next(video.frames(), None)
        if frame is None:
            raise video.nothing_decoded()
        upright = orientation(frame)
        height, width = shown_size(frame, upright, video.pixel_aspect)
        return VideoInfo(
            height=height,
            width=width,
            fps=video.fps,
            frames=video.stream.frames or None,
            codec=video.stream.codec_context.name,
            pixel_format=frame.format.name,
            rotation=frame.rotation,
            mirrored=upright.is_mirrored,
            pixel_aspect=video.pixel_aspect,
            seconds=video.seconds,
        )


def count_frames(path: str | Path | Stretch) -> int:
    """Number of frames that a full decode gives; without decoding where the packets tell. Raises VideoError."""
    with open_video(path) as video:
        table = _table_of(path)
        if table is not None:
            if table.lost:
                raise damaged(path, table.lost)
            return len(table.times)
        count = sum(1 for _ in video.frames())
        if count == 0:
            raise video.nothing_decoded()
        video.require_intact()
        return count


def promised_frames(path: str | Path | Stretch) -> int | None:
    """Number of frames by the header alone: as it counts them, or its length times its rate; None where it has neither.

    `count_frames` knows; this is for estimates, and costs no decoding. Raises VideoError.
    """
    with open_video(path) as video:
        if video.stream.frames:
            return video.stream.frames
        return None if video.seconds is None else round(video.seconds * video.fps)


def read_video(
    path: str | Path | Stretch,
    start: int = 0,
    count: int | None = None,
    *,
    step: int = 1,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
) -> tuple[np.ndarray, Fraction]:
    """Frames start, start + step, ... of a video: uint8 (T, H, W, 3) RGB, and its frame rate.

    path: a file, or a stretch of one. count: how many; None reads to the end. The answer equals the same slice of the
    whole video for every file; where it is safe the reader seeks, so that a short clip from a long file is cheap.
    Raises VideoError with one line for a file that is missing, no video, damaged (see `iter_frames`) or too short, or
    whose frames have several sizes while no `size` is given.
    """
    if start < 0 or step < 1 or (count is not None and count < 1):
        raise ValueError(f"start >= 0, step >= 1, count >= 1 are needed, found {start}, {step}, {count}")
    size = as_size(size)
    with open_video(path) as video:
        fps = video.fps
    frames = None
    if start > 0 and count is not None and not keep_damaged:
        frames = _read_by_seeking(path, start, count, step, size, resize)
    if frames is None:
        frames = _read_from_the_start(path, start, count, step, size, resize, keep_damaged)
    return np.stack(frames), fps


def read_scaled(
    film: str | Path | Stretch, start: int, count: int | None, step: int, size: Size | None, resize: str
) -> np.ndarray:
    """Frames of `read_video`, scaled by the decoder: it turns YUV into small RGB in one pass, in half the time of two.

    Raises VideoError, also for a size that does not fit the film.
    """
    try:
        return read_video(film, start, count, step=step, size=size, resize=resize)[0]
    except VideoError:
        raise
    except UserError as error:
        raise VideoError(film, str(error)) from error


def iter_frames(
    path: str | Path,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
) -> Iterator[np.ndarray]:
    """Yield all frames, uint8 (H, W, 3) RGB, upright, with one frame in memory at a time.

    `size` (height, width) and `resize` ("crop", "squeeze", "pad", "none") are those of `resize.place`. A file with
    packets that cannot be decoded, or one that was cut off, raises VideoError at its end, unless keep_damaged is set; a
    file without any frame always does.
    """
    with open_video(path) as video:
        yield from frames_of(video, size, resize, keep_damaged)


def frames_of(
    video: Video,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
    wanted: range = EVERY_FRAME,
) -> Iterator[np.ndarray | None]:
    """`iter_frames` of a file that is open, and stands at its beginning.

    None stands in the place of frames, but the first, whose numbers are not `wanted`: they are decoded, but converting
    them would cost more than that.
    """
    pictures, count = _Pictures(video, as_size(size), resize), 0
    for frame in video.frames():
        yield pictures.rgb(frame, count) if count in wanted or count == 0 else None  # the first settles the size of all
        count += 1
    if count == 0:
        raise video.nothing_decoded()
    if not keep_damaged:
        video.require_intact()


def iter_stretch(path: str | Path, start: float, end: float) -> Iterator[np.ndarray]:
    """Frames that are shown from `start` to `end` seconds after the beginning of a video, what can be decoded of them.

    By the times of the frames: a rate that varies, and frames that are missing, move nothing.
    """
    with open_video(path) as video:
        pictures = _Pictures(video, None, "crop")
        for count, (seconds, frame) in enumerate(_timed(video)):
            if seconds >= end:
                return
            if seconds >= start:
                yield pictures.rgb(frame, count)


def stretch_rate(path: str | Path, start: float, end: float) -> Fraction:
    """Frames per second between two times of a video, which is another than the video's where its rate varies."""
    with open_video(path) as video:
        usual, unit = video.fps, video.stream.time_base
        first = video.stream.start_time or 0
        times = sorted(
            {packet.pts - first for packet in video.packets() if packet.pts is not None and not packet.is_discard}
        )
    inside = times[bisect_left(times, start / unit) : bisect_left(times, end / unit)]
    if len(inside) < 2:
        return usual
    rate = (len(inside) - 1) / ((inside[-1] - inside[0]) * unit)
    return usual if not video.stores_times or abs(rate / usual - 1) < SAME_RATE else rate


def _timed(video: Video) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Frames with their seconds after the beginning. Where no times are stored (AVI), all frames last equally long."""
    first, unit, fps = video.stream.start_time or 0, video.stream.time_base, video.fps
    for count, frame in enumerate(video.frames()):
        timed = video.stores_times and frame.pts is not None
        yield (frame.pts - first) * unit if timed else count / fps, frame


def _read_from_the_start(path, start, count, step, size, resize, keep_damaged) -> list[np.ndarray]:
    stop = None if count is None else start + (count - 1) * step + 1
    frames, decoded = [], 0
    with open_video(path) as video:
        pictures = _Pictures(video, size, resize)
        for frame in islice(video.frames(), stop):
            if decoded >= start and (decoded - start) % step == 0:
                frames.append(pictures.rgb(frame, decoded))
            decoded += 1
        if decoded == 0:
            raise video.nothing_decoded()
        if not keep_damaged:
            video.require_intact()
    if not frames or (count is not None and len(frames) < count):
        raise VideoError(path, f"has {decoded} frames, but frame {(stop or start + 1) - 1} was asked for")
    return frames


def _read_by_seeking(path, start, count, step, size, resize) -> list[np.ndarray] | None:
    """The same frames by way of the nearest key frame; None where the file turns out not to allow it."""
    times = frame_times(path)
    stop = start + (count - 1) * step + 1
    if times is None or stop > len(times):
        return None
    frames: list[np.ndarray] = []
    with open_video(path) as video:
        try:
            video.container.seek(times[start], stream=video.stream, backward=True)
        except CODEC_ERRORS:  # PyAV's errors and others: what cannot be sought in is read from its start
            return None
        pictures, number = _Pictures(video, size, resize), None
        for frame in video.frames():
            if number is None:
                number = stop if frame.pts is None else bisect_left(times, frame.pts)
            # The seek went too far, or a frame that was promised did not come: count from the start.
            if number > start + len(frames) * step or frame.pts != times[number]:
                return None
            if number == start + len(frames) * step:
                frames.append(pictures.rgb(frame, number))
            if len(frames) == count:
                break
            number += 1
        if video.damaged_packets:
            return None
    return frames if len(frames) == count else None


class _Pictures:
    """Turns the frames of a film into pictures of one size."""

    def __init__(self, video: Video, size: Size | None, resize: str) -> None:
        self._video, self._size, self._resize = video, size, resize
        self.shape: tuple[int, ...] | None = None  # of the pictures so far
        self._rotation: int | None = None
        self._upright = AS_STORED

    def rgb(self, frame: av.VideoFrame, number: int) -> np.ndarray:
        """Frame `number` of the film as uint8 (H, W, 3) RGB. Raises VideoError where it has another size."""
        path = self._video.path
        if frame.rotation != self._rotation:  # which is cheap, but does not tell a picture from its mirror image
            self._rotation, self._upright = frame.rotation, orientation(frame)
        try:
            picture = to_rgb(frame, self._size, self._resize, self._video.pixel_aspect, self._upright)
        except CODEC_ERRORS as error:
            reason = f"cannot be converted to RGB ({said_by(error)})"
            raise VideoError(path, f"frame {number} in pixel format {frame.format.name} {reason}") from error
        if self.shape is not None and picture.shape != self.shape:
            old, new = (f"{height}x{width}" for height, width, _ in (self.shape, picture.shape))
            raise VideoError(
                path, f"changes its size: frame {number} is {new}, those before are {old} (height x width); give a size"
            )
        self.shape = picture.shape
        return picture


class _Table(NamedTuple):
    """What a pass over the packets told."""

    times: tuple[int, ...]  # of the frames that the decoder gives, in units of the stream, in order of display
    lost: str  # what is missing at the end of the file, "" for nothing


def frame_times(path: str | Path | Stretch) -> tuple[int, ...] | None:
    """Presentation times in stream units, one per frame in order of display; None if the file must be decoded to know.

    They come from the packets, with next to no decoding. Times that are missing or occur twice do not say which frame
    is which: the answer is None for these, as for AVI, which stores none.
    """
    table = _table_of(path)
    return None if table is None else table.times


def _table_of(path: str | Path | Stretch) -> _Table | None:
    if isinstance(path, Stretch):
        return _make_table(path, path.size, 0)
    status = Path(path).stat()
    return _make_table(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _make_table(path: str | Stretch, size: int, mtime_ns: int) -> _Table | None:
    promised = []
    with open_video(path) as video:
        if not video.stores_times or video.stream.codec_context.name not in ONE_FRAME_PER_PACKET:
            return None
        for packet in video.packets():
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            promised.append(packet.pts)
        if video.damaged_packets:
            return None
        lost = video.lost
    times = _decoded_times(path, sorted(promised))
    if times is None:
        return None
    if missing := len(promised) - len(times):
        logger.warning("%s: %d of its %d frames cannot be decoded", path, missing, len(promised))
    return _Table(tuple(times), lost)


def _decoded_times(path: str | Stretch, promised: list[int]) -> list[int] | None:
    """The times that packets promise, less those of which no decoder makes a frame; None if they are no index.

    A decoder starts at a key frame: what a cut left before it, or shows before it and built on what is gone, never
    comes. Where packets are missing later on, it passes over frames that it cannot build or cannot put in order. So the
    first few frames are compared, and a film with a gap in its times is decoded once as a whole.
    """
    if not _is_rising(promised):
        return None
    steps = [after - before for before, after in zip(promised, promised[1:], strict=False)]
    has_gap = bool(steps) and max(steps) > GAP * median(steps)
    with open_video(path) as video:
        given = [frame.pts for frame in islice(video.frames(), None if has_gap else CHECKED)]
        if not given or None in given or video.damaged_packets:
            return None
    if has_gap:
        return given if _is_rising(given) else None
    rest = promised[bisect_left(promised, given[0]) :]
    return rest if rest[:CHECKED] == given else None


def _is_rising(times: list[int]) -> bool:
    return all(before < after for before, after in zip(times, times[1:], strict=False))
