"""Patches of frames as a torch data set, from batch files or from anything that `open_clips` reads.

Batch files are a data set cut into `<name>_batch_<k>.npy`, each uint8 (videos, frames, H, W, 3); the original's layout.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.randomness import derive_seed
from videodata.atomic import atomic_path
from videodata.clips import ClipDataset
from videodata.errors import UserError, VideoError
from videodata.geometry import Size
from videodata.npy_source import FORMAT, VERSION, NpySource, check_layout, map_array
from videodata.sources import ClipSource
from videodata.splits import hashed_split, open_split

BATCH_FILE = re.compile(r".*_batch_(\d+)\.npy")
BATCH_PREFIX = "ucf101_subset"
READING = {"resize": "crop", "interpolation": None, "short_side": None}
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
) -> ClipDataset:
    """Clips of one frame in (height, width) `size`, one after another; None keeps the stored size.

    In a folder of batch files, file number `test_batch` is the test split and the others are divided by group; other
    data is divided by `videodata.splits`. Raises UserError.
    """
    source, videos = open_videos(path, split, test_batch)
    return ClipDataset(
        source, videos, 1, size, 1, seed, windows="consecutive", flip=flip, dtype="float32", on_error="raise",
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
    turned = color_matrix(saturation, 2 * math.pi * strength * float(draws[3])).to(picture)
    return (torch.einsum("dc,chw->dhw", turned, picture) * 2 - 1).clamp(-1, 1)


def color_matrix(saturation: float, angle: float) -> Tensor:
    """The map (3, 3) of RGB that scales colour differences by `saturation` and rotates them by `angle`."""
    cosine, sine = saturation * math.cos(angle), saturation * math.sin(angle)
    rotation = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return torch.linalg.inv(YIQ) @ rotation @ YIQ


def find_batch_files(folder: str | Path) -> dict[int, Path]:
    """Number -> path of the batch files in a folder, in order; empty if there are none."""
    if str(folder).startswith("shapes:") or not Path(folder).is_dir():
        return {}
    found = {int(match[1]): path for path in Path(folder).iterdir() if (match := BATCH_FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


class BatchFiles(ClipSource):
    """The videos of several batch files, numbered through."""

    def __init__(self, paths: list[Path], color: str | None = None) -> None:
        self.path = str(paths[0].parent)
        self._files = [NpySource(path, color) for path in paths]
        self._ends = list(accumulate(len(file) for file in self._files))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[NpySource, int]:
        """The file that holds video `index`, and the video's number in it."""
        file = bisect.bisect_right(self._ends, index)
        return self._files[file], index - (self._ends[file - 1] if file else 0)

    def id(self, index: int) -> str:
        file, local = self._locate(index)
        return file.id(local)

    def label(self, index: int) -> str | None:
        file, local = self._locate(index)
        return file.label(local)

    def group(self, index: int) -> str:
        file, local = self._locate(index)
        return file.group(local)

    def fps(self, index: int) -> Fraction | None:
        file, local = self._locate(index)
        return file.fps(local)

    def length(self, index: int) -> int:
        file, local = self._locate(index)
        return file.length(local)

    def size(self, index: int) -> Size:
        file, local = self._locate(index)
        return file.size(local)

    def stamp(self, index: int) -> str:
        file, local = self._locate(index)
        return file.stamp(local)

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        file, local = self._locate(index)
        return file.read(local, start, count, step)


def write_batch_files(npy_file: str | Path, folder: str | Path, shard_size: int = 812) -> list[Path]:
    """Cut a .npy (N, T, H, W, 3), and its .json if there is one, into batch files of at most `shard_size` sequences.

    Raises UserError for a file of another layout and for a folder that holds batch files already.
    """
    source, folder = Path(npy_file), Path(folder)
    array = map_array(str(source))
    check_layout(source, array)
    if array.ndim != 5:
        raise VideoError(source, "holds one video; batch files need (N, T, H, W, 3)")
    if shard_size < 1:
        raise UserError(f"--shard_size must be at least 1, found {shard_size}")
    if find_batch_files(folder):
        raise UserError(f"{folder}: holds batch files already; remove them or name another folder")
    written = []
    for number, first in enumerate(range(0, len(array), shard_size)):
        path = folder / f"{BATCH_PREFIX}_batch_{number}.npy"
        with atomic_path(path) as temporary:
            copy_sequences(array, first, min(first + shard_size, len(array)), temporary)
        write_sidecar(source, path, first, min(first + shard_size, len(array)))
        written.append(path)
    return written


def copy_sequences(array: np.ndarray, first: int, last: int, path: Path) -> None:
    """Write array[first:last] as a .npy, one sequence in memory at a time."""
    target = np.lib.format.open_memmap(path, "w+", dtype=array.dtype, shape=(last - first, *array.shape[1:]))
    for index in range(first, last):
        target[index - first] = array[index]
    target.flush()


def write_sidecar(source: Path, path: Path, first: int, last: int) -> None:
    """The part of the source's .json that describes sequences first to last, for the batch file `path`."""
    sidecar = source.with_suffix(".json")
    if not sidecar.is_file():
        return
    content = json.loads(sidecar.read_text())
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise VideoError(sidecar, f"does not describe {source.name}; remove or rename it")
    content["videos"] = [part for video in content["videos"] if (part := clipped(video, first, last))]
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def clipped(video: dict, first: int, last: int) -> dict | None:
    """The entry of a video for sequences first to last alone, renumbered; None if it has none there."""
    start = max(video["first_sequence"], first)
    stop = min(video["first_sequence"] + video["sequences"], last)
    return {**video, "first_sequence": start - first, "sequences": stop - start} if stop > start else None
