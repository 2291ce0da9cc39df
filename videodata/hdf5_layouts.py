"""The three ways in which HDF5 files hold videos, each as a reader of an open file.

chunked   ours: `frames` (sum of frames, H, W, 3) in chunks of 8 frames, `offset` (videos + 1); `id`, `label`, `group`,
          `fps` (videos,) strings. 10 to 20 times faster to read than one dataset per frame.
river     RIVER, Neural SDE, MCVD: `len/<i>` = frames of video i, `<i>/<t>` = frame t (H, W, 3); other groups ignored.
videogpt  VideoGPT: `train_data` (frames, H, W, 3), `train_idx` = first frame of each video; the same for `test`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import h5py
import numpy as np
from h5py import h5d, h5s

from videodata.errors import VideoError
from videodata.geometry import Size

CHUNK_FRAMES = 8
FORMAT = "videodata-hdf5"


@dataclass
class Contents:
    """What one file holds: the frame count of each of its videos, and facts about them where the file has any."""

    lengths: list[int]
    facts: dict[str, list[str | None]] = field(default_factory=dict)  # "id", "label", "group", "fps"
    splits: list[str] | None = None  # the split of each video


class Layout(ABC):
    """Reads videos of one layout; holds no file."""

    @abstractmethod
    def contents(self, file: h5py.File) -> Contents:
        """The videos of an open file."""

    @abstractmethod
    def size(self, file: h5py.File, index: int) -> Size:
        """(height, width) of a video's frames."""

    @abstractmethod
    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        """The given frames of a video, uint8 (T, H, W, 3)."""


class River(Layout):
    """One dataset per frame, under one group per video."""

    def contents(self, file: h5py.File) -> Contents:
        # By the low-level calls: there can be 100,000 of these one-number datasets, and they are five times faster.
        group, length, lengths = file["len"].id, np.empty((), np.int64), []
        for index in range(len(file["len"])):
            h5d.open(group, b"%d" % index).read(h5s.ALL, h5s.ALL, length)
            lengths.append(int(length))
        return Contents(lengths)

    def size(self, file: h5py.File, index: int) -> Size:
        return file[f"{index}/0"].shape[:2]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        video = file[str(index)]
        return np.stack([video[str(frame)][()] for frame in frames])


class Chunked(Layout):
    """All frames of the file in one dataset."""

    def contents(self, file: h5py.File) -> Contents:
        facts = {}
        for name in ("id", "label", "group", "fps"):
            if name in file:
                facts[name] = [text or None for text in file[name].asstr()[()]]
        return Contents(np.diff(file["offset"][()]).tolist(), facts)

    def size(self, file: h5py.File, index: int) -> Size:
        return file["frames"].shape[1:3]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        return _slice(file["frames"], int(file["offset"][index]), frames)


class VideoGPT(Layout):
    """Two long datasets of frames, one for training and one for testing."""

    def contents(self, file: h5py.File) -> Contents:
        lengths, splits = [], []
        for split in ("train", "test"):
            if f"{split}_data" in file:
                starts = file[f"{split}_idx"][()]
                found = np.diff(np.append(starts, len(file[f"{split}_data"]))).tolist()
                lengths += found
                splits += [split] * len(found)
        return Contents(lengths, splits=splits)

    def size(self, file: h5py.File, index: int) -> Size:
        return self._locate(file, index)[0].shape[1:3]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        data, first = self._locate(file, index)
        return _slice(data, first, frames)

    def _locate(self, file: h5py.File, index: int) -> tuple[h5py.Dataset, int]:
        train = len(file["train_idx"]) if "train_idx" in file else 0
        split, local = ("train", index) if index < train else ("test", index - train)
        return file[f"{split}_data"], int(file[f"{split}_idx"][local])


def _slice(data: h5py.Dataset, first: int, frames: range) -> np.ndarray:
    """Frames of a contiguous stretch; read whole and thinned after, because HDF5 is slow at strides."""
    return data[first + frames.start : first + frames[-1] + 1][:: frames.step]


def layout_of(file: h5py.File) -> Layout:
    """The layout of an open file. Raises VideoError if it is none of the three."""
    if "frames" in file and "offset" in file:
        return Chunked()
    if "len" in file:
        return River()
    if "train_data" in file or "test_data" in file:
        return VideoGPT()
    raise VideoError(
        file.filename,
        "is no HDF5 file of videos: expected groups `len` and `0`, `1`, ..., or datasets `frames` and `offset`, "
        f"or `train_data` and `train_idx`; found {sorted(file)[:5]}",
    )
