"""The journal of a growing .npy: one JSON line per video that is already in the file."""

import json
from dataclasses import dataclass
from pathlib import Path

JOURNAL_FORMAT = "videodata-npy-journal"


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
