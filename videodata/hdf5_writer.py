"""Write videos to HDF5 shards, in the fast layout or in the one that RIVER and Neural SDE read."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import h5py
import numpy as np

from videodata.errors import UserError
from videodata.hdf5_layouts import CHUNK_FRAMES, FORMAT
from videodata.hdf5_source import open_hdf5

COMPRESSIONS = (None, "gzip", "lzf")
BLOCK = 8 * CHUNK_FRAMES  # frames that are held in memory while a video is written
CACHE_BYTES = 8 << 20  # four chunks of 320x240
ROOM_TO_CLOSE = CACHE_BYTES + (8 << 20)  # with what HDF5 keeps of its own structures


class Hdf5Writer:
    """Appends videos to shards of at most `videos_per_shard` in a folder; use it in a `with` block.

    layout: "chunked" or "river" (see hdf5_layouts.py). A shard gets its final name when it is complete. With resume,
    complete shards that are there already are kept: `written` says how many videos they hold, so the caller goes on
    with the next one.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        layout: str = "chunked",
        videos_per_shard: int = 100_000,
        compression: str | None = None,
        resume: bool = False,
    ) -> None:
        if layout not in ("chunked", "river"):
            raise UserError(f'layout must be "chunked" or "river", found {layout!r}')
        if compression not in COMPRESSIONS:
            raise UserError(f"compression must be one of {COMPRESSIONS}, found {compression!r}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._new_shard = SHARDS[layout]
        self._digits = 5 if layout == "chunked" else 4
        self._videos_per_shard, self._compression = videos_per_shard, compression
        self._shard: ChunkedShard | RiverShard | None = None
        complete = sorted(self.folder.glob("shard_*.hdf5"))
        if complete and not resume:
            raise UserError(f"{self.folder} holds {len(complete)} shards already: resume, or choose an empty folder")
        self._number = len(complete)
        self.written = sum(_videos_in(shard) for shard in complete)

    def add(
        self,
        frames: Iterable[np.ndarray],
        id: str = "",
        label: str | None = None,
        fps: Fraction | None = None,
        group: str | None = None,
    ) -> None:
        """Append one video: an array uint8 (T, H, W, 3), or an iterable of uint8 (H, W, 3). Raises UserError."""
        if self._shard is None:
            self._number += 1
            path = self.folder / f"shard_{self._number:0{self._digits}d}.hdf5"
            self._shard = self._new_shard(path, self._compression)
        self._shard.add(_checked(frames, id), [id, label or "", group or "", "" if fps is None else str(fps)])
        self.written += 1
        if self._shard.videos == self._videos_per_shard:
            self._finish_shard()

    def close(self) -> None:
        """Complete the last shard."""
        if self._shard is not None:
            self._finish_shard()

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None:
            self.close()
        elif self._shard is not None:
            self._shard.discard()

    def _finish_shard(self) -> None:
        self._shard.finish()
        self._shard = None


class _Shard:
    """A shard under its temporary name."""

    def __init__(self, path: Path, compression: str | None) -> None:
        self.path, self.compression, self.videos = path, compression, 0
        self._partial = path.with_name(path.name + ".partial")
        # Blocks of frames end inside a chunk: the cache must hold the chunk until the next block completes it.
        self.file = h5py.File(self._partial, "w", rdcc_nbytes=CACHE_BYTES)

    def add(self, frames: Iterable[np.ndarray], facts: list[str]) -> None:
        """Append a whole video, given frame by frame."""
        frames = iter(frames)
        while block := list(islice(frames, BLOCK)):
            self.write(np.stack(block))
        self.end_video(facts)

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) to the video that is being written."""
        raise NotImplementedError

    def end_video(self, facts: list[str] | None) -> None:
        """Keep the video that is being written, with its id, label, group and fps; None drops it."""
        raise NotImplementedError

    def finish(self) -> None:
        self.file.close()
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Drop the shard."""
        with suppress(OSError, RuntimeError):
            self.file.close()
        self._partial.unlink(missing_ok=True)

    def _require_room(self, size: int) -> None:
        """Raise OSError while there is still room for what HDF5 holds.

        On a full disk its files cannot be closed: it crashes, or prints tracebacks that cannot be caught.
        """
        if shutil.disk_usage(self.path.parent).free < size + ROOM_TO_CLOSE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ChunkedShard(_Shard):
    """All frames in one dataset."""

    def __init__(self, path: Path, compression: str | None) -> None:
        super().__init__(path, compression)
        self._offsets, self._facts, self._end = [0], [], 0

    def write(self, frames: np.ndarray) -> None:
        self._require_room(frames.nbytes)
        data, shape = self._frames(frames.shape[1:]), frames.shape[1:]
        if shape != data.shape[1:]:
            raise UserError(f"{self.path}: all videos must have one size, {data.shape[1:]}, found {shape}")
        if self._end + len(frames) > len(data):
            data.resize(self._end + len(frames), axis=0)
        data[self._end : self._end + len(frames)] = frames
        self._end += len(frames)

    def end_video(self, facts: list[str] | None) -> None:
        if facts is None:
            self._end = self._offsets[-1]
            return
        self._offsets.append(self._end)
        self._facts.append(facts)
        self.videos += 1

    def finish(self) -> None:
        if "frames" in self.file:
            self.file["frames"].resize(self._end, axis=0)  # without what a dropped video left behind
        self.file["offset"] = np.array(self._offsets, np.int64)
        for name, values in zip(("id", "label", "group", "fps"), zip(*self._facts, strict=True), strict=True):
            self.file.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
        self.file.attrs.update(format=FORMAT, version=1, color="RGB")
        super().finish()

    def _frames(self, shape: tuple[int, ...]) -> h5py.Dataset:
        if "frames" in self.file:
            return self.file["frames"]
        return self.file.create_dataset(
            "frames",
            (0, *shape),
            np.uint8,
            maxshape=(None, *shape),
            chunks=(CHUNK_FRAMES, *shape),
            compression=self.compression,
            compression_opts=1 if self.compression == "gzip" else None,
        )


class RiverShard(_Shard):
    """One dataset per frame, lzf, and the empty group `videos` that readers of this layout may look for."""

    def __init__(self, path: Path, compression: str | None) -> None:
        super().__init__(path, compression or "lzf")
        self.file.create_group("len")
        self.file.create_group("videos")

    def write(self, frames: np.ndarray) -> None:
        self._require_room(frames.nbytes)
        video = self.file.require_group(str(self.videos))
        for count, frame in enumerate(frames, len(video)):
            video.create_dataset(str(count), data=frame, chunks=frame.shape, compression=self.compression)

    def end_video(self, facts: list[str] | None) -> None:
        video = self.file.require_group(str(self.videos))
        if facts is None:
            del self.file[str(self.videos)]
            return
        self.file["len"].create_dataset(str(self.videos), data=np.int64(len(video)))
        self.videos += 1


SHARDS = {"chunked": ChunkedShard, "river": RiverShard}


def _checked(frames: Iterable[np.ndarray], id: str) -> Iterable[np.ndarray]:
    """The frames, each of them uint8 (H, W, 3) all of one size. Raises UserError, also if there is none."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError(f"video {id!r} has no frames")
    for frame in chain([first], frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != first.shape:
            raise UserError(
                f"video {id!r}: expected uint8 (H, W, 3) frames of one size, found {frame.dtype} {frame.shape}"
            )
        yield frame


def _videos_in(shard: Path) -> int:
    with open_hdf5(shard) as file:
        return len(file["offset"]) - 1 if "offset" in file else len(file["len"])
