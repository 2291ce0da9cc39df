"""The folders that data can be prepared to: HDF5 shards, trees of PNG frames, mp4 files."""

from __future__ import annotations

import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.folder_writer import FolderWriter
from videodata.frame_tree import save_png
from videodata.hdf5_writer import SHARDS
from videodata.npy_journal import Entry
from videodata.write_video import write_video

VIDEOS_PER_SHARD = 1000  # what a kill costs at most
PENDING_FRAMES = 256  # frames that wait for their PNG


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
            self._shard = self._new_shard(self.partial / self._name(self._number), None)
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
        for path in self.partial.rglob(".*.partial"):
            path.unlink()
