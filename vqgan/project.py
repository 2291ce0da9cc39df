"""A data set as code indices: one memory-mapped array per split, which can be made in several goes.

<folder>/<split>.npy    int16, (N, T, 1, h, w) when all videos have T frames, else (frames of all videos, 1, h, w);
                        the patches of a frame lie in one map, as they do in the frame
<folder>/<split>.json   {"format": "lvt-codes", "version": 1, "size": codes, "videos": [{"id", "label", "first_frame",
                        "frames"}, ...], "made_from": {...}, "grid": [rows, columns]}
<folder>/codebook.npy   float32 (K, D): the latents that the indices stand for

A killed call goes on where it was (videodata/growing_array.py).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videodata.errors import UserError, disk_errors
from videodata.files import lock_file, read_json, write_file, write_json
from videodata.finite import finite
from videodata.growing_array import GrowingArray
from videodata.pixels import to_float
from videodata.resize import Size
from videodata.source import ClipSource
from vqgan.data import merge_patches, open_frames, open_videos, split_patches
from vqgan.files import Model, model_identity, open_model, settle_grid

logger = logging.getLogger(__name__)
FORMAT = "lvt-codes"
LARGEST = np.iinfo(np.int16).max + 1  # codes that 16 bits can number; the published 16384 fit


def project_vqgan(args: argparse.Namespace) -> Iterator[str]:
    """Write <output_path>/<split>.npy for each split that the flags name, or go on with them; a line for each."""
    model, config = open_model(args)
    rows, columns = settle_grid(args, config)
    size = rows * args.patch_size, columns * args.patch_size
    for name in args.splits:
        split = None if name == "all" else name
        source, videos = open_videos(args.data_path, split, args.test_batch)
        made_from = {
            "data": open_frames(args.data_path, split, size, test_batch=args.test_batch).fingerprint(),
            "model": model_identity(Path(args.checkpoint)),
            "size": list(size),
            "grid": [rows, columns],
        }
        projection = Projection(model, source, videos, size, rows, columns, made_from, args.batch_size)
        path = project(projection, args.output_path, name)
        yield f"{path}: {len(projection.videos)} videos, {sum(projection.lengths)} frames"


@dataclass
class Projection:
    """What is to be projected: all frames of some videos, by one model, on one grid."""

    model: Model
    source: ClipSource
    videos: list[int]
    size: Size | None  # (height, width) of the frames; None: as stored
    rows: int
    columns: int
    made_from: dict[str, Any]  # names model and data; a partial array made from other ones is refused
    frames_at_a_time: int = 4

    @property
    def lengths(self) -> list[int]:
        return [self.source.length(video) for video in self.videos]

    def encode(self, frames: Tensor) -> np.ndarray:
        """Frames (T, 3, H, W) in [-1, 1], on the model's device -> indices int16 (T, 1, h, w)."""
        patches = split_patches(frames, self.rows, self.columns)
        indices = self.model.quantize(self.model.latents(patches))[1]
        return merge_patches(indices, self.rows, self.columns)[:, None].cpu().numpy().astype(np.int16)

    def codes_of(self, video: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first frame, indices) of consecutive pieces of a video."""
        length, device = self.source.length(video), next(self.model.parameters()).device
        for start in range(0, length, self.frames_at_a_time):
            count = min(self.frames_at_a_time, length - start)
            pixels = torch.from_numpy(self.source.read_clip(video, start, count, 1, self.size))
            yield start, self.encode(to_float(pixels.to(device)).movedim(1, 0))


@torch.no_grad()
def project(projection: Projection, folder: Path, name: str) -> Path:
    """Write <folder>/<name>.npy and .json, going on where an interrupted call stopped; gives the array's path.

    Raises UserError for codes that 16 bits cannot number, and for files there that were made from something else.
    """
    path = folder / f"{name}.npy"
    if projection.model.num_embeddings > LARGEST:
        raise UserError(f"{path}: a codebook of {projection.model.num_embeddings} codes does not fit 16 bits")
    if projection.model.quantizer.num_quantizers > 1:
        raise UserError(f"{path}: has room for one index per position, this model has several (num_quantizers)")
    with lock_file(path, "writing"), disk_errors(path):
        if is_finished(path, projection.made_from):
            logger.info("%s: exists already", path)
            return path
        check_neighbours(folder, projection.made_from)
        codebook = finite(projection.model.quantizer.codebook.float(), "codebook").cpu().numpy()
        array = fill(projection, path)
        write_file(folder / "codebook.npy", lambda file: np.save(file, codebook, allow_pickle=False))
        write_json(path.with_suffix(".json"), describe(projection))
        array.publish()
        array.forget()
    return path


def fill(projection: Projection, path: Path) -> GrowingArray:
    """Encode the videos that the array does not hold yet."""
    array, lengths = GrowingArray(path, projection.made_from), projection.lengths
    if array.begun_from not in (None, projection.made_from):
        raise UserError(f"{array.partial}: was begun from {array.begun_from}; remove it, or name another folder")
    height, width = projection.size or projection.source.size(projection.videos[0])
    factor, total = projection.model.downsample_factor, len(lengths)
    axes = (total, lengths[0]) if len(set(lengths)) == 1 else (sum(lengths),)
    array.open(np.int16, (*axes, 1, height // factor, width // factor))
    flat, starts = array.values.reshape(-1, *array.values.shape[-3:]), np.cumsum([0, *lengths])
    if array.done:
        logger.info("%s: %d of %d videos are there already", path, array.done, total)
    for number in tqdm(
        range(array.done, total), initial=array.done, total=total, unit="video", leave=False, disable=None
    ):
        for start, codes in projection.codes_of(projection.videos[number]):
            first = starts[number] + start
            flat[first : first + len(codes)] = codes
        array.note(number + 1)
    return array


def describe(projection: Projection) -> dict[str, Any]:
    """The content of the .json."""
    source, entries, first = projection.source, [], 0
    for video, frames in zip(projection.videos, projection.lengths, strict=True):
        entries.append({"id": source.id(video), "label": source.label(video), "first_frame": first, "frames": frames})
        first += frames
    facts = {"format": FORMAT, "version": 1, "size": projection.model.num_embeddings, "videos": entries}
    return {**facts, "made_from": projection.made_from, "grid": [projection.rows, projection.columns]}


def is_finished(path: Path, made_from: dict[str, Any]) -> bool:
    """Whether the array is there, made from the same. Raises UserError when it was made from something else."""
    if not path.exists():
        return False
    noted = read_json(path.with_suffix(".json"))
    if noted is None:
        raise UserError(f"{path}: has no readable .json beside it; remove it to make it again")
    if noted.get("made_from") != made_from:
        raise UserError(f"{path}: was made from {noted.get('made_from')}; remove it, or name another folder")
    return True


def check_neighbours(folder: Path, made_from: dict[str, Any]) -> None:
    """Raises UserError when the folder holds codes of another model: its splits share one codebook.npy."""
    for array in folder.glob("*.npy"):
        noted = (read_json(array.with_suffix(".json")) or {}).get("made_from", {})
        if noted.get("model", made_from.get("model")) != made_from.get("model"):
            raise UserError(f"{array}: holds codes of another model, {noted['model']}; name another folder")
