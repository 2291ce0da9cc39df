"""Videos in tar shards, on this disk or behind an address, as one numbered list.

How they are named: tars/names.py. What is in them stands in the index beside them (tars/index.py), which is mapped: a
source of ten million videos opens like one of ten.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from videodata.errors import VideoError, disk_errors, said_by
from videodata.files import atomic_path, lock_file, sha256_of, user_cache, write_file
from videodata.resize import Size
from videodata.source import ClipSource, PerProcess, Videos, as_array, frame_range
from videodata.storage import Local, Storage, StorageError, divided, open_storage
from videodata.stretch import Stretch
from videodata.tars.cache import FOLDER, ShardCache, cache_from_environment, changed
from videodata.tars.index import FRAMES, NONE, REMEDY, Shard, TarIndex
from videodata.tars.names import ShardList, how_to_index
from videodata.video import read_scaled, read_video

logger = logging.getLogger(__name__)
OPEN_SHARDS = 64  # files that a process keeps open


class TarSource(ClipSource):
    """The samples of the shards that a path names. Raises UserError."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(path)
        shards = ShardList.parse(self.path)
        self.index = open_index(shards)
        self.base = self.index.base or shards.base
        self._shards = self._chosen(shards)
        counts = [len(self.index.rows_of(number)) for number in self._shards]
        for number, count in zip(self._shards, counts, strict=True):
            shard = self.index.shards[number]
            told, there = shards.counts.get(shard.name), count + shard.skipped
            if told not in (None, there):
                raise VideoError(
                    self.path, f"says that {shard.name} has {told} samples, its index has {there}; {REMEDY}"
                )
        if not sum(counts):
            raise VideoError(self.path, "its shards hold no videos")
        self._ends = np.cumsum(counts)
        self._is_whole = len(self._shards) == len(self.index.shards)
        self._reader = PerProcess(_Reader, self.base)

    def _chosen(self, shards: ShardList) -> np.ndarray:
        """Numbers of the shards that are meant, in the order of the index."""
        if shards.names is None:
            return np.arange(len(self.index.shards))
        known = {shard.name: number for number, shard in enumerate(self.index.shards)}
        missing = [name for name in shards.names if name not in known]
        if missing:
            more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
            raise VideoError(self.path, f"{missing[0]}{more} not in {shards.index}; {how_to_index(self.path)}")
        return np.array(sorted({known[name] for name in shards.names}))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, video: int) -> int:
        """Number of a video's row in the index."""
        if self._is_whole:
            return int(video)
        place = int(np.searchsorted(self._ends, video, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return self.index.rows_of(int(self._shards[place])).start + int(video) - before

    def _column(self, name: str, videos: Videos) -> np.ndarray:
        """A column of the index for some videos, mapped where they follow each other."""
        column = self.index.columns[name]
        if not self._is_whole:
            rows = [self.index.rows_of(int(number)) for number in self._shards]
            column = np.concatenate([column[part.start : part.stop] for part in rows])
        if isinstance(videos, range):
            return column[videos.start : videos.stop : videos.step]
        return column[as_array(videos)]

    def id(self, index: int) -> str:
        return self.index.id(self.row(index))

    def length(self, index: int) -> int:
        return int(self.index.columns["frames"][self.row(index)])

    def size(self, index: int) -> Size:
        row = self.row(index)
        return int(self.index.columns["height"][row]), int(self.index.columns["width"][row])

    def label(self, index: int) -> str | None:
        return self.index.text("label", self.row(index))

    def group(self, index: int) -> str:
        row = self.row(index)
        return self.index.text("group", row) or self.index.id(row)

    def fps(self, index: int) -> Fraction | None:
        return self.index.fps(self.row(index))

    def stamp(self, index: int) -> str:
        return str(int(self.index.columns["bytes"][self.row(index)]))

    def splits(self) -> dict[str, np.ndarray] | None:
        column = self._column("split", range(len(self)))
        numbers = np.unique(column).tolist()
        if numbers == [NONE]:
            return None
        found: dict[str, np.ndarray] = {}
        for number in numbers:
            name = "train" if number == NONE else self.index.text_of(number)
            found[name] = np.sort(
                np.concatenate([found.get(name, np.zeros(0, np.int64)), np.flatnonzero(column == number)])
            )
        return found

    def lengths(self, videos: Videos) -> np.ndarray:
        return self._column("frames", videos)

    def distinct(self, fact: str, videos: Videos) -> tuple[list, np.ndarray]:
        if fact == "size":
            sides = self._column("height", videos).astype(np.int64) << 32 | self._column("width", videos)
            values, numbers = np.unique(sides, return_inverse=True)
            return [(int(value) >> 32, int(value) & 0xFFFFFFFF) for value in values], numbers
        column = self._column({"fps": "rate", "label": "label"}[fact], videos)
        values, numbers = np.unique(column, return_inverse=True)
        if fact == "label":
            return [None if value == NONE else self.index.text_of(int(value)) for value in values], numbers
        return [self.index.rate(int(value)) for value in values], numbers

    def group_hashes(self, videos: Videos) -> np.ndarray:
        return self._column("hash", videos)

    def blocks(self) -> np.ndarray:
        return np.concatenate([[0], self._ends[:-1]])

    @cached_property
    def _digest(self) -> str:
        if self._is_whole:
            return self.index.digest
        chosen = repr(self._shards.tolist())
        return hashlib.sha256(f"{self.index.digest} {chosen}".encode()).hexdigest()

    def digest(self) -> str:
        return self._digest

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        row = self.row(index)
        if self.index.text("kind", row) != FRAMES:
            with self._film(row) as film:
                return read_video(film, start, count, step=step)[0]
        name = f"{self.base}#{self.index.id(row)}"
        height, width = self.size(index)
        length = self.length(index)
        chosen = frame_range(name, length, start, count, step)
        each = int(self.index.columns["bytes"][row]) // max(1, length)  # bytes of a frame
        if each not in (height * width, height * width * 3):
            raise VideoError(self.index.path, f"is damaged, {name} has frames of {each} bytes; {REMEDY}")
        with self._film(row) as pixels:
            data = pixels.read(chosen.start * each, (chosen[-1] + 1 - chosen.start) * each)
        frames = np.frombuffer(data, np.uint8).reshape(-1, height, width, each // (height * width))[::step]
        return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames.copy()

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        resize: str = "crop",
        **others: object,
    ) -> np.ndarray:
        row = self.row(index)
        if not self.scales_in_one_pass(**others) or self.index.text("kind", row) == FRAMES:
            return super().read_clip(index, start, count, step, size, resize, **others)
        with self._film(row) as film:
            return read_scaled(film, start, count, step, size, resize)

    @contextmanager
    def _film(self, row: int) -> Iterator[Stretch]:
        """The bytes of a sample. One that cannot be read may be of a shard that was replaced: then that is said."""
        reader: _Reader = self._reader.get()
        shard = self.index.shards[self.index.shard_of(row)]
        offset, size = (int(self.index.columns[name][row]) for name in ("offset", "bytes"))
        if not 0 <= offset <= offset + size <= shard.bytes:
            raise VideoError(self.index.path, f"is damaged, {self.index.id(row)} is not within {shard.name}; {REMEDY}")
        kind = self.index.text("kind", row)
        name = f"{reader.storage.path(shard.name)}#{self.index.key(row)}{kind}"
        with Stretch(name, size, reader.opened(shard, offset, size, kind != FRAMES), shard.sha256) as film:
            try:
                yield film
            except VideoError:
                reader.verify(shard, again=True)
                raise


class _Reader:
    """What a process has open: files, connections, the cache."""

    def __init__(self, base: str) -> None:
        self.storage = open_storage(base)
        self.cache: ShardCache | None = None if isinstance(self.storage, Local) else cache_from_environment()
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._known: set[str] = set()  # shards that are those of the index

    def opened(self, shard: Shard, offset: int, size: int, whole: bool) -> Callable[[int, int], bytes]:
        """What reads a stretch of a shard. whole: all of it is needed, and comes at once. Raises StorageError."""
        file = self._file(shard)
        if file is not None:
            return lambda start, count: read_at(file, offset + start, count)
        self.verify(shard)
        if not whole:
            return lambda start, count: self.storage.read(shard.name, offset + start, count)
        data = self.storage.read(shard.name, offset, size)
        return lambda start, count: data[start : start + count]

    def verify(self, shard: Shard, again: bool = False) -> None:
        """Raise StorageError for a shard that is not the one of the index. again: though it was."""
        if shard.name in self._known and not again:
            return
        found = self.storage.status(shard.name)
        if found is None:
            raise StorageError(f"{self.storage.path(shard.name)}: no such file, but it is in the index")
        if found.bytes != shard.bytes:
            raise changed(self.storage, shard, f"{shard.bytes} bytes, now {found.bytes}")
        if found.etag and shard.etag and found.etag != shard.etag:
            raise changed(self.storage, shard, f"its tag was {shard.etag}, now it is {found.etag}")
        if found.modified and shard.modified and found.modified != shard.modified and not _is_known_copy(
            self.storage, shard, found.modified
        ):  # fmt: skip
            raise changed(self.storage, shard, "its SHA-256 is another one")
        self._known.add(shard.name)

    def _file(self, shard: Shard) -> BinaryIO | None:
        """The open file of a shard; None for one that is not on this machine."""
        if shard.name in self._files:
            self._files.move_to_end(shard.name)
            return self._files[shard.name]
        if isinstance(self.storage, Local):
            self.verify(shard)
            place: Path | None = Path(self.storage.path(shard.name))
        else:
            place = None if self.cache is None else self.cache.path(self.storage, shard)
        if place is None:
            return None
        for name in [name for name, file in self._files.items() if not os.fstat(file.fileno()).st_nlink]:
            self._files.pop(name).close()  # the cache let go of it, but the disk keeps what is open
        try:
            self._files[shard.name] = open(place, "rb", buffering=0)  # noqa: SIM115 - stays open
        except OSError as error:
            if self.cache is not None:  # it made room for another one just now
                return None
            raise StorageError(f"{place}: cannot be opened ({said_by(error)})") from error
        if len(self._files) > OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        return self._files[shard.name]


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), count, position)
    file.seek(position)
    return file.read(count)


def _is_known_copy(storage: Storage, shard: Shard, modified: int) -> bool:
    """Whether a shard with another date has the content of the index: it was copied. Noted, so that it is read once."""
    place = os.path.abspath(storage.path(shard.name))
    name = hashlib.sha256(f"{place} {modified} {shard.bytes} {shard.sha256}".encode()).hexdigest()[:32]
    note = user_cache() / "copies" / name
    if note.exists():
        return True
    logger.info("%s: has another date than in the index; its content is compared", place)
    if sha256_of(place) != shard.sha256:
        return False
    with suppress(OSError):  # then it is compared again
        write_file(note, "")
    return True


def open_index(shards: ShardList) -> TarIndex:
    """The index of some shards, on this machine; that of an address is brought here first. Raises UserError."""
    folder, name = divided(shards.index)
    storage = open_storage(folder)
    status = storage.status(name)
    if status is None:
        raise VideoError(shards.path, f"has no index, {shards.index} is not there; {how_to_index(shards.path)}")
    if isinstance(storage, Local):
        return TarIndex.open(shards.index)
    known = hashlib.sha256(f"{shards.index} {status.bytes} {status.etag}".encode()).hexdigest()[:32]
    place = Path(os.environ.get(FOLDER) or user_cache()) / f"{known}.index"
    with suppress(VideoError):  # a copy that is not there, or was damaged, is fetched
        if status.etag is not None:
            return TarIndex.open(place)
    with disk_errors(place), lock_file(place, "fetching", wait=True):
        with suppress(VideoError):  # another process has fetched it by now
            if status.etag is not None:
                return TarIndex.open(place)
        with atomic_path(place) as temporary, open(temporary, "wb") as file:
            for piece in storage.chunks(name, status.bytes):
                file.write(piece)
    try:
        return TarIndex.open(place)
    except VideoError as error:
        raise VideoError(shards.index, error.reason) from error
