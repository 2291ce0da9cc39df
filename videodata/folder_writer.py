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
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from videodata.disk_errors import disk_errors
from videodata.errors import UserError
from videodata.lock import exclusive
from videodata.npy_journal import JOURNAL_FORMAT, Entry, described, journal_path, left_out, read_journal
from videodata.npy_writer import difference, partial_path, sidecar_path, sync_folder, write_json

FORMAT = "videodata-folder"


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
            self._resources.enter_context(exclusive(self.path, "writing"))
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
            write_json(sidecar_path(self.path), content)
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
        try:
            ours = json.loads(sidecar_path(self.path).read_text(encoding="utf-8")).get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            ours = False
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
