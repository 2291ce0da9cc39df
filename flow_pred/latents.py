"""Latents of clips: normalised, in and out of an autoencoder, drawn for each sample by itself, stored on disk.

Normalised latents have mean 0 and variance 1 per channel, so that noise levels mean the same for every autoencoder. A
cache holds those of a whole data set, so that training does not encode the same frames again and again: one file per
split, <folder>/<split>.hdf5, with `latents` (sum of frames, C, h, w) float16 or float32 as the autoencoder gives them
(not normalised), `offset` (videos + 1), `id`, `label` (or "") and `place` (videos; the last as a run remembers what it
was trained on), and the attributes format, autoencoder (hash), mean, std, and what was encoded: source, split,
fingerprint.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flow_pred.autoencoder import build_autoencoder
from flow_pred.config import load_config
from training.cli import command_line, dtype_name
from training.distributed import announced, print0, resolve_device
from training.encoded import DTYPES, Encoded
from training.randomness import SampleNoise
from training.state import weights_digest
from training.tokenizer import Tokenizer, latent_frames, tokenizer_digest
from training.writing import check_place
from videodata.clips import open_clips, spread
from videodata.errors import UserError, VideoError
from videodata.files import parse_json
from videodata.finite import finite
from videodata.hdf5 import SMALL_CACHE_BYTES, check_room, hdf5_errors, lengths_between, new_hdf5, open_hdf5
from videodata.pixels import normalize
from videodata.source import ClipSource, PerProcess
from videodata.splits import open_split

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 64  # through an autoencoder, so that memory does not grow with the length of a roll-out
FORMAT = "flow-latents"
BLOCK = 64  # frames encoded at a time
LATENTS = "latents of the autoencoder"


class LatentSpace(nn.Module):
    """An autoencoder whose latents are normalised per channel. mean, std: C numbers each; None: 0 and 1."""

    def __init__(
        self, autoencoder: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("mean", column(mean or [0.0]), persistent=False)
        self.register_buffer("std", column(std or [1.0]), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> normalised latents (N, C, h, w), float32."""
        return self.normalize(self.autoencoder.encode(images).float())

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (N, C, h, w) -> images (N, 3, H, W)."""
        return self.autoencoder.decode(latents * self.std + self.mean)

    def encode_clip(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> normalised latents (B, t, C, h, w)."""
        return self.normalize(encode_clip(self.autoencoder, clips).float())

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, t, C, h, w) -> clips (B, 3, T, H, W)."""
        return decode_clip(self.autoencoder, latents * self.std + self.mean)

    def normalize(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents (..., C, h, w) -> normalised ones."""
        return (latents - self.mean) / self.std


def column(values: Sequence[float]) -> Tensor:
    """C numbers as (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


class Moments:
    """Running mean and standard deviation per channel, in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, latents: Tensor) -> None:
        """Take in latents (N, C, h, w)."""
        values = latents.detach().double().movedim(1, 0).flatten(1).cpu()  # (C, N * h * w)
        self.count += values.shape[1]
        self.sum = self.sum + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def mean(self) -> list[float]:
        """C numbers, to 6 digits."""
        return rounded(self.sum / self.count)

    def std(self) -> list[float]:
        """C numbers, to 6 digits; a channel that never changes counts as 1."""
        variance = (self.squares / self.count - (self.sum / self.count).square()).clamp_min(0)
        return rounded(torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance)))


def rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


@torch.no_grad()
def moments_of(autoencoder: nn.Module, clips: Iterable[Tensor]) -> Moments:
    """Moments of the latents of clips (3, T, H, W) in [-1, 1]."""
    moments = Moments()
    for clip in clips:
        moments.add(encode_clip(autoencoder, clip[None])[0])
    return moments


@dataclass(frozen=True)
class Clock:
    """How frames become latents in time, as a `Tokenizer` says it; by default one by one."""

    time_factor: int = 1
    causal: bool = True


def clock_of(autoencoder: nn.Module | None) -> Clock | Tokenizer:
    """That of an autoencoder, or of the one in a latent space."""
    inner = autoencoder.autoencoder if isinstance(autoencoder, LatentSpace) else autoencoder
    return getattr(inner, "tokenizer", Clock())


def encode_clip(autoencoder: nn.Module, clip: Tensor) -> Tensor:
    """Clip (B, 3, T, H, W) in [-1, 1] -> latents (B, t, C, h, w); t is T but for a tokenizer with a time factor."""
    if clock_of(autoencoder).time_factor > 1:
        return finite(autoencoder.encode_clip(clip), LATENTS)
    frames = clip.transpose(1, 2)  # (B, T, 3, H, W)
    parts = frames.flatten(0, 1).split(FRAMES_AT_ONCE)
    latents = torch.cat([autoencoder.encode(part) for part in parts])
    return finite(latents, LATENTS).unflatten(0, frames.shape[:2])


def decode_clip(autoencoder: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, t, C, h, w) -> clip (B, 3, T, H, W), clamped to [-1, 1]."""
    if clock_of(autoencoder).time_factor > 1:
        return autoencoder.decode_clip(finite(latents, "latents to decode")).clamp(-1, 1)
    parts = finite(latents, "latents to decode").flatten(0, 1).split(FRAMES_AT_ONCE)
    frames = torch.cat([autoencoder.decode(part) for part in parts]).unflatten(0, latents.shape[:2])
    return frames.transpose(1, 2).clamp(-1, 1)


def pick_frames(clips: Tensor, indices: Tensor) -> Tensor:
    """Frames (B, M, ...) of clips (B, N, ...) at indices (B, M)."""
    return clips[torch.arange(len(clips), device=clips.device)[:, None], indices]


@contextmanager
def at_rest(*networks: nn.Module | None) -> Iterator[None]:
    """Eval mode and no gradients for the length of the block; each network gets its own mode back."""
    modes = [(network, network.training) for network in networks if network is not None]
    for network, _ in modes:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for network, training in modes:
            network.train(training)


def sample_noise(
    batch: int, generator: torch.Generator | None, positions: Sequence[int] | None, device: torch.device
) -> SampleNoise:
    """One stream of noise per sample: row b depends on the generator's state and positions[b] (default b) alone."""
    source = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**62, (), generator=generator, device=source))
    return SampleNoise(seed, range(batch) if positions is None else positions, device)


class LatentPredictor(nn.Module):
    """A model that continues latent clips by `sample`, over an autoencoder or on latents alone."""

    autoencoder: nn.Module | None

    def sample(self, context_latents: Tensor, frames: int, **options: Any) -> Tensor:
        """Latents (B, n, C, h, w) of the known frames -> the same with more frames behind them."""
        raise NotImplementedError

    def predict(self, clip: Tensor, frames: int, **options: Any) -> Tensor:
        """Context clip (B, 3, n, H, W) in [-1, 1] -> the clip with what `sample` adds; options as for it."""
        clock = clock_of(self.autoencoder)
        given = latent_frames(clock, clip.shape[2], "a context")
        new = latent_frames(clock, clip.shape[2] + frames) - given
        with at_rest(self):
            return decode_clip(self.autoencoder, self.sample(encode_clip(self.autoencoder, clip), new, **options))


def below(uniform: Tensor, limit: Tensor) -> Tensor:
    """Uniform integers in [0, limit) from uniform numbers in [0, 1)."""
    return (uniform * limit).long().minimum(limit - 1)


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
    dtype: str = "fp16",
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> Path:
    """Write the latents of all frames of a split to <folder>/<split>.hdf5; gives its path. Raises UserError.

    most: videos of the split, evenly spread over it; None: all.
    """
    dtype = dtype_name(dtype)
    if dtype not in DTYPES:
        raise UserError(f"dtype of cached latents must be one of {', '.join(DTYPES)}, found {dtype!r}")
    source, videos = open_split(data, split)
    encoded = open_clips(data, 1, None, split=split).provenance(every_id=True)  # of the same videos, in the same order
    if most is not None and most < len(videos):
        videos, encoded["ids"] = spread(videos, most), spread(encoded["ids"], most)
    autoencoder = autoencoder.to(device).eval()
    lengths = [source.length(video) for video in videos]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    path, moments, done = Path(folder) / f"{split}.hdf5", Moments(), 0
    with new_hdf5(path) as file:
        for video in videos:
            for frames in blocks(source, video, size, short_side):
                latents = finite(autoencoder.encode(normalize(frames.to(device))), f"{LATENTS} of {source.id(video)}")
                moments.add(latents)
                values = as_stored(latents, DTYPES[dtype])
                # at first for all frames: better now than after hours
                check_room(path, values[0].nbytes * (int(offsets[-1]) if done == 0 else len(values)), SMALL_CACHE_BYTES)
                if done == 0:
                    file.create_dataset("latents", (int(offsets[-1]), *values.shape[1:]), DTYPES[dtype])
                file["latents"][done : done + len(values)] = values
                done += len(values)
        file["offset"] = offsets
        file.create_dataset("id", data=[source.id(video) for video in videos], dtype=h5py.string_dtype())
        labels = [source.label(video) or "" for video in videos]
        file.create_dataset("label", data=labels, dtype=h5py.string_dtype())
        file.create_dataset("place", data=encoded.pop("ids"), dtype=h5py.string_dtype())
        file.attrs.update(
            format=FORMAT,
            version=1,
            autoencoder=autoencoder_hash(autoencoder),
            size=size,
            mean=json.dumps(moments.mean()),
            std=json.dumps(moments.std()),
            **encoded,
        )
    logger.info("%s: latents of %d frames of %d videos", path, done, len(videos))
    return path


def as_stored(latents: Tensor, dtype: type) -> np.ndarray:
    """Latents as they go to the disk. Raises UserError for those that are too large for the type."""
    values = latents.float().cpu()
    if values.abs().max() > np.finfo(dtype).max:
        raise UserError(f"{LATENTS}: up to {values.abs().max():.3g}, too large for {dtype.__name__}; use --dtype fp32")
    return values.numpy().astype(dtype)


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
        with hdf5_errors(self.path), open_hdf5(self.path) as file:
            if file.attrs.get("format") != FORMAT:
                raise VideoError(self.path, "holds no cached latents")
            self.attributes = dict(file.attrs)
            self.shape, total = file["latents"].shape[1:], len(file["latents"])
            self._offsets = file["offset"][()]
            self._lengths = np.array(lengths_between(self._offsets, total), np.int64)
            texts = {name: list(file[name].asstr()[()]) for name in ("id", "label", "place") if name in file}
            self.ids, self._labels, self._places = texts["id"], texts.get("label"), texts.get("place")
            self._check(file["latents"].dtype, texts)
        self.stride, self.seed, self.span = stride, seed, (frames - 1) * stride + 1
        self._videos = np.flatnonzero(self._lengths >= self.span)
        if not len(self._videos):
            raise VideoError(self.path, f"no video has the {self.span} frames that a clip spans")
        self._latents = PerProcess(stored_latents, self.path)

    def _check(self, dtype: np.dtype, texts: dict[str, list[str]]) -> None:
        """Raise ValueError or KeyError where the file does not say of its latents what it must."""
        if dtype not in DTYPES.values() or len(self.shape) != 3:
            raise ValueError(f"its latents are {dtype} {self.shape}")
        if any(len(entries) != len(self._lengths) for entries in texts.values()):
            raise ValueError(f"its texts are not of {len(self._lengths)} videos")
        for name in ("mean", "std"):
            values = parse_json(self.attributes[name])
            if not isinstance(values, list) or len(values) != self.shape[0] or not np.isfinite(values).all():
                raise ValueError(f"its {name} is not a number for each of {self.shape[0]} channels")
        for name in ("autoencoder", *(("source", "split", "fingerprint") if "place" in texts else ())):
            if not isinstance(self.attributes[name], str):
                raise ValueError(f"its {name} is no text")

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        item, position = index if isinstance(index, tuple) else (index, None)
        video = self._videos[item]
        key = (self.seed, 0, item) if position is None else (self.seed, 1, int(position))
        start = int(np.random.default_rng(key).integers(self._lengths[video] - self.span + 1))
        first = int(self._offsets[video]) + start
        latents = self._latents.get()
        if isinstance(latents, np.memmap):
            values = latents[first : first + self.span : self.stride]
        else:
            with hdf5_errors(self.path):
                values = latents[first : first + self.span][:: self.stride]
        return {"latents": torch.from_numpy(np.array(values, np.float32))}

    def label(self, index: int) -> str | None:
        """The label of an item's video; None: it has none. Raises UserError for a file from before labels were kept."""
        if self._labels is None:
            raise UserError(f"{self.path}: holds no labels; encode again with scripts/encode_latents.py")
        return self._labels[self._videos[index]] or None

    def describe(self, index: int) -> dict[str, str]:
        """The id of an item's video."""
        return {"id": self.ids[self._videos[index]]}

    def fingerprint(self) -> str:
        """Changes when the latents may have."""
        return f"{len(self)}-{self.attributes['autoencoder']}-{self._offsets[-1]}"

    def provenance(self) -> dict[str, Any] | None:
        """The videos that were encoded, as `ClipDataset.provenance` tells of them; None: an older file."""
        if self._places is None:
            return None
        known = {name: self.attributes[name] for name in ("source", "split", "fingerprint")}
        return {**known, "ids": [self._places[video] for video in self._videos]}

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over all frames of the file."""
        return parse_json(self.attributes["mean"]), parse_json(self.attributes["std"])

    def check(self, autoencoder: nn.Module) -> None:
        """Raises UserError if the latents are another autoencoder's."""
        expected, found = autoencoder_hash(autoencoder), self.attributes["autoencoder"]
        if expected != found:
            raise UserError(f"{self.path}: encoded by another autoencoder ({found}, not {expected}); encode again")


def stored_latents(path: Path) -> np.memmap | h5py.Dataset:
    """The latents of a cache, (sum of frames, C, h, w). Raises VideoError.

    `encode_latents` stores them in one piece, which is mapped: HDF5 takes ten times as long to find a clip in it. What
    another program stored in chunks is read through HDF5.
    """
    file = open_hdf5(path)
    with hdf5_errors(path):
        latents = file["latents"]
        place = latents.id.get_offset()  # in the file; None where they lie in several pieces
        if place is None:
            return latents
        with file:
            return np.memmap(path, latents.dtype, "r", place, latents.shape)


class EncodedLatents(Dataset):
    """Clips of latents that scripts/encode.py stored: items as those of `LatentClips`.

    frames, stride: of the video. A window begins anywhere, but where a tokenizer with a time factor made the latents
    with the stored clip. Raises UserError for latents of other clips.
    """

    takes_positions = True

    def __init__(self, folder: str | Path, split: str, frames: int, stride: int = 1, seed: int = 0) -> None:
        self.encoded = Encoded(Path(folder) / f"{split}.npy")
        self.path, record = self.encoded.path, self.encoded.tokenizer
        if record["kind"] != "latents":
            raise UserError(f"{self.path}: holds codes; a predictor needs latents (scripts/encode.py --kind latents)")
        if record["stride"] not in ((stride,) if self.encoded.whole_clips else (1, stride)):
            raise UserError(
                f"{self.path}: was encoded with --stride {record['stride']}, and data.skip_frames + 1 is {stride}: "
                "encode it again, or change data.skip_frames"
            )
        self.stride, self.seed = stride // record["stride"], seed
        clock = Clock(record["time_factor"], record["causal"])
        self.frames = latent_frames(clock, frames, "data.frames_per_sample: a clip")
        span = (self.frames - 1) * self.stride + 1
        self._starts = {n: clip.length - span for n, clip in enumerate(self.encoded.clips) if clip.length >= span}
        self._clips = list(self._starts)
        if not self._clips:
            raise UserError(f"{self.path}: no clip has the {frames} frames of data.frames_per_sample")

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        item, position = index if isinstance(index, tuple) else (index, None)
        clip, start = self._clips[item], 0
        if not self.encoded.whole_clips:
            key = (self.seed, 0, item) if position is None else (self.seed, 1, int(position))
            start = int(np.random.default_rng(key).integers(self._starts[clip] + 1))
        values = self.encoded.read(clip, start, self.frames, self.stride)  # (t, h, w, C)
        return {"latents": torch.from_numpy(np.moveaxis(values, -1, 1).astype(np.float32))}

    def label(self, index: int) -> str | None:
        """The label of an item's video; None: it has none."""
        return self.encoded.clips[self._clips[index]].label

    def describe(self, index: int) -> dict[str, str]:
        """The id of an item's video."""
        return {"id": self.encoded.clips[self._clips[index]].id}

    def fingerprint(self) -> str:
        """Changes when the latents may have."""
        return f"{len(self)}-{self.encoded.tokenizer['digest']}-{len(self.encoded.array)}"

    def provenance(self) -> dict[str, Any]:
        """The videos that were encoded, as `ClipDataset.provenance` tells of them."""
        known = self.encoded.provenance
        return {**known, "ids": [known["ids"][clip] for clip in self._clips]}

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over all that is stored."""
        return self.encoded.moments

    def check(self, autoencoder: nn.Module) -> None:
        """Raises UserError if the latents are another tokenizer's."""
        expected, found = tokenizer_digest(autoencoder.tokenizer), self.encoded.tokenizer["digest"]
        if expected != found:
            raise UserError(f"{self.path}: encoded by another tokenizer ({found}, not {expected}); encode again")


def encode_splits(args: argparse.Namespace) -> None:
    """What scripts/encode_latents.py does: write the latents of each split to a file of its own."""
    config, _ = load_config(args.config, args.overrides)
    data, settings = config.data, config.model.autoencoder
    autoencoder = build_autoencoder({**settings, "ckpt_path": args.autoencoder or settings.get("ckpt_path")})
    options = {"size": data.crop_size, "short_side": data.input_size, "dtype": args.dtype}
    options |= {"device": announced(resolve_device(args.device)), "most": args.max_videos}
    for split in args.splits:
        check_place(args.out / f"{split}.hdf5")  # of all, before the first is encoded
    for split in args.splits:
        print0(encode_latents(autoencoder, args.data or data.data_root, split, args.out, **options))
    words = ["python", "scripts/train_flow_pred.py", "--config", args.config, f"data.latents={args.out}"]
    print0("next:", command_line([*words, *args.overrides]))
