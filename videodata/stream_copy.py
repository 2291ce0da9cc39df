"""A stretch of a film as a file of its own, without encoding it again: its packets, from a key frame on."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videodata.container import CODEC_ERRORS, Video, open_video
from videodata.errors import VideoError
from videodata.video import ONE_FRAME_PER_PACKET, frame_times, probe, read_video

IN_MP4 = {"h264", "hevc", "vp9", "av1", "libdav1d"}  # what mp4 holds and players show
ROUNDED = Fraction(1, 1000)  # seconds: how exactly some containers store a time


def copy_stretch(path: Path, start: int, frames: np.ndarray, target: Path) -> bool:
    """Copy the packets of `frames`, which are frame `start` and those after it, to an mp4; whether that was possible.

    It is where the stretch begins at a key frame, no packet of another stretch is stored among its own, and all frames
    last equally long. The copy is decoded and compared with `frames` (T, H, W, 3): where anything differs (a rotation
    that got lost, pixels that need a frame from before) there is no copy.
    """
    try:
        info = probe(path)
        if (info.height, info.width) != frames.shape[1:3]:  # resized: nothing could be equal
            return False
        times = frame_times(path)
        if times is None or start + len(frames) > len(times):
            return False
        with open_video(path) as video:
            codec, wanted = video.stream.codec_context.name, times[start : start + len(frames)]
            if codec not in IN_MP4 & ONE_FRAME_PER_PACKET or not _is_steady(wanted, video):
                return False
            packets = _packets_of(video, wanted)
            if not packets:
                return False
            _write(video, packets, target)
        copied, rate = read_video(target)
        if rate == info.fps and copied.shape == frames.shape and np.array_equal(copied, frames):
            return True
    except (VideoError, *CODEC_ERRORS):  # what cannot be copied is encoded
        pass
    target.unlink(missing_ok=True)
    return False


def _is_steady(times: tuple[int, ...], video: Video) -> bool:
    """Whether each frame follows the one before after the same time, but for rounding."""
    unit = Fraction(video.stream.time_base)
    off = (abs((time - times[0]) * unit - count / video.fps) for count, time in enumerate(times))
    return max(off) <= max(unit, ROUNDED)


def _packets_of(video: Video, times: tuple[int, ...]) -> list[av.Packet]:
    """The packets shown at these times, if they follow each other in the file from a key frame on; else none."""
    wanted, packets = set(times), []
    for packet in video.packets():
        if packet.size and packet.pts in wanted:
            if not packets and not packet.is_keyframe:
                return []
            packets.append(packet)
        elif packet.size and packets and len(packets) < len(wanted):
            return []  # one of another stretch is stored between them
    return packets if len(packets) == len(wanted) else []


def _write(video: Video, packets: list[av.Packet], target: Path) -> None:
    """The packets with exact times: frame k is shown at k / fps, and none is decoded after it is shown."""
    places = {time: place for place, time in enumerate(sorted(packet.pts for packet in packets))}
    shown = [places[packet.pts] for packet in packets]
    delay = max(number - place for number, place in enumerate(shown))
    with av.open(os.path.abspath(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream_from_template(video.stream)
        stream.time_base = 1 / video.fps
        for number, (packet, place) in enumerate(zip(packets, shown, strict=True)):
            packet.time_base, packet.duration = 1 / video.fps, 1
            packet.pts, packet.dts = place, number - delay
            packet.stream = stream
            container.mux(packet)
