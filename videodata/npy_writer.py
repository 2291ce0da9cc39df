"""A growing .npy file of uint8 sequences (N, T, H, W, 3) that survives kill -9 at any moment.

While it grows, the data is in `<name>.npy.partial` and `<name>.npy.journal.jsonl` has one line per finished video.
A line is written only after the bytes that it speaks of are on the disk (a thread sees to that), so a later start
drops whatever follows the last line and goes on. The finished file and its side-car have the same bytes as after an
undisturbed run.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from videodata.errors import UserError, disk_errors
from videodata.files import lock_file, publish, read_json, remove_debris, write_json

LARGEST_COUNT = 10**12  # room that the header keeps for N
COMMIT_SECONDS = 0.25  # between flushes; a kill costs this, and what the disk is behind
JOURNAL_FORMAT = "videodata-npy-journal"


class NpyWriter:
    """Appends the sequences of one video after another to `path`; made again after a kill, it continues.

    Use as a context manager. `entries` holds the videos that are already in the file: go on with the next one.
    Raises UserError when another process writes the same file, when the disk is full, or when `arguments` differ from
    those that the existing partial file was begun with (`restart` begins again).
    """

    def __init__(
        self, path: str | os.PathLike, sequence_shape: tuple[int, ...], arguments: dict, restart: bool = False
    ):
        self.path = Path(path)
        self.arguments = arguments
        self.entries: list[Entry] = []
        self._shape = tuple(sequence_shape)
        self._header_bytes = len(npy_header(0, self._shape))
        self._sequence_bytes = int(np.prod(self._shape, dtype=np.int64))
        self._frame_bytes = self._sequence_bytes // self._shape[0]
        self._restart = restart
        self._pending: list[str] = []
        self._last_commit = time.monotonic()
        self._commit: Future | None = None
        self._resources = ExitStack()

    def __enter__(self) -> NpyWriter:
        with self._resources:
            self._resources.enter_context(lock_file(self.path, "writing"))
            self._thread = self._resources.enter_context(ThreadPoolExecutor(1))
            with self._disk_errors():
                self._open()
            self._resources = self._resources.pop_all()
        return self

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

    def skipped(self) -> list[dict]:
        """Id, reason and status ("short" or "bad") of the videos that gave nothing."""
        return left_out(self.entries)

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) uint8 to the current video, n free: sequences need not be whole."""
        data = memoryview(np.ascontiguousarray(frames, dtype=np.uint8)).cast("B")
        while data:
            piece = data[: self._sequence_bytes - self._video_bytes % self._sequence_bytes]
            with self._disk_errors():
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
        self._begin_video()
        if time.monotonic() - self._last_commit > COMMIT_SECONDS:
            self._begin_commit()
        return entry

    def finish(self, description: dict) -> None:
        """Give the file its header, its side-car and its final name. `description` goes first into the side-car."""
        self._commit_now()
        with self._disk_errors():
            os.ftruncate(self._data, self._header_bytes + self._end)
            _write_all(self._data, npy_header(self.sequences, self._shape), 0)
            write_json(sidecar_path(self.path), self._sidecar(description), sort_keys=False)
            publish(partial_path(self.path), self.path)
            journal_path(self.path).unlink()

    def discard(self) -> None:
        self._pending.clear()
        partial_path(self.path).unlink(missing_ok=True)
        journal_path(self.path).unlink(missing_ok=True)

    def _open(self) -> None:
        data, journal = partial_path(self.path), journal_path(self.path)
        remove_debris(self.path.parent, sidecar_path(self.path).name)
        if self._restart or not data.exists():
            journal.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
        self._data = self._descriptor(data)
        self._journal = self._descriptor(journal)
        self._end = 0
        self._begin_video()
        if os.fstat(self._journal).st_size == 0:
            self._begin()
        else:
            self._resume()

    def _descriptor(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._resources.callback(os.close, descriptor)
        return descriptor

    def _begin(self) -> None:
        os.ftruncate(self._data, 0)
        _write_all(self._data, npy_header(0, self._shape), 0)
        head = {"format": JOURNAL_FORMAT, "version": 1, "shape": list(self._shape), "arguments": self.arguments}
        self._journal_end = 0
        self._pending = [json.dumps(head) + "\n"]
        self._commit_now()

    def _resume(self) -> None:
        head, entries, ends = read_journal(journal_path(self.path))
        if head is None:  # killed while the first line was written
            self._begin()
            return
        if head.get("shape") != list(self._shape) or head.get("arguments") != self.arguments:
            changed = difference(head.get("arguments"), self.arguments)
            raise UserError(
                f"{partial_path(self.path)}: begun with other arguments ({changed}); "
                "use the same ones to continue, or --restart to begin again"
            )
        while entries and not self._is_intact(entries[-1]):
            entries.pop()
        self.entries = entries
        self._end = entries[-1].offset + entries[-1].sequences * self._sequence_bytes if entries else 0
        self._journal_end = ends[len(entries)]
        os.ftruncate(self._journal, self._journal_end)
        os.ftruncate(self._data, self._header_bytes + self._end)

    def _is_intact(self, entry: Entry) -> bool:
        crc, end = 0, self._header_bytes + entry.offset
        for _ in range(entry.sequences):
            end += self._sequence_bytes
            crc = zlib.crc32(os.pread(self._data, self._frame_bytes, end - self._frame_bytes), crc)
        return crc == entry.crc32 and os.fstat(self._data).st_size >= end

    def _begin_video(self) -> None:
        self._video_bytes = self._crc = 0

    def _begin_commit(self) -> None:
        """Let the thread bring the finished videos to the disk, unless it is still at it."""
        if self._commit is not None:
            if not self._commit.done():
                return
            with self._disk_errors():
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
        with self._disk_errors():
            if self._commit is not None:
                self._commit.result()
                self._commit = None
            if self._pending:
                self._begin_commit()
                self._commit.result()

    def _sidecar(self, description: dict) -> dict:
        videos, first = [], 0
        for entry in (entry for entry in self.entries if entry.sequences):
            videos.append({**described(entry), "first_sequence": first, "sequences": entry.sequences})
            first += entry.sequences
        return {**description, "prepare": self.arguments, "videos": videos, "skipped": self.skipped()}

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        with disk_errors(partial_path(self.path)):
            yield


def partial_path(path: Path) -> Path:
    """Where the data of `path` grows."""
    return path.with_name(path.name + ".partial")


def sidecar_path(path: Path) -> Path:
    """The JSON file that describes `path`."""
    return path.with_suffix(".json") if path.suffix == ".npy" else path.with_name(path.name + ".json")


def is_finished(path: Path, arguments: dict) -> bool:
    """Whether `path` was already made from these arguments. Raises UserError when it was made from others."""
    if not path.exists() or partial_path(path).exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    made_with = (read_json(sidecar_path(path)) or {}).get("prepare")
    if made_with != arguments:
        reason = (
            difference(made_with, arguments) if isinstance(made_with, dict) else "its side-car says nothing about it"
        )
        raise UserError(f"{path}: exists and was not made by this command ({reason}); --restart overwrites it")
    return True


def difference(old: dict | None, new: dict) -> str:
    """Which arguments changed, for people."""
    old = old or {}
    changed = [key for key in (*new, *old) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)}, now {new.get(key)}" for key in dict.fromkeys(changed)) or "other shape"


def npy_header(count: int, sequence_shape: tuple[int, ...]) -> bytes:
    """Header (.npy format 1.0) of a uint8 array (count, *sequence_shape); its length does not depend on count."""

    def fields(n: int) -> bytes:
        return repr({"descr": "|u1", "fortran_order": False, "shape": (n, *sequence_shape)}).encode("ascii")

    prefix = len(b"\x93NUMPY") + 4
    total = -(-(prefix + len(fields(LARGEST_COUNT)) + 1) // 64) * 64  # numpy wants the data aligned to 64 bytes
    text = fields(count).ljust(total - prefix - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@dataclass(frozen=True)
class Entry:
    """What became of one input video. `offset` counts bytes from the first sequence of the file.

    For other formats `sequences` is 1 for a video that was kept, and `offset` the number of its shard.
    crc32 is that of the last frames of its sequences: it tells a tail that a power cut tore off or left empty.
    """

    id: str
    label: str | None
    group: str
    fps: str | None
    frames: int
    sequences: int
    offset: int
    crc32: int
    status: str  # "ok", "damaged" (kept, see reason), "short" or "bad"
    reason: str | None = None
    split: str | None = None
    source: str | None = None


def described(entry: Entry) -> dict:
    """What a side-car says about a video that was kept."""
    names = ("id", "label", "group", "fps", "frames")
    shown = {name: getattr(entry, name) for name in names}
    shown |= {name: getattr(entry, name) for name in ("split", "source") if getattr(entry, name) is not None}
    if entry.reason:
        shown["damaged" if entry.status == "damaged" else "note"] = entry.reason
    return shown


def left_out(entries: list[Entry]) -> list[dict]:
    """Id, reason and status ("short" or "bad") of the videos that gave nothing."""
    return [
        {key: getattr(entry, key) for key in ("id", "reason", "status")} for entry in entries if not entry.sequences
    ]


def journal_path(path: Path) -> Path:
    """Where the progress of `path` is noted."""
    return path.with_name(path.name + ".journal.jsonl")


def read_journal(path: Path) -> tuple[dict | None, list[Entry], list[int]]:
    """Head, entries, and the byte position after the head and after each entry; a torn end is left out."""
    head, entries, ends, position = None, [], [], 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            try:
                fields = json.loads(line) if line.endswith(b"\n") else None
                if head is None and (not isinstance(fields, dict) or fields.get("format") != JOURNAL_FORMAT):
                    break
                if head is not None:
                    entries.append(Entry(**fields))
            except (ValueError, TypeError):
                break
            head = fields if head is None else head
            ends.append(position)
    return head, entries, ends


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
