"""Videos -> one .npy of sequences, or a folder: decode in several processes, write in order, resume, report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
from tqdm import tqdm

from videodata.decode import DecodePool, End, Frames
from videodata.errors import UserError, VideoError
from videodata.files import free_space, read_json, readable_size, require_room
from videodata.folder_writer import FORMAT, FolderWriter, FrameWriter, Mp4Writer, ShardWriter
from videodata.journal import Writer, is_finished, partial_path, refuse_foreign, sidecar_path
from videodata.npy import NpyWriter, npy_header
from videodata.source import ClipSource
from videodata.tars.writer import Packing, TarWriter, check_packing
from videodata.video import promised_frames
from videodata.video_folder import InputVideo, fingerprint

logger = logging.getLogger(__name__)
PROBED = 64  # videos whose headers are read to tell the size in advance
BLOCK = 64  # frames that are read from a source at a time


@dataclass(frozen=True)
class SequenceSettings:
    """What a sequence is. The bytes of the result depend on nothing but this and the videos."""

    num_frames: int = 50
    height: int = 240
    width: int = 320
    stride: int = 1  # every stride-th frame of a video is kept; windows follow each other without overlap
    resize: str = "squeeze"  # both sides to the size asked for; crop and pad keep the aspect ratio
    keep_damaged: bool = False  # keep what can be decoded of a damaged video

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "stride"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, found {getattr(self, name)}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.num_frames, self.height, self.width, 3

    def described(self, format: str = "npy") -> dict:
        """What a side-car says first."""
        shown = {name: getattr(self, name) for name in ("num_frames", "height", "width", "resize", "stride")}
        kind = {"format": "videodata-npy"} if format == "npy" else {"format": FORMAT, "content": format}
        return {**kind, "version": 1, "color": "RGB", **shown}

    @property
    def sequence_bytes(self) -> int:
        return self.num_frames * self.height * self.width * 3


@dataclass
class Summary:
    path: Path
    videos: int
    sequences: int
    skipped: list[dict]  # id, reason and status: "bad" for one that cannot be read, "short"
    frames: int = 0  # decoded in this run
    seconds: float = 0.0
    format: str = "npy"

    @property
    def bad(self) -> int:
        """Number of videos that cannot be read."""
        return sum(entry["status"] == "bad" for entry in self.skipped)

    def lines(self, settings: SequenceSettings) -> list[str]:
        """For people."""
        shape = ", ".join(map(str, (self.sequences, *settings.shape)))
        rate = f", {self.frames / self.seconds:.0f} frames/s" if self.frames else ""
        reasons = [f"  skipped {entry['id']}: {entry['reason']}" for entry in self.skipped[:20]]
        if len(self.skipped) > 20:
            reasons.append(f"  and {len(self.skipped) - 20} more, all in {sidecar_path(self.path)}")
        what = f"uint8 ({shape})" if self.format == "npy" else f"{self.format}, {settings.height}x{settings.width},"
        return [
            f"{self.path}: {what} from {self.videos - len(self.skipped)} of {self.videos} videos, "
            f"{self.bad} unreadable, {len(self.skipped) - self.bad} too short",
            *reasons,
            f"decoded {self.frames} frames in {self.seconds:.1f} s{rate}",
        ]


# Frames and then one End for each of the videos, in their order; takes the videos, the settings, the workers' number.
Decoder = Callable[
    [Sequence[InputVideo], "SequenceSettings", int], AbstractContextManager[Iterator["Frames | End"]]
]  # fmt: skip


@contextmanager
def decode_files(
    videos: Sequence[InputVideo], settings: SequenceSettings, workers: int
) -> Iterator[Iterator[Frames | End]]:
    """Video files, in `workers` processes; those that are known to be no readable file are not opened."""
    files = [video for video in videos if video.error is None]
    paths, stretches = [video.path for video in files], [(video.start, video.reach) for video in files]
    size = settings.height, settings.width
    with DecodePool(paths, size, settings.resize, settings.stride, workers, stretches) as pool:
        yield _with_unreadable(videos, iter(pool))


def _with_unreadable(videos: Sequence[InputVideo], decoded: Iterator[Frames | End]) -> Iterator[Frames | End]:
    """What is decoded of the videos, and at once the end of those that are not."""
    for video in videos:
        if video.error is not None:
            yield End(0, None, video.error)
            continue
        for item in decoded:
            yield item
            if isinstance(item, End):
                break


def decode_source(source: ClipSource) -> Decoder:
    """Videos of a source, found by their ids, in this process: for what costs nothing to decode."""
    indices = {source.id(index): index for index in range(len(source))}

    @contextmanager
    def decode(
        videos: Sequence[InputVideo], settings: SequenceSettings, workers: int
    ) -> Iterator[Iterator[Frames | End]]:
        yield (item for video in videos for item in _read(source, indices[video.id], video, settings))

    return decode


def source_videos(source: ClipSource, split: str | None = None) -> list[InputVideo]:
    """The videos that `decode_source` finds again."""
    return [
        InputVideo(
            Path(source.path), source.id(index), source.label(index), source.group(index),
            stop=source.length(index), split=split, stamp=source.stamp(index),
        )
        for index in range(len(source))
    ]  # fmt: skip


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


FORMATS: dict[str, Callable] = {
    "npy": NpyWriter,
    "hdf5": ShardWriter,
    "river": partial(ShardWriter, layout="river"),
    "frames": FrameWriter,
    "videos": Mp4Writer,
    "tar": TarWriter,
}


def check_derived(path: Path, format: str) -> None:
    """Raise UserError when a file or folder that is not ours lies where something is written beside `path`."""
    refuse_foreign(path, NpyWriter.format if format == "npy" else FolderWriter.format)


def prepare_videos(
    videos: Sequence[InputVideo],
    path: str | os.PathLike,
    settings: SequenceSettings,
    format: str = "npy",
    *,
    decode: Decoder = decode_files,
    description: dict | None = None,
    workers: int | None = None,
    max_bad_fraction: float = 0.5,
    restart: bool = False,
    packing: Packing | None = None,
) -> Summary:
    """Write the videos, in their order, to `path` with a side-car; the same call resumes.

    format "npy": one array of consecutive windows of num_frames; the remainder of a video is dropped. The others are
    those of FORMATS: whole videos in a folder. Videos that have fewer than num_frames and videos that cannot be decoded
    are left out and listed. decode: where the frames come from. description: goes into the side-car. packing: of tars.
    Raises UserError when the disk is too small, when nothing is left, and, after the result is complete, when more than
    max_bad_fraction of the videos could not be read.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: use one of {', '.join(FORMATS)}")
    check_derived(path, format)
    arguments = {**vars(settings), "videos": len(videos), "inputs": fingerprint(videos), "pyav": av.__version__}
    if format != "npy":
        arguments["content"] = format
    packing = packing or Packing()
    check_packing(packing, format)
    if format == "tar":
        arguments |= packing.described()
    if not restart and is_finished(path, arguments):
        logger.info("%s is complete already: nothing to do", path)
        sidecar = read_json(sidecar_path(path))
        sequences = sum(video.get("sequences", 1) for video in sidecar["videos"])
        return Summary(path, len(videos), sequences, sidecar["skipped"], format=format)
    path.parent.mkdir(parents=True, exist_ok=True)
    if format in ("npy", "hdf5"):  # the sizes of the others cannot be told before they are compressed
        counted = settings if format == "npy" else replace(settings, num_frames=1)
        check_room(expected_sequences(videos, counted), counted, path)
    workers = workers or available_cores()
    if format == "npy":
        writer = NpyWriter(path, settings.shape, arguments, restart)
    else:
        options = {"packing": packing} if format == "tar" else {}
        writer = FORMATS[format](path, arguments, restart, workers, **options)
    with writer:
        summary = _write_videos(videos, writer, settings, workers, decode)
        summary.format = format
        if not writer.sequences:
            writer.discard()
            first = summary.skipped[0]
            raise UserError(
                f"{path}: nothing to write, {summary.bad} of {len(videos)} videos cannot be read, the others have "
                f"fewer than {settings.num_frames} frames (the first is {first['id']}: {first['reason']})"
            )
        writer.finish({**settings.described(format), **(description or {})})
    if summary.bad > max_bad_fraction * len(videos):
        raise UserError(
            f"{path}: complete, but {summary.bad} of {len(videos)} videos could not be read, more than "
            f"--max_bad_fraction {max_bad_fraction:g} allows; the reasons are in {sidecar_path(path)}"
        )
    return summary


def _write_videos(
    videos: Sequence[InputVideo],
    writer: Writer,
    settings: SequenceSettings,
    workers: int,
    decode: Decoder,
) -> Summary:
    done = len(writer.entries)
    if done:
        logger.info("continuing: %d of %d videos are done", done, len(videos))
    rest = videos[done:]
    frames, begin = 0, time.perf_counter()
    bar = tqdm(total=len(videos), initial=done, unit="video", leave=False, disable=None)
    with bar, decode(rest, settings, workers) as items:
        names = iter(rest)
        for item in items:
            if isinstance(item, End):
                writer.video = next(names)
                _end_video(writer.video, item, writer, settings)
                frames += item.frames
                bar.update()
            else:
                writer.write(item.pixels)
    seconds = time.perf_counter() - begin
    return Summary(writer.path, len(videos), writer.sequences, writer.skipped(), frames, seconds)


def _end_video(video: InputVideo, end: End, writer: Writer, settings: SequenceSettings) -> None:
    kept = -(-end.frames // settings.stride)
    status, reason = "ok", end.note if video.stop is not None or video.reach is None else None
    if end.error is not None:
        status, reason = "damaged" if settings.keep_damaged and end.frames else "bad", end.error
    if status != "bad" and kept < settings.num_frames:
        reason = f"{kept} frames, fewer than num_frames {settings.num_frames}" + (f"; {reason}" if reason else "")
        status = "short"
    named = {name: getattr(video, name) for name in ("id", "label", "group", "split", "source")}
    writer.end_video(status=status, reason=reason, fps=end.fps, frames=end.frames, **named)


def expected_sequences(videos: Sequence[InputVideo], settings: SequenceSettings) -> int | None:
    """About how many sequences the videos give, from the headers of some of them; None where none of these tells."""
    step = max(1, len(videos) / PROBED)
    counts = []
    for index in range(min(PROBED, len(videos))):
        frames = _frames_to_expect(videos[int(index * step)])
        if frames is not None:
            counts.append(-(-frames // settings.stride) // settings.num_frames)
    return round(sum(counts) / len(counts) * len(videos)) if counts else None


def _frames_to_expect(video: InputVideo) -> int | None:
    if video.stop is not None:
        return video.reach - video.start
    if video.error is not None:
        return 0
    try:
        frames = promised_frames(video.path)
    except VideoError:
        return 0
    return frames if frames is None or video.limit is None else min(frames, video.limit)


def check_room(sequences: int | None, settings: SequenceSettings, path: Path) -> None:
    """Say how large the result will be. Raises UserError when it does not fit on the disk."""
    if sequences is None:
        logger.info("%s: the length of the videos is unknown before they are decoded, and so is the size", path)
        return
    needed = sequences * settings.sequence_bytes + len(npy_header(0, settings.shape))
    partial = partial_path(path)
    present = partial.stat().st_size if partial.is_file() else 0
    free = readable_size(free_space(path)[0])
    shape = settings.shape[:3]
    logger.info("%s: about %d sequences of %dx%dx%d, %s, %s free", path, sequences, *shape, readable_size(needed), free)
    require_room(
        path, needed - present, lambda reason: UserError(f"{path}: {reason}"),
        f"needs about {readable_size(needed - present)} more",
        ": choose another disk, a smaller --width and --height, or fewer videos (--max_videos, --classes)"
    )  # fmt: skip


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
