"""Whole videos into other containers: HDF5 shards, trees of PNG frames, mp4 files, or one .npy of sequences."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from videodata.atomic import atomic_path
from videodata.errors import UserError, VideoError
from videodata.hdf5_writer import Hdf5Writer
from videodata.npy_writer import NpyWriter, is_finished
from videodata.prepare import SequenceSettings, Summary
from videodata.sources import ClipSource
from videodata.video import read_video
from videodata.video_list import InputVideo
from videodata.write_video import write_video


@dataclass(frozen=True)
class Clip:
    """One video in memory."""

    id: str
    label: str | None
    group: str
    fps: Fraction
    frames: np.ndarray  # uint8 (T, H, W, 3) RGB


def clips_of_source(source: ClipSource) -> Iterator[Clip]:
    """All videos of a source, one at a time."""
    for index in range(len(source)):
        fps = source.fps(index) or Fraction(25)
        yield Clip(source.id(index), source.label(index), source.group(index), fps, source.read(index))


def clips_of_files(videos: Iterable[InputVideo], settings: SequenceSettings, skipped: list[dict]) -> Iterator[Clip]:
    """The decoded and resized videos, one at a time; those that cannot be read are added to `skipped`."""
    for video in videos:
        try:
            frames, fps = read_video(
                video.path,
                step=settings.stride,
                size=(settings.height, settings.width),
                resize=settings.resize,
                keep_damaged=settings.keep_damaged,
            )
        except VideoError as error:
            skipped.append({"id": video.id, "reason": error.reason, "status": "bad"})
        else:
            yield Clip(video.id, video.label, video.group, fps / settings.stride, frames)


def write_clips(clips: Iterable[Clip], out: str | os.PathLike, format: str) -> int:
    """Write videos to `out` as "hdf5" (folder of shards), "frames" (a folder of PNG per video) or "videos" (mp4).

    Returns their number. Raises UserError for an unknown format, or when no video came.
    """
    writers: dict[str, Callable[[Iterable[Clip], Path], int]] = {
        "hdf5": _write_hdf5, "frames": _write_frames, "videos": _write_videos
    }  # fmt: skip
    if format not in writers:
        raise UserError(f"unknown format {format!r}: use one of {', '.join(writers)}")
    count = writers[format](clips, Path(out))
    if count == 0:
        raise UserError(f"{out}: no video could be read, nothing was written")
    return count


def write_npy_of_source(source: ClipSource, path: str | os.PathLike, num_frames: int) -> Summary:
    """Write the videos of a source, all of one size, as an .npy of sequences with its side-car; resumable."""
    path, (height, width) = Path(path), source.size(0)
    settings = SequenceSettings(num_frames, height, width, resize="none")
    stamps = [source.stamp(0), source.id(0), source.id(len(source) - 1)]
    arguments = {**vars(settings), "videos": len(source), "inputs": " ".join(stamps)}
    if not is_finished(path, arguments):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NpyWriter(path, settings.shape, arguments) as writer:
            for index, clip in enumerate(clips_of_source(source)):
                if index < len(writer.entries):
                    continue
                writer.write(clip.frames)
                status = "ok" if len(clip.frames) >= num_frames else "short"
                writer.end_video(
                    status=status, id=clip.id, label=clip.label, group=clip.group, fps=str(clip.fps),
                    frames=len(clip.frames), reason=None if status == "ok" else f"fewer than {num_frames} frames",
                )  # fmt: skip
            if not writer.sequences:
                writer.discard()
                raise UserError(f"{path}: no video has {num_frames} frames: use a smaller --num_frames")
            writer.finish(settings.described())
    count = np.load(path, mmap_mode="r", allow_pickle=False).shape[0]
    return Summary(path, len(source), count, [])


def _write_hdf5(clips: Iterable[Clip], out: Path) -> int:
    with Hdf5Writer(out) as writer:
        for clip in clips:
            writer.add(clip.frames, clip.id, clip.label, clip.fps, clip.group)
    return writer.written


def _write_frames(clips: Iterable[Clip], out: Path) -> int:
    count = 0
    for clip in clips:
        folder = out / clip.id
        folder.mkdir(parents=True, exist_ok=True)
        digits = max(4, len(str(len(clip.frames) - 1)))
        for number, frame in enumerate(clip.frames):
            with atomic_path(folder / f"{number:0{digits}d}.png") as temporary:
                Image.fromarray(frame).save(temporary, format="png")
        count += 1
    return count


def _write_videos(clips: Iterable[Clip], out: Path) -> int:
    return sum(1 for clip in clips if write_video(out / f"{clip.id}.mp4", clip.frames, clip.fps))
