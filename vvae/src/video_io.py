"""Video files with PyAV: frames one at a time, exact frame rates, sound carried over.

Frames are uint8 (H, W, 3) RGB, upright; a frame rate is a Fraction. Sound is copied as packets, or encoded again as AAC
where the container takes no other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from .colour import AS_STORED, Orientation, orientation, shown_size, tag, to_rgb, to_yuv
from .container import CODEC_ERRORS, Video, open_file, open_video
from .errors import VideoFileError, said_by
from .files import replaced

logger = logging.getLogger(__name__)

READ_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "3gp", "3g2", "f4v", "mkv", "webm", "avi", "divx", "wmv", "asf", "flv", "ogv", "gif"),
        *("ts", "mts", "m2ts", "mpg", "mpeg", "vob", "mxf", "y4m"),
    )
)
WRITE_SUFFIXES = (".mp4", ".mov", ".mkv")
MACROBLOCK = 16 * 16  # pixels that the encoder treats as one
CHROMA_IN_THE_MIDDLE = (
    "chromaloc=1"  # of its 2x2 pixels, as `to_yuv` averages; readers assume their left edge otherwise
)
FEWER_DIGITS = 1001  # largest denominator of a rate that is known to 24 bits: that of 30000/1001
REPRODUCIBLE = "mbtree=0"  # with it x264 reads memory that it has not written: one input had many different files


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a file say."""

    height: int  # as players show it: upright, and with square pixels
    width: int
    fps: Fraction
    audio: bool
    frames: int  # as the header says, 0 where it does not; only counting them is exact


def probe(path: str | Path) -> VideoInfo:
    """Size, frame rate and presence of sound. Raises VideoFileError."""
    with open_video(path) as video:
        frame = next(video.frames(), None)
        if frame is None:
            raise video.nothing_decoded()
        size, has_sound = shown_size(frame, orientation(frame), video.pixel_aspect), bool(video.container.streams.audio)
        return VideoInfo(*size, video.fps, has_sound, video.stream.frames)


def read_frames(
    path: str | Path, size: tuple[int, int] | None = None, keep_damaged: bool = False
) -> Iterator[np.ndarray]:
    """All frames in order, as players show them, scaled to `size` (height, width), one in memory at a time.

    A file with packets that cannot be decoded, or one that was cut off, raises VideoFileError at its end, unless
    keep_damaged is set; so does at once a film that changes its size while no `size` is given.
    """
    with open_video(path) as video:
        shape, rotation, upright = None, None, AS_STORED
        for number, frame in enumerate(video.frames()):
            if frame.rotation != rotation:  # which is cheap, but does not tell a picture from its mirror image
                rotation, upright = frame.rotation, orientation(frame)
            picture = _picture(video, frame, number, size, upright)
            if shape is not None and picture.shape != shape:
                old, new = (f"{height}x{width}" for height, width, _ in (shape, picture.shape))
                change = f"frame {number} is {new}, those before are {old} (height x width)"
                raise VideoFileError(path, f"changes its size: {change}; give a size, or a resolution")
            shape = picture.shape
            yield picture
        if shape is None:
            raise video.nothing_decoded()
        if not keep_damaged:
            video.require_intact()


def _picture(
    video: Video, frame: av.VideoFrame, number: int, size: tuple[int, int] | None, upright: Orientation
) -> np.ndarray:
    try:
        return to_rgb(frame, size, video.pixel_aspect, upright)
    except CODEC_ERRORS as error:
        reason = f"cannot be converted to RGB ({said_by(error)})"
        raise VideoFileError(video.path, f"frame {number} in pixel format {frame.format.name} {reason}") from error


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """All frames of a file, uint8 (T, H, W, 3), and its frame rate. Raises VideoFileError."""
    with open_video(path) as video:
        rate = video.fps
    return np.stack(list(read_frames(path))), rate


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: Fraction | int | float | str,
    audio_from: str | Path | None = None,
    quality: int = 6,
) -> int:
    """Write frames as H.264 (.mp4, .mov, .mkv), with the sound of `audio_from`; returns the number of frames.

    quality: the encoder's rate factor; lower is better. Frames of fewer than 256 pixels are stored without loss.
    Raises VideoFileError, also where the disk refuses; errors of the iterable itself come through.
    """
    path, rate = Path(path), _exact_rate(path, fps)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise VideoFileError(path, f"the name must end in {', '.join(WRITE_SUFFIXES)}")
    supply = _Supply(path, frames)
    first = next(supply, None)
    if first is None:
        raise VideoFileError(path, "there is no frame to write")
    try:
        with replaced(path) as temporary:
            return _write(temporary, chain([first], supply), first.shape[:2], rate, audio_from, quality)
    except CODEC_ERRORS as error:
        if error is supply.error or isinstance(error, VideoFileError):
            raise
        raise VideoFileError(path, f"cannot be written ({said_by(error)})") from error


class _Supply:
    """The frames to be written, checked. It remembers their own error, which is not one of writing."""

    def __init__(self, path: Path, frames: Iterable[np.ndarray]) -> None:
        self._path, self._frames = path, iter(frames)
        self._shape: tuple[int, ...] | None = None  # of the frames so far
        self.error: Exception | None = None

    def __iter__(self) -> _Supply:
        return self

    def __next__(self) -> np.ndarray:
        try:
            frame = np.asarray(next(self._frames))
        except CODEC_ERRORS as error:
            self.error = error
            raise
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise VideoFileError(self._path, f"each frame must be uint8 (H, W, 3), found {frame.dtype} {frame.shape}")
        if frame.shape != (self._shape or frame.shape):
            raise VideoFileError(self._path, f"frames of {frame.shape} cannot follow others of {self._shape}")
        self._shape = frame.shape
        return frame


def _exact_rate(path: Path, fps: Fraction | int | float | str) -> Fraction:
    """A rate as a fraction; floats, and the scalars of numpy and torch, become the nearest simple one."""
    try:
        is_scalar = hasattr(fps, "item") and not isinstance(fps, float)
        rate = Fraction(fps.item() if is_scalar else fps).limit_denominator(FEWER_DIGITS if is_scalar else 100_000)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise VideoFileError(path, f"fps must be a number or a fraction such as 30000/1001, found {fps!r}") from error
    if rate <= 0:
        raise VideoFileError(path, f"fps must be positive, found {fps}")
    return rate


def _write(
    path: Path,
    pictures: Iterable[np.ndarray],
    size: tuple[int, int],
    rate: Fraction,
    audio_from: str | Path | None,
    quality: int,
) -> int:
    count = 0
    with ExitStack() as stack:
        source = stack.enter_context(open_file(audio_from)) if audio_from is not None else None
        output = stack.enter_context(av.open(os.path.abspath(path), "w"))
        stream = _add_stream(output, size, rate, quality)
        audio = AudioCopy(source, output) if source is not None else None
        for picture in pictures:
            frame = to_yuv(picture)
            frame.pts, frame.time_base = count, 1 / rate
            output.mux(stream.encode(frame))
            count += 1
            if audio is not None:
                audio.write_until(count / rate)
        output.mux(stream.encode(None))
        if audio is not None:
            audio.finish()
    return count


def _add_stream(
    output: av.container.OutputContainer, size: tuple[int, int], rate: Fraction, quality: int
) -> av.VideoStream:
    stream = output.add_stream("libx264", rate=rate)
    stream.height, stream.width = size
    stream.codec_context.time_base = 1 / rate
    stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
    parameters = [REPRODUCIBLE, CHROMA_IN_THE_MIDDLE] if stream.pix_fmt == "yuv420p" else [REPRODUCIBLE]
    if size[0] * size[1] < MACROBLOCK:
        quality = 0  # without loss: over so few pixels the errors of the encoder do not average out
    stream.options = {"crf": str(quality), "preset": "medium", "x264-params": ":".join(parameters)}
    tag(stream.codec_context, size[0])
    return stream


class AudioCopy:
    """Writes the first sound stream of `source` to `output`, in step with the pictures; without sound, nothing."""

    def __init__(self, source: av.container.InputContainer, output: av.container.OutputContainer) -> None:
        self.output = output
        self._source = source
        sound = source.streams.best("audio")
        self._packets: Iterator[tuple[Fraction, av.Packet]] = iter(())
        self._next: tuple[Fraction, av.Packet] | None = None
        if sound is None:
            return
        if sound.codec_context is None:
            logger.warning("%s: the sound is in a format that FFmpeg has no decoder for, and left out", source.name)
            return
        if sound.codec_context.name in output.supported_codecs:
            stream = output.add_stream_from_template(sound)
            self._packets = self._copied(sound, stream)
        else:
            logger.warning("%s: the sound (%s) is encoded again as AAC", source.name, sound.codec_context.name)
            stream = output.add_stream("aac", rate=sound.codec_context.sample_rate)
            self._packets = self._encoded(sound, stream)
        self._next = next(self._packets, None)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound up to this time."""
        while self._next is not None and self._next[0] <= seconds:
            self.output.mux(self._next[1])
            self._next = next(self._packets, None)

    def finish(self) -> None:
        """Write what is left."""
        while self._next is not None:
            self.output.mux(self._next[1])
            self._next = next(self._packets, None)

    def _start(self, sound: av.AudioStream) -> int:
        """Time of the first picture in units of the sound stream, which becomes time 0 of the new file."""
        video = self._source.streams.best("video")
        if video is None or video.start_time is None:
            return 0
        return int(video.start_time * video.time_base / sound.time_base)

    def _read(self, sound: av.AudioStream) -> Iterator[av.Packet]:
        try:
            yield from self._source.demux(sound)
        except CODEC_ERRORS as error:
            logger.warning("%s: the sound is damaged and ends early (%s)", self._source.name, said_by(error))

    def _copied(self, sound: av.AudioStream, stream: av.AudioStream) -> Iterator[tuple[Fraction, av.Packet]]:
        start = self._start(sound)
        for packet in self._read(sound):
            if packet.dts is None or packet.size == 0:
                continue
            time = (packet.dts - start) * sound.time_base
            packet.dts -= start
            packet.pts = packet.dts if packet.pts is None else packet.pts - start
            packet.stream = stream
            yield time, packet

    def _encoded(self, sound: av.AudioStream, stream: av.AudioStream) -> Iterator[tuple[Fraction, av.Packet]]:
        start = self._start(sound)
        for packet in self._read(sound):
            try:
                frames = packet.decode()
            except CODEC_ERRORS:
                continue
            for frame in frames:
                frame.pts = None if frame.pts is None else frame.pts - start
                yield from self._timed(stream, frame)
        yield from self._timed(stream, None)

    def _timed(self, stream: av.AudioStream, frame: av.AudioFrame | None) -> Iterator[tuple[Fraction, av.Packet]]:
        for packet in stream.encode(frame):
            yield (packet.dts or 0) * packet.time_base, packet
