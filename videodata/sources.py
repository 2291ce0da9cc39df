"""One interface over everything that holds videos: files, folders, frame trees, arrays, HDF5 shards, generated ones."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.folder_scan import holds_files
from videodata.geometry import Size
from videodata.resize import resize_frames


class ClipSource(ABC):
    """A numbered list of videos that can be read in pieces. Picklable; safe in loader workers however they start."""

    path: str
    interpolation = "area"  # how `read_clip` resizes unless told otherwise
    broken: list[VideoError] = []  # files found while opening that cannot be read; they have no number

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abstractmethod
    def id(self, index: int) -> str:
        """A name that is unique in this source and the same on every machine."""

    @abstractmethod
    def length(self, index: int) -> int:
        """Number of frames."""

    @abstractmethod
    def size(self, index: int) -> Size:
        """(height, width) of the stored frames."""

    @abstractmethod
    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        """Frames start, start + step, ... of video `index`: uint8 (T, H, W, 3) RGB. Raises VideoError."""

    def label(self, index: int) -> str | None:
        """Class name or caption, if the source knows one."""
        return None

    def group(self, index: int) -> str:
        """What must stay on one side of a split (UCF101: all clips cut from one film)."""
        return self.id(index)

    def fps(self, index: int) -> Fraction | None:
        """Frames per second; None where the source does not say."""
        return None

    def stamp(self, index: int) -> str:
        """Changes when the stored video does (size of its file); part of the fingerprint of a data set."""
        return ""

    def splits(self) -> dict[str, list[int]] | None:
        """Indices of the videos by the name of the split, where the source itself divides them."""
        return None

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        resize: str = "crop",
        interpolation: str | None = None,
        short_side: int | None = None,
    ) -> np.ndarray:
        """`read`, then `resize_frames`: uint8 (T, H, W, 3)."""
        frames = self.read(index, start, count, step)
        try:
            return resize_frames(frames, size, resize, interpolation or self.interpolation, short_side)
        except UserError as error:
            raise VideoError(self.id(index), str(error)) from error


def frame_range(path: object, length: int, start: int, count: int | None, step: int) -> range:
    """Indices of the frames of a clip. Raises VideoError if the video is too short."""
    if start < 0 or step < 1 or (count is not None and count < 1):
        raise ValueError(f"start >= 0, step >= 1, count >= 1 are needed, found {start}, {step}, {count}")
    stop = length if count is None else start + (count - 1) * step + 1
    if start >= length or stop > length:
        raise VideoError(path, f"has {length} frames, but frame {max(start, stop - 1)} was asked for")
    return range(start, stop, step)


def open_source(path: str | os.PathLike, color: str | None = None) -> ClipSource:
    """Open whatever lies at `path` by looking at it.

    A video file; a folder of videos, of frame images, of .hdf5 shards or of .npy arrays; a csv with columns path,text;
    a .npy array; the .json index of a preparation that several machines shared; "shapes:<n>" for n generated
    videos. color="bgr" says that an array holds BGR pixels. Raises UserError.
    """
    from videodata.frame_folder import IMAGE_SUFFIXES, FrameFolder
    from videodata.hdf5_source import HDF5_SUFFIXES, Hdf5Source
    from videodata.npy_source import NpySource
    from videodata.parts import PartsSource
    from videodata.shapes import Shapes
    from videodata.video import VIDEO_SUFFIXES
    from videodata.video_folder import VideoFolder

    if str(path).startswith("shapes:"):
        return Shapes.parse(str(path))
    path = Path(path)
    suffix = path.suffix.lower()
    if color is not None and suffix != ".npy":
        raise UserError(f"color={color!r} applies to .npy files, not to {path}")
    if suffix == ".npy":
        return NpySource(path, color)
    if suffix in HDF5_SUFFIXES:
        return Hdf5Source(path)
    if suffix == ".json":
        return PartsSource.from_index(path)
    if not path.exists():
        raise VideoError(path, "no such file or folder; scripts/prepare_data.py --help shows how to make a data set")
    if path.is_file():
        return VideoFolder.from_csv(path) if suffix == ".csv" else VideoFolder.from_file(path)
    if any(entry.suffix.lower() in HDF5_SUFFIXES for entry in path.iterdir()):
        return Hdf5Source(path)
    if any(entry.suffix == ".npy" for entry in path.iterdir()):
        return PartsSource.from_folder(path)
    if holds_files(path, VIDEO_SUFFIXES):
        return VideoFolder.from_folder(path)
    if holds_files(path, IMAGE_SUFFIXES):
        return FrameFolder(path)
    raise VideoError(path, "holds no videos, frame images or .hdf5 shards")
