"""Codes of a split of videos in one memory-mapped array, which can be made in several goes.

<name>.npy    int16, (N, T, C, h, w) when all videos have T frames, else (frames of all videos, C, h, w)
<name>.json   which video begins where: {"format": "lvt-codes", "size": codes per codebook, "videos": [{"id", "label",
              "first_frame", "frames"}, ...]}

While an array is made it is <name>.npy.partial, and <name>.npy.progress says how many videos it holds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.files import write_json
from videodata.errors import UserError
from videodata.files import lock_file

logger = logging.getLogger(__name__)
FORMAT = "lvt-codes"
LARGEST = np.iinfo(np.int16).max + 1  # codes per codebook that fit
NOTE_EVERY, LOG_EVERY = 100, 1000  # videos between notes of the progress, and between lines of the log
Listed = tuple[str, str | None, int]  # id, label and frames of a video


@dataclass(frozen=True)
class CodedVideo:
    """Where the codes of one video lie among those of all."""

    id: str
    label: str | None
    first_frame: int
    frames: int


def write_codes(
    path: Path, videos: list[Listed], codes_of: Callable[[int], np.ndarray], size: int, made_from: str = ""
) -> None:
    """Write the codes (T_i, C, h, w) of all videos, codes_of(i) each; a call that was killed is continued.

    size: codes per codebook. made_from names the weights: a partial array from other ones is begun again. Raises
    UserError when the codes do not fit int16, or codes and videos do not agree.
    """
    if size > LARGEST:
        raise UserError(f"{path}: codebooks of {size} codes do not fit 16 bits")
    if not videos:
        raise UserError(f"{path}: there is no video to encode")
    with lock_file(path, "writing"):
        fill(path, videos, codes_of, made_from)
        entries, first = [], 0
        for name, label, frames in videos:
            entries.append(asdict(CodedVideo(name, label, first, frames)))
            first += frames
        os.replace(partial(path), path)
        write_json(path.with_suffix(".json"), {"format": FORMAT, "version": 1, "size": size, "videos": entries})
        progress(path).unlink(missing_ok=True)


def fill(path: Path, videos: list[Listed], codes_of: Callable[[int], np.ndarray], made_from: str) -> None:
    """Encode the videos that the partial array does not hold yet."""
    identity = {"made_from": made_from, "videos": [list(video) for video in videos]}
    done = videos_done(path, identity)
    if done:
        logger.info("%s: %d of %d videos are there already", path, done, len(videos))
    array = np.lib.format.open_memmap(partial(path), "r+") if done else None
    starts = np.cumsum([0, *(frames for _, _, frames in videos)])
    bar = {"desc": path.parent.name, "total": len(videos), "initial": done, "unit": "video", "disable": None}
    for number in tqdm(range(done, len(videos)), **bar):
        values, frames = codes_of(number), videos[number][2]
        if len(values) != frames:
            raise UserError(f"{path}: video {videos[number][0]} has {len(values)} frames in place of {frames}")
        if array is None:
            shape = final_shape(videos, values.shape[1:])
            array = np.lib.format.open_memmap(partial(path), "w+", np.int16, shape)
        array.reshape(-1, *values.shape[1:])[starts[number] : starts[number] + frames] = values
        if number % NOTE_EVERY == NOTE_EVERY - 1 or number == len(videos) - 1:
            array.flush()
            write_json(progress(path), {**identity, "done": number + 1})
        if number % LOG_EVERY == LOG_EVERY - 1:
            logger.info("encoded %d of %d videos", number + 1, len(videos))


def videos_done(path: Path, identity: dict) -> int:
    """How many videos the partial array holds; 0 where there is none, or one made from something else."""
    try:
        noted = json.loads(progress(path).read_text())
    except (OSError, ValueError):
        return 0
    same = partial(path).exists() and {key: noted.get(key) for key in identity} == identity
    return noted["done"] if same else 0


def final_shape(videos: list[Listed], frame: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the array: with an axis for the videos when all have the same length."""
    lengths = [frames for _, _, frames in videos]
    return (len(videos), lengths[0], *frame) if len(set(lengths)) == 1 else (sum(lengths), *frame)


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def progress(path: Path) -> Path:
    return path.with_name(path.name + ".progress")


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
