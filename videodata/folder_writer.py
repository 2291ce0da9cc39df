"""Prepared videos as a folder of HDF5 shards, PNG frames or mp4 files, which survives a kill like an array does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from abc import abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import numpy as np

from videodata.encode import write_video
from videodata.errors import BAD_NAME, UserError, VideoError, disk_errors
from videodata.files import TEMPORARY, portable_name, read_json, replace, sync_folder
from videodata.frame_folder import save_png
from videodata.journal import Entry, Writer, described, sidecar_path

FORMAT = "videodata-folder"
VIDEOS_PER_SHARD = 1000  # what a kill costs at most
PENDING_FRAMES = 256  # frames that wait for their PNG
TAKEN = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)  # by another video's name


class FolderWriter(Writer):
    """Adds videos to a folder. Raises UserError also when the folder holds something else."""

    format = FORMAT
    notes_each_video = True  # in the journal; shards note theirs when they are complete
    number = 0  # of the file that the current video goes to, where there are several

    def __init__(self, path: str | os.PathLike, arguments: dict, restart: bool = False, workers: int = 1) -> None:
        super().__init__(path, arguments, restart)
        self._workers = workers
        self._lines: TextIO | None = None  # the open journal

    @property
    def sequences(self) -> int:
        """Videos that were kept: each is one sequence."""
        return sum(entry.sequences for entry in self.entries)

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) uint8 to the current video; they may change after the call."""
        with disk_errors(self.partial):
            self._write(frames)

    def end_video(self, *, status: str, reason: str | None = None, **description: object) -> Entry:
        """Finish the current video: keep it when status is "ok" or "damaged", else drop it."""
        kept = status in ("ok", "damaged")
        facts = {"offset": self.number, "crc32": 0, **description}
        self.entries.append(Entry(sequences=int(kept), status=status, reason=reason, **facts))
        with disk_errors(self.partial):
            try:
                self._end_video(self.entries[-1] if kept else None)
            except (OSError, VideoError) as error:
                if isinstance(error, VideoError):
                    reason = error.reason
                elif error.errno in (*BAD_NAME, *TAKEN):
                    reason = f"cannot be written under this name ({error.strerror})"
                else:
                    raise
                self._end_video(None)
                self.entries[-1] = Entry(sequences=0, status="bad", reason=reason, **facts)
            if self.notes_each_video:
                self._write_lines()
        return self.entries[-1]

    def finish(self, description: dict) -> None:
        """Write the side-car and give the folder its name. `description` goes first into the side-car."""
        with disk_errors(self.partial):
            self._finish()
            self._write_lines()
            self._write_sidecar(description, [described(entry) for entry in self.entries if entry.sequences])
            self._deliver()
            replace(self.partial, self.path)  # an empty folder may be in its place
            self._lines.close()
            self.journal.unlink()
            sync_folder(self.path.parent)

    def discard(self) -> None:
        if self._lines is not None:
            self._lines.close()  # Windows removes only what is closed
        shutil.rmtree(self.partial, ignore_errors=True)
        self.journal.unlink(missing_ok=True)

    @abstractmethod
    def _write(self, frames: np.ndarray) -> None: ...

    @abstractmethod
    def _end_video(self, entry: Entry | None) -> None: ...

    def _finish(self) -> None:
        """Complete what is open."""
        return

    def _deliver(self) -> None:
        """Send what is complete, the side-car too, where it goes somewhere else than to this disk."""
        return

    @abstractmethod
    def _clean(self) -> None:
        """Remove from the partial folder what is not in `entries`."""

    def _open(self) -> None:
        if self.path.exists():
            self._remove_old()
        there = not self._restart and self.partial.is_dir() and self.journal.exists()
        ends = self._take_up() if there else []
        if not ends:
            self.discard()
        self.partial.mkdir(parents=True, exist_ok=True)
        journal = open(self.journal, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._lines = self._resources.enter_context(journal)
        if ends:
            self._clean()
            self._lines.truncate(ends[-1])
        else:
            self._write_line(self._head())
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
            self._write_line(json.dumps(asdict(entry)) + "\n")
        self._noted = len(self.entries)

    def _write_line(self, line: str) -> None:
        self._lines.write(line)
        self._lines.flush()


class ShardWriter(FolderWriter):
    """HDF5 shards of at most `videos_per_shard`; the journal grows by whole shards."""

    notes_each_video = False

    def __init__(
        self, *args: object, layout: str = "chunked", videos_per_shard: int = VIDEOS_PER_SHARD, **options: object
    ) -> None:
        from videodata.hdf5 import ShardSeries  # here: whoever writes no HDF5 starts without its library

        super().__init__(*args, **options)
        self._shards = ShardSeries(self.partial, layout, videos_per_shard)

    def __exit__(self, *exception: object) -> None:
        self._shards.discard()
        super().__exit__(*exception)

    @property
    def number(self) -> int:
        return self._shards.number

    def _write(self, frames: np.ndarray) -> None:
        self._shards.write(frames)

    def _end_video(self, entry: Entry | None) -> None:
        facts = None if entry is None else [entry.id, entry.label or "", entry.group or "", entry.fps or ""]
        if self._shards.end_video(facts):
            self._write_lines()

    def _finish(self) -> None:
        self._shards.finish()

    def _clean(self) -> None:
        self._shards.number = 1 + max((entry.offset for entry in self.entries), default=0)
        kept = {self._shards.name(number) for number in range(1, self.number)}
        for path in self.partial.iterdir():
            if path.name not in kept:
                path.unlink()


class FrameWriter(FolderWriter):
    """One folder of PNG images per video, `<id>/0000.png`, ...; several threads compress them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._pending: deque[Future] = deque()
        self._count = 0

    def _open(self) -> None:
        self._threads = self._resources.enter_context(ThreadPoolExecutor(self._workers))
        super()._open()

    def _write(self, frames: np.ndarray) -> None:
        self._unfinished.mkdir(exist_ok=True)
        for frame in frames:
            path = self._unfinished / f"{self._count:04d}.png"
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
        target = self.partial / portable_name(entry.id)
        shutil.rmtree(target, ignore_errors=True)  # complete, but a kill came before its line
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(self._unfinished, target)

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
            self._encode(self.partial / portable_name(f"{entry.id}.mp4"), np.concatenate(frames), entry)

    def _encode(self, path: Path, frames: np.ndarray, entry: Entry) -> None:
        write_video(path, frames, Fraction(entry.fps or 25))

    def _clean(self) -> None:
        for path in self.partial.rglob(f".*{TEMPORARY}"):
            path.unlink()
