"""Prepared data that grows video by video and survives kill -9 at any moment: what its writers have in common.

While it grows, the data is in `<name>.partial`, and `<name>.journal.jsonl` has one line per finished video. A line is
written only when what it speaks of is there, so a later start drops whatever has no line, and goes on. At the end a
side-car `<name>.json` is written, and the data gets its name.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from videodata.errors import UserError, VideoError, disk_errors, said_by
from videodata.files import has_suffix, lock_file, parse_json, read_json, remove_debris, write_json
from videodata.video_folder import InputVideo

JOURNAL_FORMAT = "videodata-npy-journal"
PARTS_FORMAT = "videodata-parts"  # of an index of what several machines made


def partial_path(path: Path) -> Path:
    """Where the data of `path` grows."""
    return path.with_name(path.name + ".partial")


def sidecar_path(path: Path) -> Path:
    """The JSON file that describes `path`."""
    return path.with_suffix(".json") if has_suffix(path.name, {".npy"}) else path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict:
    """Content of a side-car, or of an index of several. Raises VideoError."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VideoError(path, f"cannot be read ({said_by(error)}); prepare the data again") from error
    except ValueError as error:
        reason = f"is not valid JSON ({said_by(error)}); prepare the data again or remove the file"
        raise VideoError(path, reason) from error
    if not isinstance(content, dict):
        raise VideoError(path, "describes no videos; prepare the data again or remove the file")
    return content


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


def refuse_foreign(path: Path, format: str) -> None:
    """Raise UserError when what a writer of `format` makes beside `path` would replace something that is not its own.

    Its side-car may also be an index of parts, which a merge makes again at any time.
    """
    journal, partial, sidecar = journal_path(path), partial_path(path), sidecar_path(path)
    if sidecar.exists() and (read_json(sidecar) or {}).get("format") not in (format, PARTS_FORMAT):
        _refuse(sidecar, path)
    if journal.exists() and not _is_journal(journal):
        _refuse(journal, path)
    if partial.exists() and not journal.exists() and not _is_empty(partial):
        _refuse(partial, path)


def _refuse(there: Path, path: Path) -> None:
    raise UserError(
        f"{there}: was not made by this command, which must write there beside {path.name}; move it away, or choose "
        "another name for the output"
    )


def _is_journal(path: Path) -> bool:
    """Whether it begins as journals do, or is the torn beginning of one."""
    if not path.is_file():
        return False
    begin = json.dumps({"format": JOURNAL_FORMAT})[:-1].encode()
    with open(path, "rb") as file:
        return begin.startswith(file.read(len(begin)))


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def difference(old: dict | None, new: dict) -> str:
    """Which arguments changed, for people."""
    old = old or {}
    changed = [key for key in (*new, *old) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)}, now {new.get(key)}" for key in dict.fromkeys(changed)) or "other shape"


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
                fields = parse_json(line) if line.endswith(b"\n") else None
                if head is None and (not isinstance(fields, dict) or fields.get("format") != JOURNAL_FORMAT):
                    break
                if head is not None:
                    entries.append(Entry(**fields))
            except (ValueError, TypeError):
                break
            head = fields if head is None else head
            ends.append(position)
    return head, entries, ends


class Writer(ABC):
    """Adds one video after another to `path`; made again after a kill, it continues.

    Use as a context manager. `entries` holds the videos that are done: go on with the next one. Raises UserError when
    another process writes to the same path, when the disk is full, or when `arguments` differ from those that the
    partial data was begun with (`restart` begins again).
    """

    format: str  # what the side-car says first
    video: InputVideo | None = None  # whose frames are written

    def __init__(self, path: str | os.PathLike, arguments: dict, restart: bool = False) -> None:
        self.path, self.arguments = Path(path), arguments
        self.partial, self.journal = partial_path(self.path), journal_path(self.path)
        self.entries: list[Entry] = []
        self._restart = restart
        self._resources = ExitStack()

    def __enter__(self) -> Writer:
        with self._resources:
            self._resources.enter_context(lock_file(self.path, "writing"))
            with disk_errors(self.partial):
                remove_debris(self.path.parent, sidecar_path(self.path).name)
                self._open()
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def skipped(self) -> list[dict]:
        """Id, reason and status ("short" or "bad") of the videos that gave nothing."""
        names = ("id", "reason", "status")
        return [{name: getattr(entry, name) for name in names} for entry in self.entries if not entry.sequences]

    @abstractmethod
    def _open(self) -> None:
        """Begin, or take up what a former run left."""

    def _head(self, **facts: object) -> str:
        """The first line of the journal: what the data is made from."""
        return json.dumps({"format": JOURNAL_FORMAT, "version": 1, **facts, "arguments": self.arguments}) + "\n"

    def _take_up(self, **facts: object) -> list[int]:
        """Read the journal into `entries`; gives the position after its head and after each entry, [] for no head."""
        head, self.entries, ends = read_journal(self.journal)
        if head is not None and any(head.get(key) != value for key, value in json.loads(self._head(**facts)).items()):
            changed = difference(head.get("arguments"), self.arguments)
            raise UserError(
                f"{self.partial}: begun with other arguments ({changed}); use the same ones to continue, or --restart "
                "to begin again"
            )
        return ends

    def _write_sidecar(self, description: dict, videos: list[dict]) -> None:
        content = {**description, "prepare": self.arguments, "videos": videos, "skipped": self.skipped()}
        write_json(sidecar_path(self.path), content, sort_keys=False)
