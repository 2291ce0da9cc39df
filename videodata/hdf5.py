"""Videos in HDF5: shards read in three layouts, and written in two of them.

chunked   ours: `frames` (sum of frames, H, W, 3) in chunks of 8 frames, `offset` (videos + 1); `id`, `label`, `group`,
          `fps` (videos,) strings. 10 to 20 times faster to read than one dataset per frame.
river     RIVER, Neural SDE, MCVD: `len/<i>` = frames of video i, `<i>/<t>` = frame t (H, W, 3); other groups ignored.
videogpt  VideoGPT: `train_data` (frames, H, W, 3), `train_idx` = first frame of each video; the same for `test`.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5s

from videodata.errors import UserError, VideoError, one_line, said_by
from videodata.files import Unreadable, files_in_folder, free_space, publish, sole_path
from videodata.resize import Size
from videodata.source import (
    HDF5_SUFFIXES,
    ClipSource,
    JoinedSource,
    PerProcess,
    by_split,
    frame_range,
    open_each,
    stored_rate,
)

FORMAT = "videodata-hdf5"
CHUNK_FRAMES = 8
BLOCK = 8 * CHUNK_FRAMES  # frames that are held in memory while a video is written
CACHE_BYTES = 8 << 20  # four chunks of 320x240
FACTS = ("id", "label", "group", "fps")
LOCKED = (
    "is locked: wait for the program that writes to it; where there is none, its disk has no locks: set "
    "HDF5_USE_FILE_LOCKING=FALSE in the environment"
)
ROOM_OF_STRUCTURES = 8 << 20  # of HDF5 itself, written when a file is closed
SMALL_CACHE_BYTES = 1 << 20  # of files that are opened without another number


@contextmanager
def hdf5_errors(where: object) -> Iterator[None]:
    """Turn what h5py raises in the block for a file that is damaged, or laid out otherwise, into a VideoError.

    It raises nearly everything: the errors of the C library are RuntimeErrors, OSErrors or KeyErrors, and a group in
    the place of a data set, or another type or shape of it, ends in one of the others.
    """
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise VideoError(where, f"cannot be read ({said_by(error)}); prepare the data again") from error


class Hdf5File(ClipSource):
    """The videos of one file; a subclass for each layout says where they are."""

    interpolation = "bilinear"  # as the programs do that the layouts of others come from

    def __init__(self, path: Path, file: h5py.File) -> None:
        """file: the same file, opened for a moment. Raises what h5py raises; see `hdf5_errors`."""
        self.path = str(path)
        self._file = PerProcess(open_hdf5, path)
        self._lengths: list[int] = self._count(file)
        self._facts: dict[str, list[str | None]] = {}  # "id", "label", "group", "fps", where the file has them

    def __len__(self) -> int:
        return len(self._lengths)

    def id(self, index: int) -> str:
        return one_line(self._fact("id", index) or f"{Path(self.path).stem}/{index}")

    def label(self, index: int) -> str | None:
        return self._fact("label", index)

    def group(self, index: int) -> str:
        return one_line(self._fact("group", index) or self.id(index))

    def fps(self, index: int) -> Fraction | None:
        fps = self._fact("fps", index)
        try:
            return stored_rate(fps) if fps else None
        except ValueError as error:
            raise VideoError(f"{self.path}, video {index}", f"its fps is no number: {fps!r}") from error

    def length(self, index: int) -> int:
        return self._lengths[index]

    def place(self, index: int) -> str:
        return f"{self.path}#{index}"

    def size(self, index: int) -> Size:
        with hdf5_errors(f"{self.path}, video {index}"):
            height, width = self._size(self._file.get(), index)
        return height, width

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        where = f"{self.path}, video {index}"
        frames = frame_range(where, self.length(index), start, count, step)
        with hdf5_errors(where):
            pixels = self._read(self._file.get(), index, frames)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise VideoError(where, f"expected frames uint8 (H, W, 3), found {pixels.dtype} {pixels.shape[1:]}")
        return pixels

    @abstractmethod
    def _size(self, file: h5py.File, index: int) -> Sequence[int]:
        """Height and width of a video's frames."""

    @abstractmethod
    def _count(self, file: h5py.File) -> list[int]:
        """Frames of each video."""

    @abstractmethod
    def _read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        """The given frames of a video, (T, H, W, 3)."""

    def _fact(self, name: str, index: int) -> str | None:
        values = self._facts.get(name)
        return values[index] if values else None


class ChunkedFile(Hdf5File):
    """All frames of the file in one dataset."""

    interpolation = "area"

    def __init__(self, path: Path, file: h5py.File) -> None:
        super().__init__(path, file)
        for name in set(FACTS) & set(file):
            self._facts[name] = _read_texts(file[name], len(self))
        for fps in filter(None, self._facts.get("fps", ())):
            stored_rate(fps)

    def _size(self, file: h5py.File, index: int) -> Sequence[int]:
        return file["frames"].shape[1:3]

    def _count(self, file: h5py.File) -> list[int]:
        return lengths_between(file["offset"][()], len(file["frames"]))

    def _read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        return _slice(file["frames"], int(file["offset"][index]), frames)


class RiverFile(Hdf5File):
    """One dataset per frame, under one group per video."""

    def _size(self, file: h5py.File, index: int) -> Sequence[int]:
        return file[f"{index}/0"].shape[:2]

    def _count(self, file: h5py.File) -> list[int]:
        # By the low-level calls: there can be 100,000 of these one-number datasets, and they are five times faster.
        group, length, lengths = file["len"].id, np.empty((), np.int64), []
        one = h5s.create(h5s.SCALAR)  # with h5s.ALL a longer data set would be written beyond the end of `length`
        for index in range(len(file["len"])):
            h5d.open(group, b"%d" % index).read(one, h5s.ALL, length)
            lengths.append(int(length))
        # More frames than bytes would be believed until one of them is read, and every window be tried.
        if min(lengths, default=0) < 0 or sum(lengths) > os.path.getsize(self.path):
            raise ValueError("the numbers of frames in `len` are damaged")
        return lengths

    def _read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        video = file[str(index)]
        return np.stack([video[str(frame)][()] for frame in frames])


class VideoGptFile(Hdf5File):
    """Two long datasets of frames, one for training and one for testing."""

    def _size(self, file: h5py.File, index: int) -> Sequence[int]:
        return self._locate(file, index)[0].shape[1:3]

    def splits(self) -> dict[str, list[int]] | None:
        return by_split(self._splits)

    def _count(self, file: h5py.File) -> list[int]:
        lengths, self._splits = [], []
        for split in ("train", "test"):
            if f"{split}_data" in file:
                total = len(file[f"{split}_data"])
                found = lengths_between(np.append(file[f"{split}_idx"][()], total), total)
                lengths += found
                self._splits += [split] * len(found)
        return lengths

    def _read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        data, first = self._locate(file, index)
        return _slice(data, first, frames)

    def _locate(self, file: h5py.File, index: int) -> tuple[h5py.Dataset, int]:
        train = self._splits.count("train")
        split, local = ("train", index) if index < train else ("test", index - train)
        return file[f"{split}_data"], int(file[f"{split}_idx"][local])


def open_shard(path: Path) -> Hdf5File:
    """A file in whichever layout it has. Raises VideoError if it is none of the three."""
    with hdf5_errors(path), open_hdf5(path) as file:
        if "frames" in file and "offset" in file:
            return ChunkedFile(path, file)
        if "len" in file:
            return RiverFile(path, file)
        if "train_data" in file or "test_data" in file:
            return VideoGptFile(path, file)
        raise VideoError(
            path,
            "is no HDF5 file of videos: expected groups `len` and `0`, `1`, ..., or datasets `frames` and `offset`, "
            f"or `train_data` and `train_idx`; found {sorted(file)[:5]}",
        )


def _read_texts(data: h5py.Dataset, count: int) -> list[str | None]:
    """A text for each video; numbers, which other programs store, as they are written. Raises ValueError."""
    values = data.asstr(errors="backslashreplace")[()] if h5py.check_string_dtype(data.dtype) else data[()]
    if len(values) != count:
        raise ValueError(f"{data.name} has {len(values)} entries for {count} videos")
    return [str(value) or None for value in values]


def lengths_between(offsets: np.ndarray, total: int) -> list[int]:
    """Frames of the videos that begin at the offsets, the last of which is their end.

    Raises ValueError for offsets that do not divide `total` frames.
    """
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.size == 0 or not 0 <= offsets[0] <= offsets[-1]:
        raise ValueError(f"the first frames of its videos are damaged: {offsets.dtype} {offsets.shape}")
    if offsets[-1] > total or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"the first frames of its videos do not lie in order among the {total} frames")
    return np.diff(offsets).tolist()


def _slice(data: h5py.Dataset, first: int, frames: range) -> np.ndarray:
    """Frames of a contiguous stretch; read whole and thinned after, because HDF5 is slow at strides."""
    return data[first + frames.start : first + frames[-1] + 1][:: frames.step]


class Hdf5Source(JoinedSource):
    """Videos of all shards, numbered through in the order of the shards' names. Shards without videos are allowed."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.exists():
            raise VideoError(path, "no such file or folder")
        unreadable: Unreadable = {}
        files = [path] if path.is_file() else files_in_folder(path, HDF5_SUFFIXES, deep=False, unreadable=unreadable)
        shards, broken = open_each(files, open_shard, unreadable)
        super().__init__(path, shards if any(map(len, shards)) else [], broken)


def open_hdf5(path: str | Path) -> h5py.File:
    """Open for reading. Raises VideoError if the file is missing, truncated or no HDF5."""
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise VideoError(path, "no such file") from error
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        reason = said_by(error)
        if "unable to lock file" in reason:
            raise VideoError(path, LOCKED) from error
        reason = "truncated: the file is shorter than it should be" if "truncated" in reason else reason
        raise VideoError(path, f"is not a readable HDF5 file ({reason}); prepare it again") from error


class ShardSeries:
    """Shards of at most `videos_per_shard` in a folder, numbered from 1; each has its name when it is complete.

    layout: "chunked" or "river", as described above. Raises UserError for another one.
    """

    def __init__(self, folder: str | os.PathLike, layout: str = "chunked", videos_per_shard: int = 100_000) -> None:
        if layout not in SHARDS:
            raise UserError(f'layout must be "chunked" or "river", found {layout!r}')
        self.folder, self.number = Path(folder), 1  # number: of the shard that is being written
        self._new_shard, self._videos_per_shard = SHARDS[layout], videos_per_shard
        self._digits = 5 if layout == "chunked" else 4
        self._shard: _Shard | None = None

    def name(self, number: int) -> str:
        return f"shard_{number:0{self._digits}d}.hdf5"

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) to the video that is being written."""
        if self._shard is None:
            self._shard = self._new_shard(self.folder / self.name(self.number))
        self._shard.write(frames)

    def end_video(self, facts: list[str] | None) -> bool:
        """Keep the video with the values of its FACTS, or drop it (None); whether that completed a shard."""
        if self._shard is None:  # nothing was written of it
            return False
        self._shard.end_video(facts)
        return self._shard.videos == self._videos_per_shard and self.finish()

    def finish(self) -> bool:
        """Complete the shard that is being written; whether there was a video in it."""
        if self._shard is None or not self._shard.videos:
            self.discard()
            return False
        self._shard.finish()
        self._shard, self.number = None, self.number + 1
        return True

    def discard(self) -> None:
        """Remove the shard that is being written."""
        if self._shard is not None:
            self._shard.discard()
            self._shard = None


class Hdf5Writer(ShardSeries):
    """Appends whole videos; use it in a `with` block. `written` counts them.

    Raises UserError for a folder that holds shards already.
    """

    def __init__(self, folder: str | os.PathLike, layout: str = "chunked", videos_per_shard: int = 100_000) -> None:
        super().__init__(folder, layout, videos_per_shard)
        self.written = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        complete = list(self.folder.glob("shard_*.hdf5"))
        if complete:
            raise UserError(f"{self.folder} holds {len(complete)} shards already: choose an empty folder")

    def add(
        self,
        frames: Iterable[np.ndarray],
        id: str = "",
        label: str | None = None,
        fps: Fraction | None = None,
        group: str | None = None,
    ) -> None:
        """Append one video: an array uint8 (T, H, W, 3), or an iterable of uint8 (H, W, 3). Raises UserError."""
        checked = _checked(frames, id)
        while block := list(islice(checked, BLOCK)):
            self.write(np.stack(block))
        self.end_video([id, label or "", group or "", "" if fps is None else str(fps)])
        self.written += 1

    def close(self) -> None:
        """Complete the last shard."""
        self.finish()

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None:
            self.close()
        else:
            self.discard()


def check_room(path: str | Path, size: int, cache: int = CACHE_BYTES) -> None:
    """Raise OSError before HDF5 gets `size` bytes for a file at `path` while there is room for what it holds back.

    On a full disk its files cannot be closed: it crashes, or prints tracebacks that cannot be caught. cache: bytes of
    chunks that the open file may hold.
    """
    if free_space(Path(path).parent)[0] < size + cache + ROOM_OF_STRUCTURES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def new_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """A new file for the length of the block: whole or absent, and written by one process at a time.

    `check_room` before whatever is given to it. Raises OSError where there is no room, UserError for a second process.
    """
    with sole_path(path) as temporary:
        check_room(path, 0, SMALL_CACHE_BYTES)
        with h5py.File(temporary, "w") as file:
            yield file


class _Shard(ABC):
    """A shard under its temporary name."""

    def __init__(self, path: Path) -> None:
        self.path, self.videos = path, 0
        self._partial = path.with_name(path.name + ".partial")
        # Blocks of frames end inside a chunk: the cache must hold the chunk until the next block completes it.
        self.file = h5py.File(self._partial, "w", rdcc_nbytes=CACHE_BYTES)

    @abstractmethod
    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) to the video that is being written."""

    @abstractmethod
    def end_video(self, facts: list[str] | None) -> None:
        """Keep the video that is being written, with the values of its FACTS; None drops it."""

    def finish(self) -> None:
        self.file.close()
        publish(self._partial, self.path)

    def discard(self) -> None:
        with suppress(OSError, RuntimeError):
            self.file.close()
        self._partial.unlink(missing_ok=True)


class ChunkedShard(_Shard):
    """All frames in one dataset."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets, self._facts, self._end = [0], [], 0

    def write(self, frames: np.ndarray) -> None:
        check_room(self.path, frames.nbytes)
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
        for name, values in zip(FACTS, zip(*self._facts, strict=True), strict=True):
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
        )


class RiverShard(_Shard):
    """One dataset per frame, lzf, and the empty group `videos` that readers of this layout may look for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file.create_group("len")
        self.file.create_group("videos")

    def write(self, frames: np.ndarray) -> None:
        check_room(self.path, frames.nbytes)
        video = self.file.require_group(str(self.videos))
        for count, frame in enumerate(frames, len(video)):
            video.create_dataset(str(count), data=frame, chunks=frame.shape, compression="lzf")

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
