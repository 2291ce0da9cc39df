"""Clips in one .npy array of uint8 sequences (N, T, H, W, 3): read in place, and written so that a kill costs nothing.

`<name>.json` beside an array names the videos that its sequences were cut from. A thread brings the bytes of finished
videos to the disk, and then their lines to the journal. The finished file and its side-car have the same bytes as after
an undisturbed run.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import json
import os
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import DTypeLike

from videodata.errors import UserError, VideoError, disk_errors, one_line, said_by
from videodata.files import publish
from videodata.journal import Entry, Writer, described, read_sidecar
from videodata.resize import Size
from videodata.source import ClipSource, PerProcess, by_split, frame_range, stored_rate

FORMAT, VERSION = "videodata-npy", 1
LARGEST_COUNT = 10**12  # room that the header keeps for N
SAMPLED_BLOCKS, SAMPLED_BYTES = 32, 1 << 15  # 1 MiB in all: milliseconds from any disk
ZEROS = bytes(1 << 20)
COMMIT_SECONDS = 0.25  # between flushes; a kill costs this, and what the disk is behind


class NpySource(ClipSource):
    """uint8 (N, T, H, W, 3), or (T, H, W, 3) for one video; each of the N sequences is one item.

    color: "rgb", or "bgr" for an array whose channels are the other way round (the default is what the .json beside
    it says, else RGB).
    """

    def __init__(self, path: str | Path, color: str | None = None) -> None:
        self.path = str(path)
        self._array = PerProcess(map_array, path)
        self._shape = check_layout(path, self._array.get())
        self._videos = _read_sidecar(Path(path), self._shape)
        self._first = [video["first_sequence"] for video in self._videos]
        stored = color or "rgb"
        if stored.lower() not in ("rgb", "bgr"):
            raise UserError(f'color must be "rgb" or "bgr", found {color!r}')
        self._reversed = stored.lower() == "bgr"

    def __len__(self) -> int:
        return self._shape[0]

    def id(self, index: int) -> str:
        video = self._video(index)
        if video is None:
            return f"{one_line(Path(self.path).stem)}#{index}"
        return f"{video['id']}#{index - video['first_sequence']}"

    def label(self, index: int) -> str | None:
        video = self._video(index)
        return video and video.get("label")

    def group(self, index: int) -> str:
        video = self._video(index)
        return self.id(index) if video is None else video.get("group") or video["id"]

    def fps(self, index: int) -> Fraction | None:
        video = self._video(index)
        return Fraction(video["fps"]) if video and video.get("fps") else None

    def length(self, index: int) -> int:
        return self._shape[1]

    def size(self, index: int) -> Size:
        return self._shape[2], self._shape[3]

    def stamp(self, index: int) -> str:
        return str(self._shape) if self._videos else f"{self._shape} {self._sample}"

    @cached_property
    def _sample(self) -> str:
        """Hash of blocks all over the file: without a side-car, arrays of one name and shape would pass for equal."""
        digest, size = hashlib.sha256(), os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            for block in range(SAMPLED_BLOCKS):
                file.seek(max(0, size - SAMPLED_BYTES) * block // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(SAMPLED_BYTES))
        return digest.hexdigest()[:16]

    def splits(self) -> dict[str, list[int]] | None:
        return by_split([video.get("split") for video in self._videos for _ in range(video["sequences"])])

    def place(self, index: int) -> str:
        return f"{self.path}#{self.id(index)}"

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        chosen = frame_range(self.path, self._shape[1], start, count, step)
        array = self._array.get()
        sequence = array[index] if array.ndim == 5 else array  # (T, H, W, C)
        frames = np.array(sequence[chosen.start : chosen.stop : chosen.step])
        if frames.shape[-1] == 1:
            return np.repeat(frames, 3, axis=-1)
        return np.ascontiguousarray(frames[..., ::-1]) if self._reversed else frames

    def _video(self, index: int) -> dict | None:
        """The side-car's entry for the video that sequence `index` was cut from."""
        if not self._videos:
            return None
        return self._videos[bisect.bisect_right(self._first, index) - 1]


def map_array(path: str) -> np.ndarray:
    """Map a .npy file without reading it. Raises VideoError if it is missing, truncated or no plain array."""
    if not Path(path).is_file():
        raise VideoError(path, "no such file; prepare_ucf101.py makes one")
    return read_array(path)


def read_array(path: str | Path, mapped: bool = True, remedy: str = "prepare it again") -> np.ndarray:
    """The array in a .npy file, in memory or mapped. Raises VideoError for whatever is none, or holds Python objects.

    The header is a Python expression that names any type and any shape, so that NumPy raises nearly everything.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC_PREFIX))
        if magic and magic != MAGIC_PREFIX:  # archives and pickles, which np.load opens as well
            raise ValueError("it begins like another kind of file")
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, TypeError, ArithmeticError, SyntaxError, TokenError, OSError, EOFError, MemoryError) as error:
        reason = said_by(error)
        if isinstance(error, EOFError) or "mmap length" in reason or "reshape" in reason:
            reason = "the file is shorter than its header says: it is truncated"
        raise VideoError(path, f"is not a readable .npy array ({reason}); {remedy}") from error


def check_layout(path: str | Path, array: np.ndarray) -> tuple[int, int, int, int]:
    """(N, T, H, W) of an array of frames. Raises VideoError that says what was expected and what was found."""
    found = f"expected uint8 (N, T, H, W, 3) or (T, H, W, 3), found {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise VideoError(path, found)
    if array.ndim not in (4, 5) or array.shape[-1] not in (1, 3):
        channels_first = 3 in array.shape[-4:-2]
        raise VideoError(path, found + (": move the channel axis to the end" if channels_first else ""))
    if 0 in array.shape:
        raise VideoError(path, found + ": the array is empty")
    shape = array.shape if array.ndim == 5 else (1, *array.shape)
    return shape[0], shape[1], shape[2], shape[3]


def _read_sidecar(path: Path, shape: tuple[int, int, int, int]) -> list[dict]:
    """The list of videos in `<name>.json`, checked against the array; empty if there is no such file."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return []
    content = read_sidecar(sidecar)
    if content.get("format") != FORMAT:
        raise VideoError(sidecar, f"does not describe {path.name} (format {FORMAT!r} expected); remove or rename it")
    if content.get("version") != VERSION:
        raise VideoError(sidecar, f"has version {content.get('version')}, this program reads {VERSION}")
    try:
        videos = [video for video in content["videos"] if video["sequences"]]
        videos.sort(key=lambda video: video["first_sequence"])
        firsts = [0, *accumulate(video["sequences"] for video in videos)]
        described = firsts.pop(), content["num_frames"], content["height"], content["width"]
        for video, first in zip(videos, firsts, strict=True):
            _check_video(video, first)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise VideoError(sidecar, f"is damaged ({said_by(error)}); prepare the data again") from error
    if described != shape:
        raise VideoError(sidecar, f"describes sequences of shape {described}, but {path.name} holds {shape}")
    return videos


def _check_video(video: dict, first: int) -> None:
    """Raise ValueError for an entry of a side-car that does not describe a video whose sequences begin at `first`."""
    texts = [video.get(name) for name in ("label", "group", "split")]
    if not isinstance(video["id"], str) or not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("id, label, group and split are texts")
    if video["first_sequence"] != first or video["sequences"] < 0:
        raise ValueError(f"the sequences of {video['id']} begin at {video['first_sequence']}, not at {first}")
    stored_rate(video.get("fps") or 1)


class NpyWriter(Writer):
    """Appends the sequences of one video after another."""

    format = FORMAT

    def __init__(
        self, path: str | os.PathLike, sequence_shape: tuple[int, ...], arguments: dict, restart: bool = False
    ):
        super().__init__(path, arguments, restart)
        self._shape = tuple(sequence_shape)
        self._header_bytes = len(npy_header(0, self._shape))
        self._sequence_bytes = int(np.prod(self._shape, dtype=np.int64))
        self._frame_bytes = self._sequence_bytes // self._shape[0]
        self._pending: list[str] = []
        self._last_commit = time.monotonic()
        self._commit: Future | None = None
        self._files = ExitStack()

    def __exit__(self, *exception: object) -> None:
        with self._resources:
            self._commit_now()

    @property
    def sequences(self) -> int:
        """Number of sequences of all finished videos."""
        return self._end // self._sequence_bytes

    @property
    def bytes_written(self) -> int:
        """Size of the data of all finished videos."""
        return self._end

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) uint8 to the current video, n free: sequences need not be whole."""
        data = memoryview(np.ascontiguousarray(frames, dtype=np.uint8)).cast("B")
        while data:
            piece = data[: self._sequence_bytes - self._video_bytes % self._sequence_bytes]
            with disk_errors(self.partial):
                _write_all(self._data, piece, self._header_bytes + self._end + self._video_bytes)
            self._video_bytes += len(piece)
            if self._video_bytes % self._sequence_bytes == 0:  # all pixels would cost a tenth of the throughput
                self._crc = zlib.crc32(piece[-self._frame_bytes :], self._crc)
            data = data[len(piece) :]

    def end_video(self, *, status: str, reason: str | None = None, **description: object) -> Entry:
        """Finish the current video: keep its whole sequences when status is "ok" or "damaged", none otherwise.

        `description` has id, label, group, fps, frames and, where known, split and source. The
        remainder of less than a sequence is dropped.
        """
        kept = self._video_bytes // self._sequence_bytes if status in ("ok", "damaged") else 0
        crc = self._crc if kept else 0
        entry = Entry(sequences=kept, offset=self._end, crc32=crc, status=status, reason=reason, **description)
        self.entries.append(entry)
        self._pending.append(json.dumps(asdict(entry)) + "\n")
        self._end += kept * self._sequence_bytes
        self._video_bytes = self._crc = 0
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self._begin_commit()
        return entry

    def finish(self, description: dict) -> None:
        """Give the file its header, its side-car and its final name. `description` goes first into the side-car."""
        videos, first = [], 0
        for entry in (entry for entry in self.entries if entry.sequences):
            videos.append({**described(entry), "first_sequence": first, "sequences": entry.sequences})
            first += entry.sequences
        self._commit_now()
        with disk_errors(self.partial):
            os.ftruncate(self._data, self._header_bytes + self._end)
            _write_all(self._data, npy_header(self.sequences, self._shape), 0)
            self._write_sidecar(description, videos)
            self._files.close()  # Windows renames and removes only what is closed
            publish(self.partial, self.path)
            self.journal.unlink()

    def discard(self) -> None:
        self._pending.clear()
        self._commit_now()  # what is still being written
        self._files.close()  # Windows removes only what is closed
        self.partial.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _open(self) -> None:
        self._thread = self._resources.enter_context(ThreadPoolExecutor(1))
        if self._restart or not self.partial.exists():
            self.discard()
        self._files = self._resources.enter_context(ExitStack())
        self._data = self._descriptor(self.partial)
        self._journal = self._descriptor(self.journal)
        self._video_bytes = self._crc = self._end = 0
        if ends := self._take_up(shape=list(self._shape)):
            self._resume(ends)
        else:  # none before, or one that was killed while its first line was written
            self._begin()

    def _descriptor(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows writes text else, and changes line ends
        descriptor = os.open(path, flags, 0o644)
        self._files.callback(os.close, descriptor)
        return descriptor

    def _begin(self) -> None:
        os.ftruncate(self._data, 0)
        _write_all(self._data, npy_header(0, self._shape), 0)
        self._journal_end = 0
        self._pending = [self._head(shape=list(self._shape))]
        self._commit_now()

    def _resume(self, ends: list[int]) -> None:
        entries = self.entries
        while entries and not self._is_intact(entries[-1]):
            entries.pop()
        self._end = entries[-1].offset + entries[-1].sequences * self._sequence_bytes if entries else 0
        self._journal_end = ends[len(entries)]
        os.ftruncate(self._journal, self._journal_end)
        os.ftruncate(self._data, self._header_bytes + self._end)

    def _is_intact(self, entry: Entry) -> bool:
        crc, end = 0, self._header_bytes + entry.offset
        for _ in range(entry.sequences):
            end += self._sequence_bytes
            os.lseek(self._data, end - self._frame_bytes, os.SEEK_SET)
            crc = zlib.crc32(os.read(self._data, self._frame_bytes), crc)
        return crc == entry.crc32 and os.fstat(self._data).st_size >= end

    def _begin_commit(self) -> None:
        """Let the thread bring the finished videos to the disk, unless it is still at it."""
        if self._commit is not None:
            if not self._commit.done():
                return
            with disk_errors(self.partial):
                self._commit.result()
        lines = "".join(self._pending).encode("utf-8")
        self._pending.clear()
        self._commit = self._thread.submit(self._write_journal, lines, self._journal_end)
        self._journal_end += len(lines)
        self._last_commit = time.monotonic()

    def _write_journal(self, lines: bytes, offset: int) -> None:
        os.fsync(self._data)  # before the lines: a line on disk is a promise about the data
        _write_all(self._journal, lines, offset)
        os.fsync(self._journal)
        if hasattr(os, "posix_fadvise"):  # hundreds of GB must not push everything else out of the page cache
            os.posix_fadvise(self._data, 0, 0, os.POSIX_FADV_DONTNEED)

    def _commit_now(self) -> None:
        """Return when all finished videos are on the disk."""
        with disk_errors(self.partial):
            if self._commit is not None:
                self._commit.result()
                self._commit = None
            if self._pending:
                self._begin_commit()
                self._commit.result()


def allocated_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy to fill in place, mapped, which has its room on the disk already.

    To write to a mapped page that the disk has no room for would kill the process. Raises OSError; then there is no
    file.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with open(path, "r+b") as file:
            _allocate(file, path.stat().st_size - array.nbytes, array.nbytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def _allocate(file: BinaryIO, start: int, size: int) -> None:
    """Give bytes of a file, which are zero, their place on the disk."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), start, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems that cannot
                raise
    file.seek(start)
    for first in range(0, size, len(ZEROS)):
        file.write(ZEROS[: size - first])
    return None


def npy_header(count: int, sequence_shape: tuple[int, ...]) -> bytes:
    """Header (.npy format 1.0) of a uint8 array (count, *sequence_shape); its length does not depend on count."""

    def fields(n: int) -> bytes:
        return repr({"descr": "|u1", "fortran_order": False, "shape": (n, *sequence_shape)}).encode("ascii")

    prefix = len(b"\x93NUMPY") + 4
    total = -(-(prefix + len(fields(LARGEST_COUNT)) + 1) // 64) * 64  # numpy wants the data aligned to 64 bytes
    text = fields(count).ljust(total - prefix - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write at a place of the file. One thread at a time for each descriptor: not every system has pwrite."""
    data = memoryview(data)
    os.lseek(descriptor, offset, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]
