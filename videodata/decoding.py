"""Open a video file and decode it packet by packet, so that one damaged packet is noticed and named, not fatal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.error import FFmpegError

from videodata.errors import VideoError


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
