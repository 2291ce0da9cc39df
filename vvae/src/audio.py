"""The sound of one file carried into another: packets as they are, or AAC where the container takes no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError

logger = logging.getLogger(__name__)


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
