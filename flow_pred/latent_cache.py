"""Latents of a whole data set on disk, so that training does not encode the same frames again and again.

One file per split, <folder>/<split>.hdf5: `latents` (sum of frames, C, h, w) float16 or float32 as the autoencoder
gives them (not normalised), `offset` (videos + 1), `id` (videos), attributes format, autoencoder (hash), mean, std.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flow_pred.latent_space import Moments
from training.state import weights_digest
from videodata.errors import UserError, VideoError
from videodata.files import atomic_path
from videodata.hdf5 import open_hdf5
from videodata.pixels import normalize
from videodata.source import ClipSource, PerProcess
from videodata.splits import open_split

logger = logging.getLogger(__name__)
FORMAT = "flow-latents"
BLOCK = 64  # frames encoded at a time
DTYPES = ("float16", "float32")


def autoencoder_hash(autoencoder: nn.Module) -> str:
    """Names the weights of an autoencoder."""
    return weights_digest(autoencoder.state_dict())[:16]


@torch.no_grad()
def encode_latents(
    autoencoder: nn.Module,
    data: str,
    split: str,
    folder: Path,
    *,
    size: int,
    short_side: int | None = None,
    dtype: str = "float16",
    device: torch.device | str = "cpu",
) -> Path:
    """Write the latents of all frames of a split to <folder>/<split>.hdf5; gives its path. Raises UserError."""
    if dtype not in DTYPES:
        raise UserError(f"dtype of cached latents must be one of {', '.join(DTYPES)}, found {dtype!r}")
    source, videos = open_split(data, split)
    autoencoder = autoencoder.to(device).eval()
    lengths = [source.length(video) for video in videos]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    path, moments, done = Path(folder) / f"{split}.hdf5", Moments(), 0
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for video in videos:
            for frames in blocks(source, video, size, short_side):
                latents = autoencoder.encode(normalize(frames.to(device)))
                moments.add(latents)
                values = latents.float().cpu().numpy().astype(dtype)
                if done == 0:
                    file.create_dataset("latents", (int(offsets[-1]), *values.shape[1:]), dtype)
                file["latents"][done : done + len(values)] = values
                done += len(values)
        file["offset"] = offsets
        file.create_dataset("id", data=[source.id(video) for video in videos], dtype=h5py.string_dtype())
        file.attrs.update(
            format=FORMAT,
            version=1,
            autoencoder=autoencoder_hash(autoencoder),
            size=size,
            mean=json.dumps(moments.mean()),
            std=json.dumps(moments.std()),
        )
    logger.info("%s: latents of %d frames of %d videos", path, done, len(videos))
    return path


def blocks(source: ClipSource, video: int, size: int, short_side: int | None) -> Iterator[Tensor]:
    """Frames of one video, uint8 (n, 3, H, W) at a time."""
    for start in range(0, source.length(video), BLOCK):
        count = min(BLOCK, source.length(video) - start)
        frames = source.read_clip(video, start, count, 1, (size, size), short_side=short_side)
        yield torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)


class LatentClips(Dataset):
    """Clips of cached latents: items {"latents": (T, C, h, w)} with a random start, keyed like those of open_clips."""

    takes_positions = True

    def __init__(self, folder: str | Path, split: str, frames: int, stride: int = 1, seed: int = 0) -> None:
        self.path = Path(folder) / f"{split}.hdf5"
        if not self.path.is_file():
            raise UserError(f"{self.path}: no cached latents; scripts/encode_latents.py makes them")
        with open_hdf5(self.path) as file:
            if file.attrs.get("format") != FORMAT:
                raise VideoError(self.path, "holds no cached latents")
            self.attributes = dict(file.attrs)
            self.shape = file["latents"].shape[1:]
            offsets, self.ids = file["offset"][()], list(file["id"].asstr()[()])
        self.stride, self.seed, self.span = stride, seed, (frames - 1) * stride + 1
        lengths = np.diff(offsets)
        self._videos = np.flatnonzero(lengths >= self.span)
        if not len(self._videos):
            raise VideoError(self.path, f"no video has the {self.span} frames that a clip spans")
        self._offsets, self._lengths = offsets, lengths
        self._file = PerProcess(open_hdf5, self.path)

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        item, position = index if isinstance(index, tuple) else (index, None)
        video = self._videos[item]
        key = (self.seed, 0, item) if position is None else (self.seed, 1, int(position))
        start = int(np.random.default_rng(key).integers(self._lengths[video] - self.span + 1))
        first = int(self._offsets[video]) + start
        values = self._file.get()["latents"][first : first + self.span][:: self.stride]
        return {"latents": torch.from_numpy(values.astype(np.float32))}

    def describe(self, index: int) -> dict[str, str]:
        """The id of an item's video."""
        return {"id": self.ids[self._videos[index]]}

    def fingerprint(self) -> str:
        """Changes when the latents may have."""
        return f"{len(self)}-{self.attributes['autoencoder']}-{self._offsets[-1]}"

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over all frames of the file."""
        return json.loads(self.attributes["mean"]), json.loads(self.attributes["std"])

    def check(self, autoencoder: nn.Module) -> None:
        """Raises UserError if the latents are another autoencoder's."""
        expected, found = autoencoder_hash(autoencoder), self.attributes["autoencoder"]
        if expected != found:
            raise UserError(f"{self.path}: encoded by another autoencoder ({found}, not {expected}); encode again")
