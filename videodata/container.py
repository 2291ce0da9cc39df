"""An open video file: the film in it, packet by packet, and what it lacks.

Files are decoded packet by packet, so that one damaged packet is noticed and named, not fatal. What PyAV raises about
other people's files becomes a VideoError here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from videodata.errors import VideoError, said_by
from videodata.stretch import Stretch, open_bytes
from videodata.torn_files import ends_in_a_piece

logger = logging.getLogger(__name__)
# What PyAV raises about a file: not its own errors alone, but also those of text that is no UTF-8, of numbers out of
# range, of pictures too large for the memory, and of Python's own classes that it derives some of its errors from.
CODEC_ERRORS = (
    FFmpegError, OSError, EOFError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError, TypeError
)  # fmt: skip
# Containers that say in their header how long the film is, and others that tell when their last packet is incomplete.
WITH_LENGTH = {"matroska", "webm", "flv", "mov", "mp4", "mxf", "asf"}
WITHOUT_LENGTH = {"mpegts", "mpeg", "ogg", "asf", "gif"}
LISTS = {"concat", "hls", "dash", "webm_dash_manifest", "imf", "sdp"}  # texts, whatever their suffix, that name others
# Headers are rough: rates are rounded, the last frame's length is a guess. What lacks less is not called damaged.
SECONDS_MISSING = 0.25
FRAMES_MISSING = 2


@contextmanager
def open_video(path: str | Path | Stretch) -> Iterator[Video]:
    """Open a video file for reading. Raises VideoError with one line if it is missing or is no video."""
    with open_file(path) as container:
        yield Video(path if isinstance(path, Stretch) else Path(path), container)


@contextmanager
def open_file(path: str | Path | Stretch) -> Iterator[av.container.InputContainer]:
    """Open a file of pictures or of sound. Raises VideoError with one line."""
    if isinstance(path, Stretch):
        size = path.size
    else:
        path = Path(path)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise VideoError(path, "no such file") from error
        except (OSError, ValueError) as error:
            raise VideoError(path, f"cannot be opened ({said_by(error)})") from error
        if path.is_dir():
            raise VideoError(path, "is a folder, not a video file")
    if size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        # An absolute path: FFmpeg takes `12:30 clip.mp4` for an address. Tags are in any encoding and not used here.
        place = open_bytes(path) if isinstance(path, Stretch) else os.path.abspath(path)
        container = av.open(place, metadata_errors="replace")
    except PermissionError as error:
        raise VideoError(path, f"cannot be opened ({said_by(error)})") from error
    except CODEC_ERRORS as error:
        raise VideoError(path, f"is not a readable video ({said_by(error)})") from error
    with container:
        if LISTS & set(container.format.name.split(",")):
            raise VideoError(path, "is a list of other files, not a video; name these")
        yield container


def damaged(path: str | Path | Stretch, what: str) -> VideoError:
    """The error of a film that lacks something."""
    return VideoError(path, f"damaged: {what}; replace the file, or keep the rest with keep_damaged")


class Video:
    """An open file and its film: the stream that FFmpeg takes for the best where there are several."""

    def __init__(self, path: Path | Stretch, container: av.container.InputContainer) -> None:
        self.path = path
        self.container = container
        self.damaged_packets = 0
        self.first_error = ""
        self.lost = ""  # what is missing at the end of the file, once the end was reached
        self._end = 0  # of the last frame so far, in units of the stream
        self._found = 0  # packets that hold something
        self._torn = False
        try:
            self.stream = _film(path, container)
            # One thread: the packet in which an error occurs stays known, and loader workers do not fight for cores.
            self.stream.codec_context.thread_count = 1
            self.pixel_aspect = Fraction(self.stream.sample_aspect_ratio or 1)  # width of a pixel by its height
            self._alpha_decoder = _alpha_decoder(self.stream)
        except VideoError:  # there are projects in which it is a ValueError
            raise
        except CODEC_ERRORS as error:
            raise VideoError(path, f"is not a readable video ({said_by(error)})") from error

    @property
    def fps(self) -> Fraction:
        """Average frames per second: of a rate that varies it says nothing about single frames."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            logger.warning("%s does not say its frame rate: 25 frames per second are assumed", self.path)
            return Fraction(25)
        return Fraction(rate)

    @property
    def seconds(self) -> float | None:
        """How long the file is by its header, or by what FFmpeg estimates; None where neither is known."""
        return self.container.duration / av.time_base if self.container.duration else None

    @property
    def stores_times(self) -> bool:
        """Whether the file says when each frame is shown. AVI does not: there, all frames last equally long."""
        return "avi" not in self.container.format.name

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from where the file stands to its end. Damaged packets are skipped and counted."""
        for packet in self.packets():
            try:
                frames = self._decode(packet)
            except CODEC_ERRORS as error:
                self._note(error)
                continue
            yield from frames

    def packets(self) -> Iterator[av.Packet]:
        """Packets of the film from where the file stands to its end, in the order of the file."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except CODEC_ERRORS as error:
                self._note(error)
                break
            if packet.size:
                self._found += 1
                self._torn = packet.is_corrupt
                self._end = max(self._end, _end_of(packet))
            yield packet
        self.lost = self._missing_at_end()

    def require_intact(self) -> None:
        """Raises VideoError if a damaged packet was met so far, or the end of a file that was cut off."""
        if self.damaged_packets:
            raise damaged(self.path, f"{self.damaged_packets} packet(s) cannot be decoded ({self.first_error})")
        if self.lost:
            raise damaged(self.path, self.lost)

    def nothing_decoded(self) -> VideoError:
        """The error of a file without a single frame."""
        return VideoError(self.path, f"no frame can be decoded ({self.first_error or 'the stream is empty'})")

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        if self._alpha_decoder is None:
            return packet.decode()
        return self._alpha_decoder.decode(packet if packet.size else None)

    def _note(self, error: Exception) -> None:
        self.damaged_packets += 1
        self.first_error = self.first_error or said_by(error)

    def _missing_at_end(self) -> str:
        """Why the file was cut off, as far as it tells; "" for a whole one. To be asked at its end."""
        if not self.stores_times:  # headers of AVI promise too much, and what is there of a broken one is used
            return ""
        names, end = set(self.container.format.name.split(",")), float(self._end * self.stream.time_base)
        if self._torn or names & WITHOUT_LENGTH and ends_in_a_piece(self.path, names):
            return f"cut off within a packet, after {end:.2f} seconds"
        if not names & WITH_LENGTH:
            return ""
        tolerated = max(SECONDS_MISSING, FRAMES_MISSING / (self.stream.average_rate or 1))
        known = self.seconds or 0
        if known - end > tolerated and known - self._last_of_all() > tolerated:
            return f"cut off after {end:.2f} of the {known:.2f} seconds that its header says"
        # One frame is less than what is tolerated. Where the header counts them, they may all stand before the cut.
        all_are_here = 0 < self.stream.frames <= self._found
        if not all_are_here and ends_in_a_piece(self.path, names):
            return f"cut off after {end:.2f} seconds, where its header says that more follows"
        return ""

    def _last_of_all(self) -> Fraction:
        """When the last of all streams ends, in seconds: sound is often longer than the pictures. Reads the file."""
        last = Fraction(0)
        with open_file(self.path) as again:
            try:
                for packet in again.demux():
                    last = max(last, _end_of(packet) * packet.time_base)
            except CODEC_ERRORS:  # the end of what can be read, which is what was asked for
                return last
        return last


def _end_of(packet: av.Packet) -> int:
    return 0 if packet.pts is None else packet.pts + (packet.duration or 0)


def _film(path: Path | Stretch, container: av.container.InputContainer) -> av.VideoStream:
    """The best stream of pictures that move: the cover of a song is a stream of one picture."""
    best = container.streams.best("video")
    if best is None:
        raise VideoError(path, "holds no video stream")
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise VideoError(path, "holds sound with a cover picture, no video")
    films = [stream for stream in films if stream.codec_context is not None]
    if not films:
        raise VideoError(path, "its pictures are in a format that FFmpeg has no decoder for")
    return next((film for film in films if film.index == best.index), films[0])


def _alpha_decoder(stream: av.VideoStream) -> av.CodecContext | None:
    """WebM keeps opacity in a second picture that only libvpx decodes; None for all other streams."""
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if decoder is None or stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        return None
    return av.CodecContext.create(decoder, "r")
