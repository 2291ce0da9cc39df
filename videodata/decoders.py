"""Where frames come from while data is prepared: video files decoded by several processes, or an open source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from videodata.decode_pool import DecodePool, End, Frames
from videodata.errors import UserError, VideoError
from videodata.sources import ClipSource
from videodata.video_list import InputVideo

if TYPE_CHECKING:
    from videodata.prepare import SequenceSettings

# Frames and then one End for each of the videos, in their order; takes the videos, the settings, the workers' number.
Decoder = Callable[
    [Sequence[InputVideo], "SequenceSettings", int], AbstractContextManager[Iterator["Frames | End"]]
]  # fmt: skip

BLOCK = 64  # frames that are read from a source at a time


@contextmanager
def decode_files(
    videos: Sequence[InputVideo], settings: SequenceSettings, workers: int
) -> Iterator[Iterator[Frames | End]]:
    """Video files, in `workers` processes."""
    paths, stretches = [video.path for video in videos], [(video.start, video.reach) for video in videos]
    size = settings.height, settings.width
    with DecodePool(paths, size, settings.resize, settings.stride, workers, stretches) as pool:
        yield iter(pool)


def decode_source(source: ClipSource) -> Decoder:
    """Videos of a source, found by their ids, in this process: for what costs nothing to decode."""
    indices = {source.id(index): index for index in range(len(source))}

    @contextmanager
    def decode(
        videos: Sequence[InputVideo], settings: SequenceSettings, workers: int
    ) -> Iterator[Iterator[Frames | End]]:
        yield (item for video in videos for item in _read(source, indices[video.id], video, settings))

    return decode


def _read(source: ClipSource, index: int, video: InputVideo, settings: SequenceSettings) -> Iterator[Frames | End]:
    frames, error, fps = 0, None, source.fps(index)
    size = settings.height, settings.width
    try:
        length = source.length(index)
        stop = length if video.reach is None else min(video.reach, length)
        for first in range(video.start, stop, BLOCK * settings.stride):
            count = len(range(first, min(first + BLOCK * settings.stride, stop), settings.stride))
            pixels = source.read_clip(index, first, count, settings.stride, size, settings.resize)
            yield Frames(pixels)
        frames = max(0, stop - video.start)
    except VideoError as problem:
        error = problem.reason
    except UserError as problem:
        error = str(problem)
    yield End(frames, None if fps is None else str(fps / settings.stride), error)
