"""Small films of the kinds that other people's files are of. Each frame shows its number in ten black or white bars."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BARS = 10  # the lowest bit of the number is on the left
TITLE = b"a title of sixteen"
SHIFT_JIS = "動画の題名です。".encode("shift_jis") + b"  "  # as long as the title, and no UTF-8
GROUP = 12  # frames from one key frame to the next
X264 = {"x264-params": f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3", "crf": "10"}
X265 = {"x265-params": f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3:open-gop=1:log-level=none", "crf": "10"}
SHORT_GROUPS = {"libx264": X264, "libx265": X265, "libvpx-vp9": {"g": str(GROUP)}, "libsvtav1": {"g": str(GROUP)}}


def picture(number: int, height: int = 96, width: int = 160) -> np.ndarray:
    """uint8 (H, W, 3). The lower half is darker, so that up and down are not alike."""
    columns = np.arange(width) * BARS // width
    bright = np.where(np.arange(height) < height / 2, 235, 190)[:, None]
    grey = np.where(number >> columns & 1, bright, 16).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame (H, W, 3) shows."""
    width = frame.shape[1]
    places = np.arange(BARS) * width // BARS + width // (2 * BARS)
    return int(((frame[4, places].mean(-1) > 127) << np.arange(BARS)).sum())


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def film(
    path: Path,
    count: int = 60,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (96, 160),
    rate: int = 25,
    times: Sequence[int] | None = None,
    without: Collection[int] = (),
    title: bytes | None = None,
    pixel_aspect: Fraction | None = None,
    sound: int = 0,
    **options: object,
) -> Path:
    """Write a film of `count` frames.

    times: of each frame in 1/`rate` seconds, if they do not follow each other evenly. without: packets that are left
    out, by their place in the file. title: bytes of a tag, as long as TITLE. sound: seconds of silence beside it.
    """
    with av.open(str(path), "w", **options) as container:
        if title:
            container.metadata["title"] = TITLE.decode()
        stream = container.add_stream(codec, rate=rate, options=SHORT_GROUPS.get(codec, {}))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        packets = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = (times or range(count))[number], Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for number, packet in enumerate(packets):
            if number not in without:
                container.mux(packet)
        for _ in range(sound * 8000 // 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
        if audio:
            container.mux(audio.encode(None))
    if title:
        data = path.read_bytes()
        assert len(title) == len(TITLE) and TITLE in data
        path.write_bytes(data.replace(TITLE, title))
    return path


def cut_off(source: Path, target: Path, share: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def turned(source: Path, target: Path, matrix: Sequence[int]) -> Path:
    """An mp4 with another display matrix (a, b, c, d): of its track, which is the second one in the file."""
    data = source.read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    unity = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
    a, b, c, d = ((value << 16).to_bytes(4, "big", signed=True) for value in matrix)
    asked = a + b + bytes(4) + c + d + bytes(12) + (1 << 30).to_bytes(4, "big")
    place = data.index(unity, data.index(b"tkhd"))
    target.write_bytes(data[:place] + asked + data[place + len(unity) :])
    return target


def changing_film(path: Path) -> Path:
    """Twenty frames of 96x160, then twenty of 160x96: transport streams can be joined byte by byte."""
    parts = [film(path.with_suffix(f".{index}.ts"), 20, size=size) for index, size in enumerate([(96, 160), (160, 96)])]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path
