"""Video files with PyAV: frames one at a time, exact frame rates, sound carried over.

Frames are uint8 (H, W, 3) RGB, upright; a frame rate is a Fraction. Sound is copied as packets, or encoded again as AAC
where the container takes no other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from .colour import tag, to_rgb, to_yuv
from .errors import VideoFileError
from .files import replaced

logger = logging.getLogger(__name__)

READ_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avi", "mp4", "m4v", "mov", "mkv", "webm", "mpg", "mpeg", "wmv"),
        *("flv", "gif", "ts", "mts", "ogv", "3gp", "vob", "y4m"),
    )
)
WRITE_SUFFIXES = (".mp4", ".mov", ".mkv")
MACROBLOCK = 16 * 16  # pixels that the encoder treats as one
CHROMA_IN_THE_MIDDLE = (
    "chromaloc=1"  # of its 2x2 pixels, as `to_yuv` averages; readers assume their left edge otherwise
)
REPRODUCIBLE = "mbtree=0"  # with it x264 reads memory that it has not written: one input had many different files


@dataclass(frozen=True)
class VideoInfo:
    """What the header and the first frame of a file say."""

    height: int
    width: int
    fps: Fraction
    audio: bool
    frames: int  # as the header says, 0 where it does not; only counting them is exact


def probe(path: str | Path) -> VideoInfo:
    """Size, frame rate and presence of sound. Raises VideoFileError."""
    with _open(path) as (container, stream):
        frame = next(_decode(container, stream, []), None)
        if frame is None:
            raise VideoFileError(path, "no frame can be decoded")
        upright = round(frame.rotation / 90) % 2 == 0
        height, width = (frame.height, frame.width) if upright else (frame.width, frame.height)
        return VideoInfo(height, width, _rate(stream, path), bool(container.streams.audio), stream.frames)


def read_frames(
    path: str | Path, size: tuple[int, int] | None = None, keep_damaged: bool = False
) -> Iterator[np.ndarray]:
    """All frames in order, scaled to `size` (height, width), one in memory at a time.

    A file with packets that cannot be decoded raises VideoFileError at its end, unless keep_damaged is set.
    """
    with _open(path) as (container, stream):
        problems: list[str] = []
        for frame in _decode(container, stream, problems):
            try:
                picture = to_rgb(frame, size)
            except FFmpegError as error:
                raise VideoFileError(path, f"pixel format {frame.format.name} cannot be converted") from error
            size = picture.shape[:2]  # of the first frame, should a stream change it
            yield picture
        if size is None:
            raise VideoFileError(
                path, f"no frame can be decoded ({problems[0] if problems else 'the stream is empty'})"
            )
        if problems and not keep_damaged:
            raise VideoFileError(path, f"damaged: {len(problems)} packet(s) cannot be decoded ({problems[0]})")


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """All frames of a file, uint8 (T, H, W, 3), and its frame rate. Raises VideoFileError."""
    with _open(path) as (_, stream):
        rate = _rate(stream, path)
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
    Raises VideoFileError.
    """
    path, rate = Path(path), Fraction(fps).limit_denominator(100_000)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise VideoFileError(path, f"the name must end in {', '.join(WRITE_SUFFIXES)}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoFileError(path, "there is no frame to write")
    count = 0
    with replaced(path) as temporary, av.open(str(temporary), "w") as output:
        stream = _add_stream(output, first.shape[:2], rate, quality)
        audio = AudioCopy(audio_from, output) if audio_from is not None else None
        for picture in chain([first], frames):
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


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A file and its best video stream."""
    path = Path(path)
    if not path.is_file():
        raise VideoFileError(path, "no such file")
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise VideoFileError(path, f"not a readable video ({error.strerror or error})") from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoFileError(path, "holds no video stream")
        yield container, stream


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, problems: list[str]
) -> Iterator[av.VideoFrame]:
    """Frames of a stream; packets that cannot be decoded are skipped and their errors noted in `problems`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            problems.append(str(error.strerror))
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except FFmpegError as error:
            problems.append(str(error.strerror))
            continue
        yield from frames


def _rate(stream: av.VideoStream, path: str | Path) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        logger.warning("%s does not say its frame rate: 25 frames per second are assumed", path)
        return Fraction(25)
    return Fraction(rate)


class AudioCopy:
    """Writes the first sound stream of `path` to `output`, in step with the pictures. Without sound it does nothing."""

    def __init__(self, path: str | Path, output: av.container.OutputContainer) -> None:
        self.output = output
        self._source = av.open(str(path))
        sound = self._source.streams.best("audio")
        self._packets: Iterator[tuple[Fraction, av.Packet]] = iter(())
        self._next: tuple[Fraction, av.Packet] | None = None
        if sound is None:
            return
        if sound.codec_context.name in output.supported_codecs:
            stream = output.add_stream_from_template(sound)
            self._packets = self._copied(sound, stream)
        else:
            logger.warning("%s: the sound (%s) is encoded again as AAC", path, sound.codec_context.name)
            stream = output.add_stream("aac", rate=sound.codec_context.sample_rate)
            self._packets = self._encoded(sound, stream)
        self._next = next(self._packets, None)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound up to this time."""
        while self._next is not None and self._next[0] <= seconds:
            self.output.mux(self._next[1])
            self._next = next(self._packets, None)

    def finish(self) -> None:
        """Write what is left, and close the source."""
        while self._next is not None:
            self.output.mux(self._next[1])
            self._next = next(self._packets, None)
        self._source.close()

    def _start(self, sound: av.AudioStream) -> int:
        """Time of the first picture in units of the sound stream, which becomes time 0 of the new file."""
        video = self._source.streams.best("video")
        if video is None or video.start_time is None:
            return 0
        return int(video.start_time * video.time_base / sound.time_base)

    def _read(self, sound: av.AudioStream) -> Iterator[av.Packet]:
        try:
            yield from self._source.demux(sound)
        except FFmpegError as error:
            logger.warning("%s: the sound is damaged and ends early (%s)", self._source.name, error.strerror)

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
            except FFmpegError:
                continue
            for frame in frames:
                frame.pts = None if frame.pts is None else frame.pts - start
                yield from self._timed(stream, frame)
        yield from self._timed(stream, None)

    def _timed(self, stream: av.AudioStream, frame: av.AudioFrame | None) -> Iterator[tuple[Fraction, av.Packet]]:
        for packet in stream.encode(frame):
            yield (packet.dts or 0) * packet.time_base, packet
