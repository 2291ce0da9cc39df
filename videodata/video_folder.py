"""Video files: one, a folder of them, or a csv list."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.geometry import Size
from videodata.natural_order import is_hidden, natural_key
from videodata.sources import ClipSource
from videodata.video import VIDEO_SUFFIXES, read_video
from videodata.video_index import index_videos

logger = logging.getLogger(__name__)

UCF101_NAME = re.compile(r"(v_(?P<label>\w+)_g\d+)_c\d+$")


class VideoFolder(ClipSource):
    """Video files in natural order. The label is the folder that holds a file, or the class in a UCF101 name."""

    def __init__(self, root: Path, files: Sequence[Path], labels: Sequence[str | None]) -> None:
        self.path = str(root)
        entries = index_videos(root, files)
        names = _names(root, files)
        readable = [k for k, entry in enumerate(entries) if "error" not in entry]
        self.broken = [VideoError(files[k], entries[k]["error"]) for k in range(len(files)) if "error" in entries[k]]
        self._files = [files[k] for k in readable]
        self._labels = [labels[k] for k in readable]
        self._names = [names[k] for k in readable]
        self._entries = [entries[k] for k in readable]

    @classmethod
    def from_file(cls, path: Path) -> VideoFolder:
        """One video file."""
        return cls(path.parent, [path], [_ucf101_label(path)])

    @classmethod
    def from_folder(cls, root: Path) -> VideoFolder:
        """All video files under a folder; other files are left out with one warning."""
        files = list(_video_files(root))
        labels = [file.parent.name if file.parent != root else _ucf101_label(file) for file in files]
        return cls(root, files, labels)

    @classmethod
    def from_csv(cls, path: Path) -> VideoFolder:
        """Videos listed in a csv file with a column `path` (relative to the csv file) and, if it has one, `text`."""
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if "path" not in (rows.fieldnames or ()):
                raise UserError(f"{path}: expected a column named path (and text), found {rows.fieldnames}")
            listed = [(row["path"], row.get("text")) for row in rows if row["path"]]
        if not listed:
            raise VideoError(path, "lists no videos")
        root = path.parent
        return cls(root, [root / name for name, _ in listed], [text or None for _, text in listed])

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> str | None:
        return self._labels[index]

    def group(self, index: int) -> str:
        match = UCF101_NAME.search(self._files[index].stem)
        return match[1] if match else self._names[index]

    def fps(self, index: int) -> Fraction:
        return Fraction(self._entries[index]["fps"])

    def length(self, index: int) -> int:
        return self._entries[index]["frames"]

    def size(self, index: int) -> Size:
        return self._entries[index]["height"], self._entries[index]["width"]

    def stamp(self, index: int) -> str:
        return str(self._entries[index]["bytes"])

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        return read_video(self._files[index], start, count, step=step)[0]

    def read_clip(
        self,
        index: int,
        start: int,
        count: int | None,
        step: int = 1,
        size: Size | None = None,
        resize: str = "crop",
        interpolation: str | None = None,
        short_side: int | None = None,
    ) -> np.ndarray:
        if (interpolation or self.interpolation) != "area" or short_side is not None:
            return super().read_clip(index, start, count, step, size, resize, interpolation, short_side)
        # The decoder's scaler turns YUV into small RGB in one pass, in half the time of two.
        try:
            return read_video(self._files[index], start, count, step=step, size=size, resize=resize)[0]
        except VideoError:
            raise
        except UserError as error:
            raise VideoError(self._files[index], str(error)) from error


def holds_videos(root: Path) -> bool:
    """Whether any file under the folder has the suffix of a video."""
    return any(_is_video(name) for _, _, names in os.walk(root) for name in names)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not is_hidden(name)


def _video_files(root: Path) -> Iterator[Path]:
    files, others = [], Counter()
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if _is_video(name):
                files.append(Path(folder, name))
            elif not is_hidden(name):
                others[os.path.splitext(name)[1] or name] += 1
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        logger.warning("%s: %d files that are not videos are left out (%s)", root, others.total(), kinds)
    yield from sorted(files, key=lambda file: natural_key(file.relative_to(root)))


def _names(root: Path, files: Sequence[Path]) -> list[str]:
    """Path from the root without suffix; with it where two files differ in nothing else."""
    full = [Path(os.path.relpath(file, root)) for file in files]
    counts = Counter(name.with_suffix("") for name in full)
    return [(name.with_suffix("") if counts[name.with_suffix("")] == 1 else name).as_posix() for name in full]


def _ucf101_label(file: Path) -> str | None:
    match = UCF101_NAME.search(file.stem)
    return match["label"] if match else None
