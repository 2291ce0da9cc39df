"""Latents on disk: frame by frame (T/4, z, H/8, W/8) in .npy or .hdf5, with what is needed to make a video of them.

Models that are trained on them want their mean and deviation: `latent_statistics`.

A .npy has its facts in a .json of the same name beside it, a .hdf5 in the attributes of its data set `latents`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from torch import Tensor

from .errors import VVAEError
from .files import replaced
from .tiling import FRAMES, PIXELS, padded_length

SUFFIXES = (".npy", ".hdf5", ".h5")
ROOM_TO_CLOSE = 9 << 20  # bytes that HDF5 may hold back until a file is closed: chunks, and its own structures
HEADER_BYTES = 128  # of a .npy: fixed, so that the number of frames can be filled in at the end


@dataclass
class LatentInfo:
    """Where latents come from, and the size of the video that they stand for."""

    source: str
    fps: Fraction
    frames: int
    height: int
    width: int
    channels: int
    window: int
    overlap: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the frame rate as a string such as "30000/1001"."""
        return {**asdict(self), "fps": str(self.fps), "format": "vvae-latents", "version": 1}

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: object) -> LatentInfo:
        """The inverse of `to_dict`. Raises VVAEError where facts are missing."""
        try:
            kinds = {"source": str, "fps": Fraction}
            return cls(**{entry.name: kinds.get(entry.name, int)(values[entry.name]) for entry in fields(cls)})
        except (KeyError, ValueError, TypeError, ArithmeticError) as error:
            raise VVAEError(f"{path}: not the description of a latent file (no valid {error})") from error


class LatentWriter(Protocol):
    """Takes latents (z, t, h, w) in the order of time."""

    def append(self, latent: Tensor) -> None: ...


@contextmanager
def latent_writer(path: str | Path, info: LatentInfo) -> Iterator[LatentWriter]:
    """A writer for latents of unknown number; the file appears when the block ends without an error."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise VVAEError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
    with replaced(path) as temporary:
        if path.suffix == ".npy":
            with open(temporary, "wb") as file:
                writer = _NpyWriter(file)
                yield writer
                writer.finish()
            with replaced(path.with_suffix(".json")) as facts:
                facts.write_text(json.dumps(info.to_dict(), indent=2) + "\n", encoding="utf-8", newline="\n")
        else:
            _require_room(temporary, 0)
            with _h5py().File(temporary, "w") as file:
                writer = _HDF5Writer(file)
                yield writer
                writer.finish(info)


@contextmanager
def open_latents(path: str | Path) -> Iterator[tuple[LatentInfo, Iterator[np.ndarray]]]:
    """Facts and latent frames (z, h, w) of a file, which is read as the frames are asked for. Raises VVAEError."""
    path = Path(path)
    if not path.is_file():
        raise VVAEError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise VVAEError(f"{path}: not a latent file; its name must end in {', '.join(SUFFIXES)}")
    if path.suffix == ".npy":
        latents = _read_npy(path)
        facts = path.with_suffix(".json")
        if not facts.is_file():
            raise VVAEError(f"{facts}: no such file; encode_file writes it beside the latents")
        info = LatentInfo.from_dict(_parsed(facts.read_bytes(), facts), facts)
        yield _fitting(info, latents, path), iter(latents)
        return
    with _hdf5_errors(path):
        file = _h5py().File(path, "r")
    with file:
        with _hdf5_errors(path):
            latents = file.get("latents")
            if latents is None or "info" not in latents.attrs:
                raise VVAEError(f"{path}: holds no data set `latents` with its facts; encode_file writes such files")
            info = _fitting(LatentInfo.from_dict(_parsed(latents.attrs["info"], path), path), latents, path)
        yield info, _frames(latents, path)


def _frames(latents: Any, path: Path) -> Iterator[np.ndarray]:
    for number in range(len(latents)):
        with _hdf5_errors(path):
            frame = latents[number]
        yield frame


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """Turn what h5py raises in the block for a damaged file into a VVAEError; it raises nearly everything."""
    try:
        yield
    except VVAEError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise VVAEError(f"{path}: not a readable .hdf5 file ({' '.join(str(error).split())})") from error


def read_info(path: str | Path) -> LatentInfo:
    """The facts of a latent file. Raises VVAEError."""
    with open_latents(path) as (info, _):
        return info


def _fitting(info: LatentInfo, latents: Any, path: Path) -> LatentInfo:
    """The facts, once they are known to describe these latents, an array or a data set of HDF5."""
    shape = latents.shape
    if latents.dtype.kind != "f":
        raise VVAEError(f"{path}: the latents are {latents.dtype}, not floating-point numbers")
    if min(info.frames, info.channels, info.height, info.width, info.window) < 1 or info.overlap < 0 or info.fps <= 0:
        raise VVAEError(f"{path}: its facts describe no latents: {info}")
    cells = (padded_length(info.frames, FRAMES) // FRAMES, info.channels)
    expected = (*cells, padded_length(info.height, PIXELS) // PIXELS, padded_length(info.width, PIXELS) // PIXELS)
    if tuple(shape) != expected:
        raise VVAEError(f"{path}: the latents are {tuple(shape)}, but their facts describe {expected}")
    return info


def _parsed(text: str | bytes, path: object) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise VVAEError(f"{path}: not valid JSON ({error})") from error


def _read_npy(path: Path) -> np.ndarray:
    """The mapped array. Its header is a Python expression, so that NumPy raises nearly everything for a damaged one."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:  # an archive or a pickle, which np.load opens as well
                raise ValueError("it begins like another kind of file")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, ArithmeticError, SyntaxError, TokenError, OSError, EOFError) as error:
        raise VVAEError(f"{path}: not a readable .npy file ({' '.join(str(error).split())})") from error


class _NpyWriter:
    def __init__(self, file: Any) -> None:
        self.file = file
        self.shape: tuple[int, ...] = ()
        self.count = 0
        file.write(b" " * HEADER_BYTES)

    def append(self, latent: Tensor) -> None:
        frames = np.ascontiguousarray(latent.movedim(1, 0).float().cpu().numpy())  # (t, z, h, w)
        self.shape = frames.shape[1:]
        self.count += len(frames)
        self.file.write(frames.astype("<f4").tobytes())

    def finish(self) -> None:
        """Write the header (NumPy format 1.0) now that the number of frames is known."""
        description = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(self.count, *self.shape)}, }}"
        text = description.ljust(HEADER_BYTES - 11) + "\n"  # 10 bytes of magic and length stand before it
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii"))


class _HDF5Writer:
    def __init__(self, file: Any) -> None:
        self.file = file
        self.latents: Any = None

    def append(self, latent: Tensor) -> None:
        frames = latent.movedim(1, 0).float().cpu().numpy()  # (t, z, h, w)
        _require_room(Path(self.file.filename), frames.nbytes)
        if self.latents is None:
            shape = frames.shape[1:]
            self.latents = self.file.create_dataset(
                "latents", (0, *shape), dtype="<f4", maxshape=(None, *shape), chunks=(1, *shape)
            )
        self.latents.resize(len(self.latents) + len(frames), axis=0)
        self.latents[len(self.latents) - len(frames) :] = frames

    def finish(self, info: LatentInfo) -> None:
        """Store the facts, of which the number of frames is known only now."""
        if self.latents is not None:
            self.latents.attrs["info"] = json.dumps(info.to_dict())


def _require_room(path: Path, size: int) -> None:
    """Raises OSError before HDF5 gets what there may be no room for: closing a file on a full disk, it crashes."""
    if shutil.disk_usage(path.parent).free < size + ROOM_TO_CLOSE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise VVAEError("an .hdf5 file needs the h5py package: pip install h5py, or write .npy") from error
    return h5py


def latent_statistics(paths: Iterable[str | Path]) -> dict[str, Any]:
    """`latents_mean`, `latents_std` (per channel) and `scaling_factor` (1 / overall deviation) over latent files.

    One pass in float64. Raises VVAEError when the files differ in the number of channels or hold nothing.
    """
    count, total, square = 0, 0.0, 0.0
    for path in paths:
        with open_latents(path) as (_, frames):
            for frame in frames:  # (z, h, w)
                values = frame.reshape(len(frame), -1).astype(np.float64)
                if count and len(values) != len(total):
                    raise VVAEError(f"{path}: has {len(values)} channels, the files before it {len(total)}")
                count += values.shape[1]
                total = total + values.sum(axis=1)
                square = square + np.square(values).sum(axis=1)
    if not count:
        raise VVAEError("no latents found")
    mean = total / count
    variance = np.maximum(square / count - mean**2, 0.0)
    overall = np.sqrt(np.mean(variance + mean**2) - np.mean(mean) ** 2)
    return {
        "latents_mean": mean.tolist(),
        "latents_std": np.sqrt(variance).tolist(),
        "scaling_factor": float(1.0 / overall) if overall > 0 else 1.0,
    }
