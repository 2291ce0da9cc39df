"""Frame counts of many video files, remembered in a JSON file and renewed when a video's size or time changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from videodata.atomic import atomic_path
from videodata.errors import VideoError
from videodata.video import count_frames, probe

logger = logging.getLogger(__name__)

INDEX_NAME = ".videodata-index.json"
FORMAT = "videodata-index"
VERSION = 1


def index_videos(root: Path, files: Sequence[Path]) -> list[dict]:
    """One entry per file: {bytes, mtime_ns, frames, height, width, fps}, or with {error} for what cannot be read.

    Known entries come from the index beside the videos (or in the user's cache folder, where `root` is read-only).
    """
    known = _load(root)
    entries: dict[str, dict] = {}
    missing: list[tuple[str, Path, dict]] = []
    for file in files:
        name, status = os.path.relpath(file, root), _status(file)
        if name in known and status.items() <= known[name].items():
            entries[name] = known[name]
        else:
            missing.append((name, file, status))
    if missing:
        # Decoding releases the interpreter's lock, so threads are enough to use all cores.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (name, _, status), entry in zip(missing, pool.map(_examine, [m[1] for m in missing]), strict=True):
                entries[name] = {**status, **entry}
        if len(files) > 1:
            _save(root, entries)
    return [entries[os.path.relpath(file, root)] for file in files]


def _status(file: Path) -> dict:
    try:
        status = file.stat()
    except OSError:
        return {"bytes": None, "mtime_ns": None}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _examine(file: Path) -> dict:
    try:
        info = probe(file)
        return {"frames": count_frames(file), "height": info.height, "width": info.width, "fps": str(info.fps)}
    except VideoError as error:
        return {"error": error.reason}


def _places(root: Path) -> tuple[Path, Path]:
    """Beside the videos, or else under the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videogen" / "index"
    return root / INDEX_NAME, cache / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"


def _load(root: Path) -> dict[str, dict]:
    for place in _places(root):
        try:
            content = json.loads(place.read_text())
        except (OSError, ValueError):
            continue  # absent, or not an index: made anew
        if isinstance(content, dict) and (content.get("format"), content.get("version")) == (FORMAT, VERSION):
            return content["videos"]
    return {}


def _save(root: Path, entries: dict[str, dict]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, "videos": entries}, indent=0, sort_keys=True)
    read_only = not root.stat().st_mode & 0o222  # for everybody; the administrator, who may write, should not either
    for place in _places(root)[1 if read_only else 0 :]:
        try:
            with atomic_path(place) as temporary:
                temporary.write_text(text)
            return
        except OSError as error:
            reason = error
    logger.warning("%s: the index of its videos cannot be stored (%s) and will be made again each time", root, reason)
