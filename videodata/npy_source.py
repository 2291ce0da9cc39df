"""Clips in one memory-mapped .npy array, with or without the .json that names the videos they were cut from."""

from __future__ import annotations

import bisect
import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.resize import Size
from videodata.source import ClipSource, PerProcess, by_split, frame_range

FORMAT, VERSION = "videodata-npy", 1


class NpySource(ClipSource):
    """uint8 (N, T, H, W, 3), or (T, H, W, 3) for one video; each of the N sequences is one item.

    color: "rgb", or "bgr" for an array whose channels are the other way round (the default is what the .json beside
    it says, else RGB).
    """

    def __init__(self, path: str | Path, color: str | None = None) -> None:
        self.path = str(path)
        self._array = PerProcess(map_array, path)
        self._shape = check_layout(path, self._array.get())
        self._videos = _read_sidecar(Path(path), self._shape)
        self._first = [video["first_sequence"] for video in self._videos]
        stored = color or "rgb"
        if stored.lower() not in ("rgb", "bgr"):
            raise UserError(f'color must be "rgb" or "bgr", found {color!r}')
        self._reversed = stored.lower() == "bgr"

    def __len__(self) -> int:
        return self._shape[0]

    def id(self, index: int) -> str:
        video = self._video(index)
        if video is None:
            return f"{Path(self.path).stem}#{index}"
        return f"{video['id']}#{index - video['first_sequence']}"

    def label(self, index: int) -> str | None:
        video = self._video(index)
        return video and video.get("label")

    def group(self, index: int) -> str:
        video = self._video(index)
        return self.id(index) if video is None else video.get("group") or video["id"]

    def fps(self, index: int) -> Fraction | None:
        video = self._video(index)
        return Fraction(video["fps"]) if video and video.get("fps") else None

    def length(self, index: int) -> int:
        return self._shape[1]

    def size(self, index: int) -> Size:
        return self._shape[2], self._shape[3]

    def stamp(self, index: int) -> str:
        return str(self._shape)

    def splits(self) -> dict[str, list[int]] | None:
        return by_split([video.get("split") for video in self._videos for _ in range(video["sequences"])])

    def place(self, index: int) -> str:
        return f"{self.path}#{self.id(index)}"

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        chosen = frame_range(self.path, self._shape[1], start, count, step)
        array = self._array.get()
        sequence = array[index] if array.ndim == 5 else array  # (T, H, W, C)
        frames = np.array(sequence[chosen.start : chosen.stop : chosen.step])
        if frames.shape[-1] == 1:
            return np.repeat(frames, 3, axis=-1)
        return np.ascontiguousarray(frames[..., ::-1]) if self._reversed else frames

    def _video(self, index: int) -> dict | None:
        """The side-car's entry for the video that sequence `index` was cut from."""
        if not self._videos:
            return None
        return self._videos[bisect.bisect_right(self._first, index) - 1]


def map_array(path: str) -> np.ndarray:
    """Map a .npy file without reading it. Raises VideoError if it is missing, truncated or no plain array."""
    if not Path(path).is_file():
        raise VideoError(path, "no such file; prepare_ucf101.py makes one")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        if "mmap length" in reason or "reshape" in reason or "empty file" in reason.lower():
            reason = "the file is shorter than its header says: it is truncated, prepare it again"
        raise VideoError(path, f"is not a readable .npy array ({reason})") from error


def check_layout(path: str | Path, array: np.ndarray) -> tuple[int, int, int, int]:
    """(N, T, H, W) of an array of frames. Raises VideoError that says what was expected and what was found."""
    found = f"expected uint8 (N, T, H, W, 3) or (T, H, W, 3), found {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise VideoError(path, found)
    if array.ndim not in (4, 5) or array.shape[-1] not in (1, 3):
        channels_first = 3 in array.shape[-4:-2]
        raise VideoError(path, found + (": move the channel axis to the end" if channels_first else ""))
    if 0 in array.shape:
        raise VideoError(path, found + ": the array is empty")
    shape = array.shape if array.ndim == 5 else (1, *array.shape)
    return shape[0], shape[1], shape[2], shape[3]


def _read_sidecar(path: Path, shape: tuple[int, int, int, int]) -> list[dict]:
    """The list of videos in `<name>.json`, checked against the array; empty if there is no such file."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return []
    try:
        content = json.loads(sidecar.read_text())
    except ValueError as error:
        raise VideoError(sidecar, f"is not valid JSON ({error}); prepare the data again or remove the file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise VideoError(sidecar, f"does not describe {path.name} (format {FORMAT!r} expected); remove or rename it")
    if content.get("version") != VERSION:
        raise VideoError(sidecar, f"has version {content.get('version')}, this program reads {VERSION}")
    videos = sorted((v for v in content["videos"] if v["sequences"]), key=lambda video: video["first_sequence"])
    described = sum(video["sequences"] for video in videos), content["num_frames"], content["height"], content["width"]
    if described != shape:
        raise VideoError(sidecar, f"describes sequences of shape {described}, but {path.name} holds {shape}")
    return videos
