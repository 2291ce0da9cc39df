"""Clips of codes: in and out of a tokenizer, and on disk, where three layouts are read as windows for training.

What scripts/encode.py writes is described in `training.encoded`. The layout of this folder's own extraction:

<name>.npy    int16, (N, T, C, h, w) when all videos have T frames, else (frames of all videos, C, h, w)
<name>.json   which video begins where: {"format": "lvt-codes", "size": codes per codebook, "videos": [{"id", "label",
              "first_frame", "frames"}, ...], "provenance": the videos' source, split, fingerprint and ids}

A killed call goes on where it was (videodata/growing_array.py). The original's layout, which is only read, is a folder
per video with one int64 .npy (C, h, w) per frame.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lvt.config import DOWNSAMPLING
from training.config import from_dict
from training.encoded import Encoded, is_encoded
from training.tokenizer import Tokenizer, decode_array, video_frames
from videodata.errors import UserError, disk_errors, said_by
from videodata.files import lock_file, natural_key, parse_json, scan_files, write_json
from videodata.growing_array import GrowingArray
from videodata.npy import read_array
from videodata.pixels import as_float

logger = logging.getLogger(__name__)
CODES_NAME = "codes.npy"  # of the array that extraction writes into a data set's folder
FORMAT = "lvt-codes"
LARGEST = np.iinfo(np.int16).max + 1  # codes per codebook that fit
ENCODE = "encode the videos again"
NOTE_EVERY, LOG_EVERY = 100, 1000  # videos between notes of the progress, and between lines of the log
Listed = tuple[str, str | None, int]  # id, label and frames of a video


@dataclass(frozen=True)
class Cells:
    """What a code stands for, as a `Tokenizer` says it; by default one of this folder's VQ-VAE."""

    time_factor: int = 1
    space_factor: int = DOWNSAMPLING
    causal: bool = True

    def subpixels_per_code(self, codes: tuple[int, ...]) -> float:
        """Red, green and blue values for one of the codes (C, T, h, w) of a clip."""
        count, frames, height, width = codes
        pixels = video_frames(self, frames) * height * width * self.space_factor**2
        return 3 * pixels / (count * frames * height * width)


def encode_codes(tokenizer: Tokenizer, clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W), uint8 or in [-1, 1], on the tokenizer's device -> codes int64 (B, C, T, h, w)."""
    if clips.shape[2] == 0:  # of clips that are invented from nothing
        sides = (side // tokenizer.space_factor for side in clips.shape[3:])
        return torch.zeros(len(clips), tokenizer.width, 0, *sides, dtype=torch.int64, device=clips.device)
    return tokenizer.encode(as_float(clips)).movedim(-1, 1)


def decode_codes(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Codes int64 (B, C, T, h, w) -> clips (B, 3, T, H, W) in [-1, 1]."""
    return decode_array(tokenizer, codes.movedim(1, -1))


def open_codes(path: str | Path) -> Codes:
    """Codes of a split: an .npy of scripts/encode.py or of `write_codes`, a folder with codes.npy, or the original's
    folders of frames.
    """
    path = Path(path)
    if path.suffix == ".npy" and is_encoded(path):
        return EncodedCodes(path)
    if holds_codes(path):
        return CodesFile(path if path.suffix == ".npy" else path / CODES_NAME)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such codes; make them with scripts/encode.py, or train_lvt.py --encode (CodesExtractor)"
        )
    return CodesFolder(path)


def holds_codes(path: Path) -> bool:
    """Whether a path is an array of codes, or a folder with one."""
    return (path.suffix == ".npy" and path.is_file()) or (path / CODES_NAME).is_file()


class CodeWindows(Dataset):
    """Items {"codes": int16 (C, T, h, w), "class_index": int64}; the class is -1 where there are no labels.

    `frames` consecutive frames of each video: from a start drawn from (seed, position), or the first ones, as always
    where the codes are of clips that must be whole; all frames for -1. Videos that are shorter are left out with a
    warning. `classes` numbers the labels; those of the source in alphabetical order by default. Raises UserError when
    no video is left, and for labels that are none of the classes.
    """

    takes_positions = True  # the training loop's loader asks for (index, position)

    def __init__(
        self, source: Codes, frames: int, random: bool, seed: int = 0,
        classes: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.random, self.seed = source, random and not source.whole_clips, seed
        lengths = [video.frames for video in source.videos]
        self.frames = frames if frames > 0 else min(lengths)
        self._videos = [index for index, length in enumerate(lengths) if length >= self.frames]
        if not self._videos:
            raise UserError(
                f"{source.path}: no video has {self.frames} frames of codes, the longest has {max(lengths)}; set "
                f"INPUT.N_FRAMES_PER_VIDEO_TRAIN and INPUT.N_FRAMES_PER_VIDEO_TEST"
            )
        if len(self._videos) < len(lengths):
            logger.warning("%s: %d videos are too short", source.path, len(lengths) - len(self._videos))
        found = {video.label for video in source.videos if video.label is not None}
        self.classes = sorted(found) if classes is None else classes
        if unknown := sorted(found - set(self.classes)):
            raise UserError(f"{source.path}: class {unknown[0]!r} is not among those that the model was trained on")

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        item, position = index if isinstance(index, tuple) else (index, index)
        video = self._videos[item]
        entry = self.source.videos[video]
        start = 0
        if self.random:
            start = int(np.random.default_rng((self.seed, position)).integers(entry.frames - self.frames + 1))
        codes = self.source.read(video, start, self.frames)  # (T, C, h, w)
        codes = codes.astype(np.int16 if (self.source.size or 0) <= LARGEST else np.int32)
        label = -1 if entry.label is None else self.classes.index(entry.label)
        return {"codes": torch.from_numpy(codes.swapaxes(0, 1).copy()), "class_index": label}

    def describe(self, index: int) -> dict[str, Any]:
        """Id and label of item `index`."""
        entry = self.source.videos[self._videos[index]]
        return {"id": entry.id, "label": entry.label}

    def fingerprint(self) -> str:
        """Hash of the ids, labels and lengths of the videos."""
        facts = [(entry.id, entry.label, entry.frames) for entry in map(self.source.videos.__getitem__, self._videos)]
        return f"{len(facts)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"

    def items_of(self, ids: Collection[str], items: Sequence[int] | None = None) -> int:
        """How many items, or of these items, are of videos with these ids of `provenance`."""
        own = self.provenance()["ids"]
        return sum(own[item] in ids for item in (range(len(own)) if items is None else items))

    def provenance(self) -> dict[str, Any] | None:
        """Of the encoded videos, as `ClipDataset.provenance`; None for codes that do not say what was encoded."""
        noted = self.source.provenance
        return None if noted is None else {**noted, "ids": [noted["ids"][video] for video in self._videos]}


@dataclass(frozen=True)
class CodedVideo:
    """Where the codes of one video lie among those of all."""

    id: str
    label: str | None
    first_frame: int
    frames: int


class EncodedCodes:
    """Reads what scripts/encode.py wrote; a picklable list of clips."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.encoded = Path(path), Encoded(path)
        record = self.encoded.tokenizer
        if record["kind"] != "codes":
            raise UserError(f"{path}: holds latents; a transformer needs codes (scripts/encode.py --kind codes)")
        ends = list(accumulate(clip.length for clip in self.encoded.clips))
        self.videos = [
            CodedVideo(clip.id, clip.label, end - clip.length, clip.length)
            for clip, end in zip(self.encoded.clips, ends, strict=True)
        ]
        self.size, self.provenance, self.whole_clips = record["size"], self.encoded.provenance, self.encoded.whole_clips
        self.cells = Cells(record["time_factor"], record["space_factor"], record["causal"])
        self.frame_size = record["frame_size"]

    def read(self, video: int, start: int, count: int) -> np.ndarray:
        """Codes of `count` frames of a clip: (count, C, h, w)."""
        return np.moveaxis(self.encoded.read(video, start, count), -1, 1)


class CodesFile:
    """Reads what `write_codes` wrote; a picklable list of videos."""

    cells, whole_clips, frame_size = Cells(), False, None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            facts = parse_json(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            if facts.get("format") != FORMAT:
                raise UserError(f"{self.path}: not a file of codes (its .json says {facts.get('format')!r})")
            self.videos = [from_dict(CodedVideo, entry, f"{self.path}: videos") for entry in facts["videos"]]
            self.size = int(facts["size"])
            self.provenance: dict[str, Any] | None = facts.get("provenance")
            check_places(self.videos, self.provenance)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; codes are an .npy with a .json beside it") from error
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            reason = f"damaged ({said_by(error)}); {ENCODE}"
            raise UserError(f"{self.path.with_suffix('.json')}: {reason}") from error
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}  # each loader worker maps the file itself

    @property
    def frames(self) -> np.ndarray:
        """Codes of all frames, int16 (F, C, h, w), memory-mapped."""
        if self._array is None:
            array = read_array(self.path, remedy=ENCODE)
            if array.ndim < 4 or array.dtype.kind not in "iu" or 0 in array.shape[-3:]:
                raise UserError(f"{self.path}: holds no codes (F, C, h, w) but {array.dtype} {array.shape}")
            self._array = array.reshape(-1, *array.shape[-3:])
            if len(self._array) != sum(video.frames for video in self.videos):
                raise UserError(f"{self.path}: has other frames than its .json says; {ENCODE}")
        return self._array

    def read(self, video: int, start: int, count: int) -> np.ndarray:
        """Codes of `count` frames of a video: (count, C, h, w)."""
        first = self.videos[video].first_frame + start
        return np.array(self.frames[first : first + count])


def check_places(videos: list[CodedVideo], provenance: dict[str, Any] | None) -> None:
    """Raise ValueError for videos that do not follow each other, or that are others than were encoded."""
    ends = list(accumulate((video.frames for video in videos), initial=0))
    if not videos or min(video.frames for video in videos) < 1 or [v.first_frame for v in videos] != ends[:-1]:
        raise ValueError("its videos do not follow each other")
    if provenance is not None and not len(provenance["ids"]) == len(videos):
        raise ValueError("its videos are not those that were encoded")


class CodesFolder:
    """Every folder below `root` that holds .npy files is a video; its class is the folder above, if any.

    The original keeps its scan in latent_video_paths.npy; that file is not read.
    """

    provenance = None
    size: int | None = None  # nothing says it
    cells, whole_clips, frame_size = Cells(), False, None

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root)
        found: dict[Path, list[str]] = {}
        for folder, name in scan_files(self.path, {".npy"}):
            if Path(folder) != self.path:
                found.setdefault(Path(folder), []).append(name)
        self._folders = sorted(found, key=lambda folder: natural_key(folder.relative_to(self.path)))
        self._names = [sorted(found[folder], key=natural_key) for folder in self._folders]
        if not self._folders:
            raise UserError(f"{root}: holds no codes: neither codes.npy nor folders of <frame>.npy files")
        self.videos = []
        first = 0
        for folder, names in zip(self._folders, self._names, strict=True):
            parts = folder.relative_to(self.path).parts
            label = parts[-2] if len(parts) > 1 else None
            self.videos.append(CodedVideo("/".join(parts), label, first, len(names)))
            first += len(names)

    def read(self, video: int, start: int, count: int) -> np.ndarray:
        """Codes of `count` frames of a video: (count, C, h, w)."""
        folder = self._folders[video]
        frames = [read_frame(folder / name) for name in self._names[video][start : start + count]]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError(f"{folder}: its frames have codes of different shapes")
        return np.stack(frames)


Codes = EncodedCodes | CodesFile | CodesFolder


def read_frame(path: Path) -> np.ndarray:
    """Codes (C, h, w) of one frame."""
    codes = read_array(path, mapped=False, remedy=ENCODE)
    if codes.ndim != 3 or not np.issubdtype(codes.dtype, np.integer):
        raise UserError(f"{path}: codes of a frame are integers (codebooks, h, w), found {codes.dtype} {codes.shape}")
    return codes


def write_codes(
    path: Path, videos: list[Listed], codes_of: Callable[[int], np.ndarray], size: int, made_from: str = "",
    provenance: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the codes (T_i, C, h, w) of all videos, codes_of(i) each; a call that was killed is continued.

    size: codes per codebook. made_from names the weights: a partial array from other ones is begun again. provenance:
    of the videos, in their order. Raises UserError when the codes do not fit int16, or codes and videos do not agree.
    """
    if size > LARGEST:
        raise UserError(f"{path}: codebooks of {size} codes do not fit 16 bits")
    if not videos:
        raise UserError(f"{path}: there is no video to encode")
    with lock_file(path, "writing"), disk_errors(path):
        array = fill(path, videos, codes_of, made_from)
        entries, first = [], 0
        for name, label, frames in videos:
            entries.append(asdict(CodedVideo(name, label, first, frames)))
            first += frames
        path.with_suffix(".json").unlink(missing_ok=True)  # it may be of other codes, which are replaced now
        array.publish()
        facts = {"format": FORMAT, "version": 1, "size": size, "videos": entries, "provenance": provenance}
        write_json(path.with_suffix(".json"), facts)
        array.forget()


def fill(path: Path, videos: list[Listed], codes_of: Callable[[int], np.ndarray], made_from: str) -> GrowingArray:
    """Encode the videos that the array does not hold yet."""
    array = GrowingArray(path, {"made_from": made_from, "videos": [list(video) for video in videos]})
    done, lengths = array.done, [frames for _, _, frames in videos]
    if done:
        logger.info("%s: %d of %d videos are there already", path, done, len(videos))
    axes = (len(videos), lengths[0]) if len(set(lengths)) == 1 else (sum(lengths),)
    starts = np.cumsum([0, *lengths])
    bar = {"desc": path.parent.name, "total": len(videos), "initial": done, "unit": "video", "disable": None}
    for number in tqdm(range(done, len(videos)), **bar):
        values, frames = codes_of(number), lengths[number]
        if len(values) != frames:
            raise UserError(f"{path}: video {videos[number][0]} has {len(values)} frames in place of {frames}")
        if array.values is None:
            array.open(np.int16, (*axes, *values.shape[1:]))
        array.values.reshape(-1, *values.shape[1:])[starts[number] : starts[number] + frames] = values
        if number % NOTE_EVERY == NOTE_EVERY - 1 or number == len(videos) - 1:
            array.note(number + 1)
        if number % LOG_EVERY == LOG_EVERY - 1:
            logger.info("encoded %d of %d videos", number + 1, len(videos))
    return array
