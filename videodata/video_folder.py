"""Video files: one, a folder of them, or a csv list."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.folder_scan import find_files
from videodata.geometry import Size
from videodata.sources import ClipSource
from videodata.video import VIDEO_SUFFIXES, read_video
from videodata.video_index import index_videos
from videodata.video_list import InputVideo, describe_videos


class VideoFolder(ClipSource):
    """Video files in natural order, with the names, labels and groups of video_list.py."""

    def __init__(self, root: Path, videos: Sequence[InputVideo]) -> None:
        self.path = str(root)
        entries = index_videos(root, [video.path for video in videos])
        both = list(zip(videos, entries, strict=True))
        self.broken = [VideoError(video.path, entry["error"]) for video, entry in both if "error" in entry]
        self._videos = [video for video, entry in both if "error" not in entry]
        self._entries = [entry for entry in entries if "error" not in entry]

    @classmethod
    def from_file(cls, path: Path) -> VideoFolder:
        """One video file."""
        source = cls(path.parent, describe_videos(path.parent, [path]))
        source.path = str(path)
        return source

    @classmethod
    def from_folder(cls, root: Path) -> VideoFolder:
        """All video files under a folder; other files are left out with one warning."""
        return cls(root, describe_videos(root, find_files(root, VIDEO_SUFFIXES, "videos")))

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
        captioned = [InputVideo(path.parent / name, name, text or None, name) for name, text in listed]
        return cls(path.parent, captioned)

    def __len__(self) -> int:
        return len(self._videos)

    def id(self, index: int) -> str:
        return self._videos[index].id

    def label(self, index: int) -> str | None:
        return self._videos[index].label

    def group(self, index: int) -> str:
        return self._videos[index].group

    def fps(self, index: int) -> Fraction:
        return Fraction(self._entries[index]["fps"])

    def length(self, index: int) -> int:
        return self._entries[index]["frames"]

    def size(self, index: int) -> Size:
        return self._entries[index]["height"], self._entries[index]["width"]

    def stamp(self, index: int) -> str:
        return str(self._entries[index]["bytes"])

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        return read_video(self._videos[index].path, start, count, step=step)[0]

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
            return read_video(self._videos[index].path, start, count, step=step, size=size, resize=resize)[0]
        except VideoError:
            raise
        except UserError as error:
            raise VideoError(self._videos[index].path, str(error)) from error
