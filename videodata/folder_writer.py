"""Prepared videos as a folder of HDF5 shards, PNG frames or mp4 files that grows and survives kill -9 at any moment.

While it grows, everything is below `<name>.partial`, and `<name>.journal.jsonl` has one line per video that is
complete there. A later start removes what has no line and goes on. At the end a side-car `<name>.json` is written, like
that of an array, and the folder gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.errors import UserError, disk_errors
from videodata.files import TEMPORARY, lock_file, read_json, remove_debris, sync_folder, write_json
from videodata.frame_folder import save_png
from videodata.hdf5 import SHARDS
from videodata.npy_writer import (
    JOURNAL_FORMAT,
    Entry,
    described,
    difference,
    journal_path,
    left_out,
    partial_path,
    read_journal,
    sidecar_path,
)
from videodata.write_video import write_video

FORMAT = "videodata-folder"
VIDEOS_PER_SHARD = 1000  # what a kill costs at most
PENDING_FRAMES = 256  # frames that wait for their PNG


class FolderWriter(ABC):
    """Adds one video after another to the folder `path`; made again after a kill, it continues.

    Use as a context manager. `entries` holds the videos that are done: go on with the next one. Raises UserError when
    another process writes the same folder, when the disk is full, when the folder holds something else, or when
    `arguments` differ from those that it was begun with (`restart` begins again).
    """

    def __init__(self, path: str | os.PathLike, arguments: dict, restart: bool = False, workers: int = 1) -> None:
        self.path, self.arguments = Path(path), arguments
        self.partial = partial_path(self.path)
        self.entries: list[Entry] = []
        self._restart, self._workers = restart, workers
        self._resources = ExitStack()

    def __enter__(self) -> FolderWriter:
        with self._resources:
            self._resources.enter_context(lock_file(self.path, "writing"))
            with disk_errors(self.partial):
                self._open()
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    @property
    def sequences(self) -> int:
        """Number of videos that were kept."""
        return sum(entry.sequences for entry in self.entries)

    def skipped(self) -> list[dict]:
        """Id, reason and status ("short" or "bad") of the videos that gave nothing."""
        return left_out(self.entries)

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) uint8 to the current video; they may change after the call."""
        with disk_errors(self.partial):
            self._write(frames)

    def end_video(self, *, status: str, reason: str | None = None, **description: object) -> Entry:
        """Finish the current video: keep it when status is "ok" or "damaged", else drop it."""
        kept = status in ("ok", "damaged")
        entry = Entry(
            sequences=int(kept), offset=self._part(), crc32=0, status=status, reason=reason, **description
        )  # fmt: skip
        self.entries.append(entry)
        with disk_errors(self.partial):
            self._end_video(entry if kept else None)
            self._after_video()
        return entry

    def finish(self, description: dict) -> None:
        """Write the side-car and give the folder its name. `description` goes first into the side-car."""
        with disk_errors(self.partial):
            self._finish()
            self._write_lines()
            videos = [described(entry) for entry in self.entries if entry.sequences]
            content = {**description, "prepare": self.arguments, "videos": videos, "skipped": self.skipped()}
            write_json(sidecar_path(self.path), content, sort_keys=False)
            os.replace(self.partial, self.path)  # an empty folder may be in its place
            journal_path(self.path).unlink()
            sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the partial folder and the journal."""
        shutil.rmtree(self.partial, ignore_errors=True)
        journal_path(self.path).unlink(missing_ok=True)

    @abstractmethod
    def _write(self, frames: np.ndarray) -> None: ...

    @abstractmethod
    def _end_video(self, entry: Entry | None) -> None: ...

    def _after_video(self) -> None:
        """Note the video in the journal, for formats where it is complete by now."""
        self._write_lines()

    def _finish(self) -> None:
        """Complete what is open."""
        return

    def _part(self) -> int:
        """Number of the file that the current video goes to."""
        return 0

    @abstractmethod
    def _clean(self) -> None:
        """Remove from the partial folder what is not in `entries`."""

    def _open(self) -> None:
        if self.path.exists():
            self._remove_old()
        remove_debris(self.path.parent, sidecar_path(self.path).name)
        if self._restart:
            self.discard()
        journal = journal_path(self.path)
        head = None
        if self.partial.is_dir() and journal.exists():
            head, self.entries, ends = read_journal(journal)
        if head is None:
            self.discard()
        elif head.get("arguments") != self.arguments:
            raise UserError(
                f"{self.partial}: begun with other arguments ({difference(head.get('arguments'), self.arguments)}); "
                "use the same ones to continue, or --restart to begin again"
            )
        self.partial.mkdir(parents=True, exist_ok=True)
        self._journal = open(journal, "a", encoding="utf-8")  # noqa: SIM115
        self._resources.callback(self._journal.close)
        if head is None:
            self._write_line({"format": JOURNAL_FORMAT, "version": 1, "arguments": self.arguments})
        else:
            self._clean()
            self._journal.truncate(ends[len(self.entries)])
        self._noted = len(self.entries)

    def _remove_old(self) -> None:
        """Make room for a new start; never over a folder that this class did not make."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        ours = (read_json(sidecar_path(self.path)) or {}).get("format") == FORMAT
        if not ours or not self._restart:
            raise UserError(f"{self.path}: exists and was not made by this command: choose another --out")
        shutil.rmtree(self.path)

    def _write_lines(self) -> None:
        """Bring all entries to the journal."""
        for entry in self.entries[self._noted :]:
            self._write_line(asdict(entry))
        self._noted = len(self.entries)

    def _write_line(self, content: dict) -> None:
        self._journal.write(json.dumps(content) + "\n")
        self._journal.flush()


class ShardWriter(FolderWriter):
    """HDF5 shards of at most `videos_per_shard`; the journal grows by whole shards."""

    def __init__(
        self, *args: object, layout: str = "chunked", videos_per_shard: int = VIDEOS_PER_SHARD, **options: object
    ) -> None:
        super().__init__(*args, **options)
        self._new_shard, self._videos_per_shard = SHARDS[layout], videos_per_shard
        self._digits = 5 if layout == "chunked" else 4
        self._shard = None

    def __exit__(self, *exception: object) -> None:
        if self._shard is not None:
            self._shard.discard()
        super().__exit__(*exception)

    def _write(self, frames: np.ndarray) -> None:
        self._opened().write(frames)

    def _end_video(self, entry: Entry | None) -> None:
        facts = None
        if entry is not None:
            facts = [entry.id, entry.label or "", entry.group or "", entry.fps or ""]
        if entry is not None or self._shard is not None:
            self._opened().end_video(facts)

    def _after_video(self) -> None:
        if self._shard is not None and self._shard.videos == self._videos_per_shard:
            self._finish()

    def _finish(self) -> None:
        if self._shard is None:
            return
        if self._shard.videos == 0:
            self._shard.discard()
            self._shard = None
            return
        self._shard.finish()
        self._shard = None
        self._number += 1
        self._write_lines()

    def _part(self) -> int:
        return self._number

    def _name(self, number: int) -> str:
        return f"shard_{number:0{self._digits}d}.hdf5"

    def _opened(self):
        if self._shard is None:
            self._shard = self._new_shard(self.partial / self._name(self._number))
        return self._shard

    def _open(self) -> None:
        self._number = 1
        super()._open()

    def _clean(self) -> None:
        last = max((entry.offset for entry in self.entries), default=0)
        self._number = last + 1
        kept = {self._name(number) for number in range(1, self._number)}
        for path in self.partial.iterdir():
            if path.name not in kept:
                path.unlink()


class FrameWriter(FolderWriter):
    """One folder of PNG images per video, `<id>/0000.png`, ...; several threads compress them."""

    def __init__(self, *args: object, first: int = 0, digits: int = 4, **options: object) -> None:
        super().__init__(*args, **options)
        self._first, self._digits = first, digits
        self._pending: deque[Future] = deque()
        self._count = 0

    def __enter__(self) -> FolderWriter:
        self._threads = self._resources.enter_context(ThreadPoolExecutor(self._workers))
        return super().__enter__()

    def _write(self, frames: np.ndarray) -> None:
        self._unfinished.mkdir(exist_ok=True)
        for frame in frames:
            path = self._unfinished / f"{self._first + self._count:0{self._digits}d}.png"
            self._pending.append(self._threads.submit(save_png, path, frame.copy()))
            self._count += 1
            if len(self._pending) > PENDING_FRAMES:
                self._pending.popleft().result()

    def _end_video(self, entry: Entry | None) -> None:
        while self._pending:
            self._pending.popleft().result()
        self._count = 0
        if entry is None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            return
        target = self.partial / entry.id
        shutil.rmtree(target, ignore_errors=True)  # complete, but a kill came before its line
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._unfinished, target)

    def _clean(self) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)

    @property
    def _unfinished(self) -> Path:
        return self.partial / ".unfinished"


class Mp4Writer(FolderWriter):
    """One mp4 per video, `<id>.mp4`; its frames are in memory until it is complete."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._frames: list[np.ndarray] = []

    def _write(self, frames: np.ndarray) -> None:
        self._frames.append(frames.copy())

    def _end_video(self, entry: Entry | None) -> None:
        frames, self._frames = self._frames, []
        if entry is not None:
            write_video(self.partial / f"{entry.id}.mp4", np.concatenate(frames), Fraction(entry.fps or 25))

    def _clean(self) -> None:
        for path in self.partial.rglob(f".*{TEMPORARY}"):
            path.unlink()
