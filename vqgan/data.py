"""Patches of frames as a torch data set, from batch files or from anything that `open_clips` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.randomness import derive_seed
from videodata.clips import ClipDataset
from videodata.errors import UserError
from videodata.source import ClipSource
from videodata.splits import hashed_split, open_split
from vqgan.batch_files import BatchFiles, find_batch_files
from vqgan.jitter import color_jitter

READING = {"resize": "crop", "interpolation": None, "short_side": None}


def open_frames(
    path: str | Path,
    split: str | None,
    size: tuple[int, int] | None,
    *,
    frames: int = 1,
    windows: str = "consecutive",
    test_batch: int = 13,
    seed: int = 0,
    flip: bool = False,
) -> ClipDataset:
    """Clips of `frames` frames in (height, width) `size`, one after another; None keeps the stored size.

    In a folder of batch files, file number `test_batch` is the test split and the others are divided by group; other
    data is divided by `videodata.splits`. Raises UserError.
    """
    source, videos = open_videos(path, split, test_batch)
    return ClipDataset(
        source, videos, frames, size, 1, seed, windows=windows, flip=flip, dtype="float32", on_error="raise",
        reading=READING,
    )  # fmt: skip


def open_videos(path: str | Path, split: str | None, test_batch: int) -> tuple[ClipSource, list[int]]:
    """The source at `path` and the indices of its videos that belong to the split."""
    files = find_batch_files(path)
    if not files:
        return open_split(path, split)
    if split == "test" and test_batch in files:
        source = BatchFiles([files[test_batch]])
        return source, list(range(len(source)))
    chosen = [file for number, file in files.items() if split is None or number != test_batch]
    if not chosen:
        raise UserError(f"{path}: has no batch file beside the test batch {test_batch}; choose another --test_batch")
    source = BatchFiles(chosen)
    if split is None:
        return source, list(range(len(source)))
    if split == "train" and test_batch in files:  # what hashing would hold out for testing need not be
        validation = set(hashed_split(source, "val"))
        return source, [video for video in range(len(source)) if video not in validation]
    return source, hashed_split(source, split)


class PatchDataset(Dataset):
    """Items are patches (3, h, w), float32 in [-1, 1]; the patch varies fastest, then the frame, then the video.

    Made from clips of one frame. With `jitter`, brightness, contrast, saturation and hue change at random, as a
    function of (seed, position); the mirroring is that of the clips.
    """

    takes_positions = True

    def __init__(self, clips: ClipDataset, rows: int = 1, columns: int = 1, jitter: float = 0.0) -> None:
        self.clips, self.rows, self.columns, self.jitter = clips, rows, columns, jitter
        height, width = clips.size or clips.source.size(0)
        if height % rows or width % columns:
            raise UserError(f"frames of {width}x{height} cannot be cut into {columns}x{rows} patches; change the grid")
        self.patch_size = height // rows, width // columns

    def __len__(self) -> int:
        return len(self.clips) * self.rows * self.columns

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        item, position = index if isinstance(index, tuple) else (index, None)
        frame, row, column = self.place(item)
        picture = self.clips[frame if position is None else (frame, position)][:, 0]  # (3, H, W)
        height, width = self.patch_size
        patch = picture[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        if self.jitter:
            key = ("jitter", item) if position is None else ("jitter at", position)
            generator = torch.Generator().manual_seed(derive_seed(self.clips.seed, *key))
            patch = color_jitter(patch, torch.rand(4, generator=generator) * 2 - 1, self.jitter)
        return patch.contiguous()

    def place(self, index: int) -> tuple[int, int, int]:
        """(frame item, row, column) of a patch."""
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        frame, patch = divmod(index, self.rows * self.columns)
        return frame, patch // self.columns, patch % self.columns

    def describe(self, index: int) -> dict:
        """Where a patch comes from: id, label and group of its video, frame_idx, patch_h, patch_w."""
        frame, row, column = self.place(index)
        clip = self.clips.describe(frame)
        facts = {name: clip[name] for name in ("id", "label", "group")}
        return {**facts, "frame_idx": clip["start"], "patch_h": row, "patch_w": column}

    def fingerprint(self) -> str:
        """Changes when the videos or the grid do."""
        return f"{self.clips.fingerprint()}-{self.rows}x{self.columns}"
