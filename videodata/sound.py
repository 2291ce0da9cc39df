"""The sound of a video carried over to another one: its packets are copied, or encoded again as AAC."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction

import av

from videodata.container import CODEC_ERRORS
from videodata.errors import said_by

logger = logging.getLogger(__name__)


class SoundCopy:
    """Writes the first sound stream of `source` to `output`, in step with the pictures; without sound, nothing.

    The time of the source's first picture becomes time 0, which is when the new film begins.
    """

    def __init__(self, source: av.container.InputContainer, output: av.container.OutputContainer) -> None:
        self._source, self._output = source, output
        self._packets: Iterator[tuple[Fraction, av.Packet]] = iter(())
        sound = source.streams.best("audio")
        if sound is not None and sound.codec_context is None:
            logger.warning("%s: the sound is in a format that FFmpeg has no decoder for, and left out", source.name)
        elif sound is not None:
            self._packets = self._packets_of(sound)
        self._next = next(self._packets, None)

    def write_until(self, seconds: Fraction | None) -> None:
        """Write the sound up to this time; None: all that is left."""
        while self._next is not None and (seconds is None or self._next[0] <= seconds):
            self._output.mux(self._next[1])
            self._next = next(self._packets, None)

    def _packets_of(self, sound: av.AudioStream) -> Iterator[tuple[Fraction, av.Packet]]:
        context = sound.codec_context
        # PCM is allowed in mp4, but few players know that, and files of it often do not name their channels
        if context.name in self._output.supported_codecs and not context.name.startswith("pcm_"):
            return self._copied(sound, self._output.add_stream_from_template(sound))
        logger.warning("%s: the sound (%s) is encoded again as AAC", self._source.name, context.name)
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        return self._encoded(sound, self._output.add_stream("aac", rate=context.sample_rate, layout=layout))

    def _start(self, sound: av.AudioStream) -> int:
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
            except CODEC_ERRORS:  # a damaged packet is a moment of silence
                continue
            for frame in frames:
                frame.pts = None if frame.pts is None else frame.pts - start
                yield from ((part.dts * part.time_base, part) for part in stream.encode(frame))
        yield from ((part.dts * part.time_base, part) for part in stream.encode(None))
