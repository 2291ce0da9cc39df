"""The presentation times of all frames of a file, and whether they can be trusted to find a frame by seeking."""

from __future__ import annotations

import functools
from pathlib import Path

from av.error import FFmpegError

from videodata.decoding import Video, open_video

# One packet of these holds exactly one shown frame, so that packets can be counted in place of frames. Not among them:
# MPEG-4 part 2 (packed B-frames: two pictures in one packet, then an empty one) and VP8 (packets that show nothing).
ONE_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg", "prores", "ffv1", "gif"}


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
