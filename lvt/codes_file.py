"""Codes of a split of videos in one memory-mapped array.

<name>.npy    int16, (N, T, C, h, w) when all videos have T frames, else (frames of all videos, C, h, w)
<name>.json   which video begins where: {"format": "lvt-codes", "size": codes per codebook, "videos": [{"id", "label",
              "first_frame", "frames"}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from videodata.atomic import atomic_path
from videodata.errors import UserError

FORMAT = "lvt-codes"
LARGEST = np.iinfo(np.int16).max + 1  # codes per codebook that fit


@dataclass(frozen=True)
class CodedVideo:
    """Where the codes of one video lie among those of all."""

    id: str
    label: str | None
    first_frame: int
    frames: int


def write_codes(path: Path, videos: list[tuple[str, str | None, int]], codes: Iterable[np.ndarray], size: int) -> None:
    """Write codes (T_i, C, h, w) of the videos (id, label, T_i), one after the other; only one is in memory.

    size: codes per codebook. Raises UserError when it does not fit int16, or codes and videos do not agree.
    """
    if size > LARGEST:
        raise UserError(f"{path}: codebooks of {size} codes do not fit 16 bits")
    total = sum(frames for _, _, frames in videos)
    entries, array, done = [], None, 0
    with atomic_path(path) as temporary:
        for (name, label, frames), values in zip(videos, codes, strict=True):
            if len(values) != frames:
                raise UserError(f"{path}: video {name} has {len(values)} frames in place of {frames}")
            if array is None:
                array = np.lib.format.open_memmap(
                    temporary, "w+", np.int16, final_shape(videos, total, values.shape[1:])
                )
                flat = array.reshape(total, *values.shape[1:])
            flat[done : done + frames] = values
            entries.append(CodedVideo(name, label, done, frames))
            done += frames
        if array is None:
            raise UserError(f"{path}: there is no video to encode")
        array.flush()
        with atomic_path(path.with_suffix(".json")) as sidecar:
            facts = {"format": FORMAT, "version": 1, "size": size, "videos": [asdict(entry) for entry in entries]}
            sidecar.write_text(json.dumps(facts, indent=1))


def final_shape(videos: list[tuple[str, str | None, int]], total: int, frame: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the array: with an axis for the videos when all have the same length."""
    lengths = {frames for _, _, frames in videos}
    return (len(videos), lengths.pop(), *frame) if len(lengths) == 1 else (total, *frame)


class CodesFile:
    """Reads what `write_codes` wrote; a picklable list of videos."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            facts = json.loads(self.path.with_suffix(".json").read_text())
            if facts.get("format") != FORMAT:
                raise UserError(f"{self.path}: not a file of codes (its .json says {facts.get('format')!r})")
            self.videos = [CodedVideo(**entry) for entry in facts["videos"]]
            self.size = int(facts["size"])
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; codes are an .npy with a .json beside it") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path.with_suffix('.json')}: damaged ({error}); encode the videos again") from error
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}  # each loader worker maps the file itself

    @property
    def frames(self) -> np.ndarray:
        """Codes of all frames, int16 (F, C, h, w), memory-mapped."""
        if self._array is None:
            try:
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path}: cannot be read ({error}); encode the videos again") from error
            self._array = array.reshape(-1, *array.shape[-3:])
            if len(self._array) != sum(video.frames for video in self.videos):
                raise UserError(f"{self.path}: has other frames than its .json says; encode the videos again")
        return self._array

    def read(self, video: int, start: int, count: int) -> np.ndarray:
        """Codes of `count` frames of a video: (count, C, h, w)."""
        first = self.videos[video].first_frame + start
        return np.array(self.frames[first : first + count])
