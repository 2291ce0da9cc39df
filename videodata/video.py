"""Read video files. The index of a frame is its position in a decode of the whole file, whatever the codec.

Files are decoded packet by packet, so that one damaged packet is noticed and named, not fatal. Where the packets alone
tell which frame is which, a short clip is found by seeking; everywhere else it is decoded from the start.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from videodata.color import to_rgb
from videodata.errors import VideoError
from videodata.resize import Size, as_size

logger = logging.getLogger(__name__)
VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".ogv", ".3gp"}
)
# One packet of these holds exactly one shown frame, so that packets can be counted in place of frames. Not among them:
# MPEG-4 part 2 (packed B-frames: two pictures in one packet, then an empty one) and VP8 (packets that show nothing).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "prores", "ffv1", "gif"}


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


def iter_frames(
    path: str | Path,
    size: int | Size | None = None,
    resize: str = "crop",
    keep_damaged: bool = False,
) -> Iterator[np.ndarray]:
    """Yield all frames, uint8 (H, W, 3) RGB, upright, with one frame in memory at a time.

    `size` (height, width) and `resize` ("crop", "squeeze", "pad", "none") are those of `resize.place`. A file with
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


class Video:
    """An open file and its video stream (the one that FFmpeg takes for the best where there are several)."""

    def __init__(self, path: str | Path, container: av.container.InputContainer) -> None:
        self.path = path
        self.container = container
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError(path, "holds no video stream")
        self.stream = stream
        # One thread: the packet in which an error occurs stays known, and loader workers do not fight for cores.
        self.stream.codec_context.thread_count = 1
        self._alpha_decoder = _alpha_decoder(stream)
        self.damaged_packets = 0
        self.first_error = ""

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from where the file stands to its end. Damaged packets are skipped and counted."""
        for packet in self._packets():
            try:
                frames = self._decode(packet)
            except FFmpegError as error:
                self._note(error)
                continue
            yield from frames

    def require_intact(self) -> None:
        """Raises VideoError if a damaged packet was met so far."""
        if self.damaged_packets:
            raise VideoError(
                self.path,
                f"damaged: {self.damaged_packets} packet(s) cannot be decoded ({self.first_error}); "
                "replace the file, or keep the rest with keep_damaged",
            )

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        if self._alpha_decoder is None:
            return packet.decode()
        return self._alpha_decoder.decode(packet if packet.size else None)

    def _packets(self) -> Iterator[av.Packet]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                self._note(error)
                return
            yield packet

    def _note(self, error: FFmpegError) -> None:
        self.damaged_packets += 1
        self.first_error = self.first_error or error.strerror or type(error).__name__


def _alpha_decoder(stream: av.VideoStream) -> av.CodecContext | None:
    """WebM keeps opacity in a second picture that only libvpx decodes; None for all other streams."""
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if decoder is None or stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        return None
    return av.CodecContext.create(decoder, "r")


@contextmanager
def open_video(path: str | Path) -> Iterator[Video]:
    """Open a video file for reading. Raises VideoError with one line if it is missing or is no video."""
    path = Path(path)
    if not path.exists():
        raise VideoError(path, "no such file")
    if path.is_dir():
        raise VideoError(path, "is a folder, not a video file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        raise VideoError(path, f"is not a readable video ({error.strerror})") from error
    except OSError as error:
        raise VideoError(path, f"cannot be opened ({error.strerror})") from error
    with container:
        yield Video(path, container)


@functools.lru_cache(maxsize=256)
def _cached_times(path: str, size: int, mtime_ns: int) -> tuple[int, ...] | None:
    with open_video(path) as video:
        return packet_times(video)


def frame_times(path: str | Path) -> tuple[int, ...] | None:
    """Presentation times in stream units, one per frame in order of display; None if the file must be decoded to know.

    They come from the packets alone, without decoding. AVI stores no presentation times, and times that are missing
    or occur twice do not say which frame is which: the answer is None for all of these.
    """
    status = Path(path).stat()
    return _cached_times(str(path), status.st_size, status.st_mtime_ns)


def packet_times(video: Video) -> tuple[int, ...] | None:
    """`frame_times` of an open file; reads it to its end."""
    if "avi" in video.container.format.name or video.stream.codec_context.name not in ONE_FRAME_PER_PACKET:
        return None
    times = []
    try:
        for packet in video.container.demux(video.stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            times.append(packet.pts)
    except FFmpegError:
        return None
    times.sort()
    distinct = all(a < b for a, b in zip(times, times[1:], strict=False))
    return tuple(times) if times and distinct else None
