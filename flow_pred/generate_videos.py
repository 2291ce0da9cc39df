"""Predictions as files: HDF5 with the original's keys, films and arrays beside the true video, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from flow_pred.generate import Plan, Prediction
from training.files import write_file
from videodata.atomic import atomic_path
from videodata.pixels import to_uint8
from videodata.write_video import write_video

GAP = 2  # pixels between original and prediction
FORMATS = ("h5", "mp4", "gif", "npy")


class H5Writer:
    """generated_videos and target_videos (B, T, 3, H, W) float32 in [-1, 1], gzip, and the scalar avg_count."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file

    def add(self, prediction: Prediction) -> None:
        """Append a batch."""
        self._append("generated_videos", prediction.generated)
        if prediction.target is not None:
            self._append("target_videos", prediction.target)

    def finish(self, calls_per_frame: float) -> None:
        """Store how often the drift was evaluated per predicted frame."""
        self.file["avg_count"] = calls_per_frame

    def _append(self, name: str, clips: Tensor) -> None:
        values = clips.transpose(1, 2).float().numpy()
        if name not in self.file:
            shape = values.shape[1:]
            options = {"maxshape": (None, *shape), "chunks": (1, *shape), "compression": "gzip", "compression_opts": 9}
            self.file.create_dataset(name, (0, *shape), np.float32, **options)
        data = self.file[name]
        data.resize(len(data) + len(values), axis=0)
        data[-len(values) :] = values


@contextmanager
def open_h5(path: Path) -> Iterator[H5Writer]:
    """A writer; the file gets its name when the block ends."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        yield H5Writer(file)


def write_clips(folder: Path, prediction: Prediction, plan: Plan, fps: Fraction, formats: list[str]) -> list[Path]:
    """Each clip of a batch as <item>.mp4, .gif and .npy: the original to the left, where it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, item in enumerate(prediction.items):
        parts = [part for part in (prediction.target, prediction.generated) if part is not None]
        frames = side_by_side([to_uint8(part[row, :, plan.first_shown :]) for part in parts])
        for kind in formats:
            path = folder / f"{item:04d}.{kind}"
            if kind == "npy":
                write_file(path, partial(np.save, arr=to_uint8(prediction.generated[row]), allow_pickle=False))
            else:
                write_video(path, frames, fps * plan.res)
            written.append(path)
    return written


def side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips uint8 (T, H, W, 3) next to each other with a white gap."""
    gap = np.full((*clips[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    return np.concatenate(parts, axis=2)


def strip(prediction: Prediction, plan: Plan, columns: int = 12) -> np.ndarray:
    """A picture of up to 4 clips, uint8: rows original, prediction, with `columns` frames spread over the time."""
    rows = []
    for row in range(min(4, len(prediction.items))):
        for clip in (prediction.target, prediction.generated):
            if clip is not None:
                frames = to_uint8(clip[row, :, plan.first_shown :])
                chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
                rows.append(np.concatenate(list(frames[chosen]), axis=1))
    return np.concatenate(rows, axis=0)
