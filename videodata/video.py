"""Read video files. The index of a frame is its position in a decode of the whole file, whatever the codec."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from videodata.color import to_rgb
from videodata.decoding import Video, open_video
from videodata.errors import VideoError
from videodata.frame_times import frame_times
from videodata.geometry import Size, as_size

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".ogv", ".3gp"}
)


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a video file say."""

    height: int  # upright, after rotation
    width: int
    fps: Fraction
    frames: int | None  # as the header claims; real files are off by one or more, count_frames knows
    codec: str
    pixel_format: str
    rotation: int  # degrees, counter-clockwise, already applied by all readers here


def probe(path: str | Path) -> VideoInfo:
    """Size, frame rate and format of a video file, from its header and first frame. Raises VideoError."""
    with open_video(path) as video:
        frame = next(video.frames(), None)
        if frame is None:
            raise VideoError(path, _nothing_decoded(video))
        upright = round(frame.rotation / 90) % 2 == 0
        return VideoInfo(
            height=frame.height if upright else frame.width,
            width=frame.width if upright else frame.height,
            fps=_fps(video),
            frames=video.stream.frames or None,
            codec=video.stream.codec_context.name,
            pixel_format=frame.format.name,
            rotation=frame.rotation,
        )


def count_frames(path: str | Path) -> int:
    """Number of frames that a full decode gives; without decoding where the packets tell. Raises VideoError."""
    with open_video(path):
        times = frame_times(path)
    if times is not None:
        return len(times)
    with open_video(path) as video:
        count = sum(1 for _ in video.frames())
        video.require_intact()
        if count == 0:
            raise VideoError(path, _nothing_decoded(video))
        return count


def iter_frames(
    path: str | Path,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
) -> Iterator[np.ndarray]:
    """Yield all frames, uint8 (H, W, 3) RGB, upright, with one frame in memory at a time.

    `size` (height, width) and `resize` ("crop", "squeeze", "pad", "none") are those of `geometry.place`. A file with
    packets that cannot be decoded raises VideoError at its end, unless keep_damaged is set; a file without any frame
    always does.
    """
    size = as_size(size)
    with open_video(path) as video:
        count = 0
        for frame in video.frames():
            count += 1
            yield _rgb(video, frame, size, resize)
        if count == 0:
            raise VideoError(path, _nothing_decoded(video))
        if not keep_damaged:
            video.require_intact()


def read_video(
    path: str | Path,
    start: int = 0,
    count: int | None = None,
    *,
    step: int = 1,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
) -> tuple[np.ndarray, Fraction]:
    """Frames start, start + step, ... of a video: uint8 (T, H, W, 3) RGB, and its frame rate.

    count: how many; None reads to the end. The answer equals the same slice of the whole video for every file; where
    it is safe the reader seeks, so that a short clip from a long file is cheap. Raises VideoError with one line for
    a file that is missing, no video, damaged (see `iter_frames`) or too short.
    """
    if start < 0 or step < 1 or (count is not None and count < 1):
        raise ValueError(f"start >= 0, step >= 1, count >= 1 are needed, found {start}, {step}, {count}")
    size = as_size(size)
    with open_video(path) as video:
        fps = _fps(video)
    frames = None
    if start > 0 and count is not None and not keep_damaged:
        frames = _read_by_seeking(path, start, count, step, size, resize)
    if frames is None:
        frames = _read_from_the_start(path, start, count, step, size, resize, keep_damaged)
    return np.stack(frames), fps


def _read_from_the_start(path, start, count, step, size, resize, keep_damaged) -> list[np.ndarray]:
    stop = None if count is None else start + (count - 1) * step + 1
    frames, decoded = [], 0
    with open_video(path) as video:
        for frame in islice(video.frames(), stop):
            if decoded >= start and (decoded - start) % step == 0:
                frames.append(_rgb(video, frame, size, resize))
            decoded += 1
        if decoded == 0:
            raise VideoError(path, _nothing_decoded(video))
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
    expected, frames = iter(times[start:stop]), []
    with open_video(path) as video:
        try:
            video.container.seek(times[start], stream=video.stream, backward=True)
        except FFmpegError:
            return None
        later = (frame for frame in video.frames() if frame.pts is None or frame.pts >= times[start])
        for offset, frame in enumerate(islice(later, stop - start)):
            if frame.pts != next(expected):  # a frame that the packets promised did not come: count from the start
                return None
            if offset % step == 0:
                frames.append(_rgb(video, frame, size, resize))
        if video.damaged_packets:
            return None
    return frames if len(frames) == count else None


def _rgb(video: Video, frame: av.VideoFrame, size: Size | None, resize: str) -> np.ndarray:
    try:
        return to_rgb(frame, size, resize)
    except FFmpegError as error:
        raise VideoError(video.path, f"pixel format {frame.format.name} cannot be converted to RGB") from error


def _fps(video: Video) -> Fraction:
    rate = video.stream.average_rate or video.stream.guessed_rate
    if not rate:
        logger.warning("%s does not say its frame rate: 25 frames per second are assumed", video.path)
        return Fraction(25)
    return Fraction(rate)


def _nothing_decoded(video: Video) -> str:
    return f"no frame can be decoded ({video.first_error or 'the stream is empty'})"
