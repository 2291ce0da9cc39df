"""Patches of frames as a torch data set, from batch files or from anything that `open_clips` reads.

Batch files are a data set cut into `<name>_batch_<k>.npy`, each uint8 (videos, frames, H, W, 3); the original's layout.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.randomness import derive_seed
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError, VideoError
from videodata.files import files_in_folder, lock_file, natural_key, publish, write_json
from videodata.journal import read_sidecar
from videodata.npy import FORMAT, VERSION, NpySource, allocated_array, check_layout, map_array
from videodata.source import ClipSource, JoinedSource
from videodata.sources import is_no_path
from videodata.splits import divide, open_split

BATCH_FILE = re.compile(r".*_batch_(\d+)\.npy")
BATCH_PREFIX = "ucf101_subset"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# RGB -> luma and the two colour differences I and Q of NTSC, in which a change of hue is a rotation.
YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


def open_frames(
    path: str | Path,
    split: str | None,
    size: tuple[int, int] | None,
    *,
    test_batch: int = 13,
    seed: int = 0,
    flip: bool = False,
    dtype: str = "float32",
) -> ClipDataset:
    """Clips of one frame in (height, width) `size`, one after another; None keeps the stored size. Raises UserError."""
    if not find_batch_files(path):
        return open_clips(path, 1, size, split=split, seed=seed, windows="consecutive", flip=flip, dtype=dtype)
    source, videos = open_videos(path, split, test_batch)
    return ClipDataset(
        source, videos, 1, size, 1, seed, windows="consecutive", flip=flip, dtype=dtype, on_error="raise",
        reading={"resize": "crop", "interpolation": None, "short_side": None}, opened=str(path), split=split,
    )  # fmt: skip


def open_videos(path: str | Path, split: str | None, test_batch: int) -> tuple[ClipSource, list[int]]:
    """The source at `path` and the indices of its videos that belong to the split, as `videodata.splits` divides it.

    In a folder of batch files, file number `test_batch` is declared test. Raises UserError.
    """
    files = find_batch_files(path)
    if not files:
        return open_split(path, split)
    if split in ("train", "val") and set(files) == {test_batch}:
        raise UserError(f"{path}: has no batch file beside the test batch {test_batch}; choose another --test_batch")
    parts = [KeptForTesting(file) if number == test_batch else NpySource(file) for number, file in files.items()]
    source = JoinedSource(path, parts)
    return source, list(range(len(source))) if split is None else divide(source, split)


class KeptForTesting(NpySource):
    """A batch file that is declared test, whatever its side-car says."""

    def splits(self) -> dict[str, list[int]]:
        return {"test": list(range(len(self)))}


class PatchDataset(Dataset):
    """Items are patches (3, h, w) of clips of one frame; the patch varies fastest, then the frame, then the video.

    They are float32 in [-1, 1] or uint8, as the clips are. With `jitter` (of float32 alone), brightness, contrast,
    saturation and hue change at random, as a function of (seed, position); the mirroring is that of the clips.
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

    def provenance(self) -> dict[str, Any]:
        """Of the videos that the patches are cut from."""
        return self.clips.provenance()

    def blocks(self) -> np.ndarray | None:
        """First patch of each stretch that lies together, as `ClipDataset.blocks`."""
        blocks = self.clips.blocks()
        return None if blocks is None else blocks * self.rows * self.columns


def split_patches(frames: Tensor, rows: int, columns: int) -> Tensor:
    """Frames (N, ..., H, W) -> patches (N * rows * columns, ..., H / rows, W / columns); columns vary fastest.

    Raises UserError for a grid that does not divide the frame.
    """
    height, width = frames.shape[-2:]
    if height % rows or width % columns:
        raise UserError(f"frames of {width}x{height} cannot be cut into {columns}x{rows} patches; change the grid")
    grid = frames.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # (N, ..., rows, h, columns, w)
    return grid.movedim((-4, -2), (1, 2)).flatten(0, 2)


def merge_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse: patches (N * rows * columns, ..., h, w) -> frames (N, ..., rows * h, columns * w)."""
    grid = patches.unflatten(0, (-1, rows, columns)).movedim((1, 2), (-4, -2))  # (N, ..., rows, h, columns, w)
    return grid.flatten(-2, -1).flatten(-3, -2)


def color_jitter(picture: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change a picture (3, H, W) in [-1, 1]; `draws` (4,) in [-1, 1] say how much of each.

    Brightness, contrast and saturation change by a factor of 1 +- strength, hue by +- strength of a full turn.
    """
    brightness, contrast, saturation = (1 + strength * draws[:3]).tolist()
    picture = (picture + 1) / 2 * brightness
    luma = torch.einsum("c,chw->hw", picture.new_tensor(LUMA), picture)
    picture = luma.mean() + contrast * (picture - luma.mean())
    angle = 2 * math.pi * strength * float(draws[3])
    cosine, sine = saturation * math.cos(angle), saturation * math.sin(angle)
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])  # of I and Q, the luma stays
    turned = (torch.linalg.inv(YIQ) @ turn @ YIQ).to(picture)
    return (torch.einsum("dc,chw->dhw", turned, picture) * 2 - 1).clamp(-1, 1)


def find_batch_files(folder: str | Path) -> dict[int, Path]:
    """Number -> path of the batch files in a folder, in order; empty for a source of another kind.

    Raises UserError where there is nothing.
    """
    if is_no_path(folder) or Path(folder).is_file():
        return {}
    if not Path(folder).exists():
        raise UserError(
            f"{folder}: no such file or folder; scripts/split_batch_files.py --output_dir {folder} makes batch files "
            "of a .npy, and --data_path takes any source of clips, such as shapes:100"
        )
    files = files_in_folder(folder, {".npy"}, deep=False)
    found = {int(match[1]): path for path in files if (match := BATCH_FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


def write_batch_files(npy_file: str | Path, folder: str | Path, shard_size: int = 812) -> list[Path]:
    """Cut a .npy (N, T, H, W, 3), and its .json if there is one, into batch files of at most `shard_size` sequences.

    Raises UserError for a file of another layout and for a folder that holds batch files already.
    """
    source, folder = Path(npy_file), Path(folder)
    array = map_array(str(source))
    check_layout(source, array)
    if array.ndim != 5:
        raise VideoError(source, "holds one video; batch files need (N, T, H, W, 3)")
    partial = folder / ".partial"  # all files or none: some of them would be taken for the whole data set
    if folder.is_dir() and find_batch_files(folder) and not partial.exists():
        raise UserError(f"{folder}: holds batch files already; remove them or name another folder")
    with lock_file(partial, "writing batch files into"):
        shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
        partial.mkdir()
        try:
            for number, first in enumerate(range(0, len(array), shard_size)):
                path, last = partial / f"{BATCH_PREFIX}_batch_{number}.npy", min(first + shard_size, len(array))
                copy_sequences(array, path, first, last)
                write_sidecar(source, path, first, last)
            made = sorted(partial.iterdir(), key=lambda path: (path.suffix == ".npy", natural_key(path.name)))
            for path in made:  # the .json files first
                publish(path, folder / path.name)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rmdir()  # last: as long as it is there, the same command begins anew
    return [folder / path.name for path in made if path.suffix == ".npy"]


def copy_sequences(array: np.ndarray, path: Path, first: int, last: int) -> None:
    """Sequences first to last of an array as a file, one in memory at a time; the file is closed at the return."""
    target = allocated_array(path, array.dtype, (last - first, *array.shape[1:]))
    for index in range(first, last):
        target[index - first] = array[index]
    target.flush()


def write_sidecar(source: Path, path: Path, first: int, last: int) -> None:
    """The part of the source's .json that describes sequences first to last, renumbered, for the batch file `path`."""
    sidecar = source.with_suffix(".json")
    if not sidecar.is_file():
        return
    content = read_sidecar(sidecar)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise VideoError(sidecar, f"does not describe {source.name}; remove or rename it")
    videos = []
    for video in content["videos"]:
        start = max(video["first_sequence"], first)
        stop = min(video["first_sequence"] + video["sequences"], last)
        if stop > start:
            videos.append({**video, "first_sequence": start - first, "sequences": stop - start})
    write_json(path.with_suffix(".json"), {**content, "videos": videos}, sort_keys=False)
