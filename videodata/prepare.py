"""Videos -> one .npy of sequences: decode in several processes, cut into windows, write in order, resume, report."""

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from tqdm import tqdm

from videodata.decode_pool import DecodePool, End
from videodata.errors import UserError, VideoError
from videodata.npy_header import npy_header
from videodata.npy_writer import NpyWriter, is_finished, partial_path, sidecar_path
from videodata.video import probe
from videodata.video_list import InputVideo, fingerprint

logger = logging.getLogger(__name__)

PROBED = 64  # videos whose headers are read to tell the size in advance


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
        """(T, H, W, 3)"""
        return self.num_frames, self.height, self.width, 3

    def described(self) -> dict:
        """What a side-car says first."""
        shown = {name: getattr(self, name) for name in ("num_frames", "height", "width", "resize", "stride")}
        return {"format": "videodata-npy", "version": 1, "color": "RGB", **shown}

    @property
    def sequence_bytes(self) -> int:
        """Bytes of one sequence."""
        return self.num_frames * self.height * self.width * 3


@dataclass
class Summary:
    """What a run did."""

    path: Path
    videos: int
    sequences: int
    skipped: list[dict]  # id, reason and status: "bad" for one that cannot be read, "short"
    frames: int = 0  # decoded in this run
    seconds: float = 0.0

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
        return [
            f"{self.path}: uint8 ({shape}) from {self.videos - len(self.skipped)} of {self.videos} videos, "
            f"{self.bad} unreadable, {len(self.skipped) - self.bad} too short",
            *reasons,
            f"decoded {self.frames} frames in {self.seconds:.1f} s{rate}",
        ]


def prepare_npy(
    videos: Sequence[InputVideo],
    path: str | os.PathLike,
    settings: SequenceSettings,
    *,
    workers: int | None = None,
    max_bad_fraction: float = 0.5,
    restart: bool = False,
) -> Summary:
    """Write all sequences of the videos, in their order, to `path` with a side-car; the same call resumes.

    A video gives consecutive windows of num_frames; the remainder, videos that are too short and videos that cannot be
    decoded are left out and listed. Raises UserError when the disk is too small, when nothing is left, and, after the
    file is complete, when more than max_bad_fraction of the videos could not be read.
    """
    path = Path(path)
    arguments = {**vars(settings), "videos": len(videos), "inputs": fingerprint(videos), "pyav": av.__version__}
    if not restart and is_finished(path, arguments):
        logger.info("%s is complete already: nothing to do", path)
        return _summary_of_finished(path, len(videos))
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(expected_sequences(videos, settings), settings, path, restart)
    with NpyWriter(path, settings.shape, arguments, restart) as writer:
        summary = _write_videos(videos, writer, settings, workers or available_cores())
        if not writer.sequences:
            writer.discard()
            raise UserError(_nothing(summary, settings))
        writer.finish(settings.described())
    if summary.bad > max_bad_fraction * len(videos):
        raise UserError(
            f"{path}: complete, but {summary.bad} of {len(videos)} videos could not be read, more than "
            f"--max_bad_fraction {max_bad_fraction:g} allows; the reasons are in {sidecar_path(path)}"
        )
    return summary


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def expected_sequences(videos: Sequence[InputVideo], settings: SequenceSettings) -> int:
    """About how many sequences the videos give, from the headers of some of them."""
    step = max(1, len(videos) / PROBED)
    counts = []
    for index in range(min(PROBED, len(videos))):
        try:
            frames = probe(videos[int(index * step)].path).frames
        except VideoError:
            frames = 0
        if frames is not None:
            counts.append(-(-frames // settings.stride) // settings.num_frames)
    return round(sum(counts) / len(counts) * len(videos)) if counts else 0


def check_room(sequences: int, settings: SequenceSettings, path: Path, restart: bool = False) -> None:
    """Say how large the result will be. Raises UserError when it does not fit on the disk."""
    needed = sequences * settings.sequence_bytes + len(npy_header(0, settings.shape))
    partial = partial_path(path)
    present = partial.stat().st_size if partial.exists() else 0
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    logger.info(
        "%s: about %d sequences of %dx%dx%d, %s, %s free",
        path,
        sequences,
        *settings.shape[:3],
        size(needed),
        size(free),
    )
    if needed - present > free:
        raise UserError(
            f"{path}: needs about {size(needed - present)} more, but {size(free)} are free at {folder}: choose another "
            "disk, a smaller --width and --height, or fewer videos (--max_videos, --classes)"
        )


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000
    raise AssertionError


def _write_videos(videos: Sequence[InputVideo], writer: NpyWriter, settings: SequenceSettings, workers: int) -> Summary:
    done = len(writer.entries)
    if done:
        logger.info("continuing: %d of %d videos are done", done, len(videos))
    rest = videos[done:]
    frames, begin = 0, time.perf_counter()
    paths = [video.path for video in rest]
    pool = DecodePool(paths, (settings.height, settings.width), settings.resize, settings.stride, workers)
    with pool, tqdm(total=len(videos), initial=done, unit="video", leave=False, disable=None) as bar:
        names = iter(rest)
        for item in pool:
            if isinstance(item, End):
                _end_video(next(names), item, writer, settings)
                frames += item.frames
                bar.update()
            else:
                writer.write(item.pixels)
    seconds = time.perf_counter() - begin
    return Summary(writer.path, len(videos), writer.sequences, writer.skipped(), frames, seconds)


def _end_video(video: InputVideo, end: End, writer: NpyWriter, settings: SequenceSettings) -> None:
    kept = -(-end.frames // settings.stride)
    status, reason = "ok", None
    if end.error is not None:
        status, reason = "damaged" if settings.keep_damaged and end.frames else "bad", end.error
    if status != "bad" and kept < settings.num_frames:
        reason = f"{kept} frames, fewer than num_frames {settings.num_frames}" + (f"; {reason}" if reason else "")
        status = "short"
    writer.end_video(
        status=status, reason=reason, id=video.id, label=video.label, group=video.group, fps=end.fps, frames=end.frames
    )


def _nothing(summary: Summary, settings: SequenceSettings) -> str:
    first = summary.skipped[0]
    return (
        f"{summary.path}: nothing to write, {summary.bad} of {summary.videos} videos cannot be read, the others have "
        f"fewer than {settings.num_frames} frames (the first is {first['id']}: {first['reason']})"
    )


def _summary_of_finished(path: Path, videos: int) -> Summary:
    sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    sequences = sum(video["sequences"] for video in sidecar["videos"])
    return Summary(path, videos, sequences, sidecar["skipped"])
