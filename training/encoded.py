"""A data set as what a tokenizer makes of it: the one format of codes and latents on disk.

<folder>/tokenizer.json   {"tokenizer": what `open_tokenizer` takes, "digest": of its weights, "kind", "size", "width",
                          "time_factor", "space_factor", "causal", "frame_size": [H, W], "stride": frames of a video
                          from one frame of a clip to the next}
<folder>/<split>.npy      (t of all clips, h, w, c): codes in the smallest integers that hold them, latents as float16
                          or float32; memory-mapped
<folder>/<split>.json     {"clips": [{"id", "label", "start", "frames", "length"}, ...], "provenance", "made_from", and
                          of latents "mean" and "std" of each channel}

A clip is a whole video for a tokenizer of single frames, of whose array any window is that of the same window of the
video. A tokenizer with a time factor sees clips of a fixed number of frames, which follow each other in the video, and
a window begins where a clip does. `length` is its extent in the array, `frames` and `start` that in the video.

A killed call goes on where it was (videodata/growing_array.py), and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.cli import command_line, dtype_name
from training.config import from_dict
from training.distributed import announced, resolve_device
from training.tokenizer import (
    TOKENIZER_FILE,
    Tokenizer,
    TokenizerName,
    array_shape,
    latent_frames,
    open_tokenizer,
    tokenizer_digest,
    tokenizer_name,
    tokenizer_record,
)
from training.writing import check_place
from videodata.clips import ClipDataset, spread
from videodata.errors import UserError, disk_errors, said_by
from videodata.files import lock_file, read_json, write_json
from videodata.growing_array import GrowingArray
from videodata.npy import read_array
from videodata.pixels import channels_first, normalize
from videodata.source import ClipSource
from videodata.splits import open_split

logger = logging.getLogger(__name__)

FORMAT = "encoded"
BLOCK = 64  # frames that are read and encoded at a time by a tokenizer of single frames
CLIP_FRAMES = 16  # of a clip for a tokenizer with a time factor; or the next larger number that it takes
NOTE_EVERY = 20  # clips between notes of the progress
INTEGERS = (np.uint8, np.uint16, np.int32)
DTYPES = {"fp16": np.float16, "fp32": np.float32}  # of latents
ENCODE = "encode the data again with scripts/encode.py"


@dataclass(frozen=True)
class EncodedClip:
    """A clip, and where its array lies among those of all."""

    id: str  # of its video
    label: str | None
    start: int  # first frame in the video
    frames: int
    length: int  # in time, of its array


class Encoded:
    """Reads what `encode_data` wrote of one split; picklable. Raises UserError for files that do not fit together."""

    def __init__(self, path: str | Path) -> None:
        """path: <folder>/<split>.npy."""
        self.path = Path(path)
        self.tokenizer = tokenizer_record(self.path.parent)
        facts = read_json(self.path.with_suffix(".json"))
        if self.tokenizer is None or facts is None or not self.path.is_file():
            raise UserError(f"{self.path}: no encoded data; {ENCODE}")
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}")
            self.clips = [from_dict(EncodedClip, entry, f"{self.path}: clips") for entry in facts["clips"]]
            self.provenance: dict[str, Any] = facts["provenance"]
            self.moments: tuple[list[float], list[float]] | None = None
            if self.kind == "latents":
                self.moments = facts["mean"], facts["std"]
            if not self.clips or len(self.provenance["ids"]) != len(self.clips):
                raise ValueError("its clips are not those that were encoded")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path.with_suffix('.json')}: damaged ({said_by(error)}); {ENCODE}") from error
        self._first = [0, *accumulate(clip.length for clip in self.clips)]
        self._array: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}  # each loader worker maps the file itself

    @property
    def kind(self) -> str:
        return self.tokenizer["kind"]

    @property
    def whole_clips(self) -> bool:
        """Whether a window must begin where a clip does."""
        return self.tokenizer["time_factor"] > 1

    @property
    def array(self) -> np.ndarray:
        """All of it, (t of all clips, h, w, c), memory-mapped."""
        if self._array is None:
            array = read_array(self.path, remedy=ENCODE)
            if array.ndim != 4 or array.shape[3] != self.tokenizer["width"] or len(array) != self._first[-1]:
                raise UserError(f"{self.path}: is {array.shape}, not what its .json says; {ENCODE}")
            self._array = array
        return self._array

    def read(self, clip: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        """(t, h, w, c) of a clip, `count` of its `length` from `start` on."""
        first, last = self._first[clip] + start, self._first[clip + 1]
        return np.array(self.array[first : last if count is None else first + (count - 1) * step + 1 : step])


def is_encoded(folder: str | Path) -> bool:
    """Whether a folder, or that of a <split>.npy, holds what `encode_data` writes."""
    folder = Path(folder)
    return ((folder if folder.is_dir() else folder.parent) / TOKENIZER_FILE).is_file()


def encode_data(
    name: str | Path | TokenizerName,
    data: str,
    split: str,
    folder: Path,
    *,
    size: int,
    kind: str | None = None,
    frames: int | None = None,
    stride: int = 1,
    short_side: int | None = None,
    dtype: str = "fp16",
    device: torch.device | str = "cpu",
    most: int | None = None,
) -> Path:
    """Write <folder>/<split>.npy, .json and tokenizer.json, going on where a killed call stopped; gives the .npy.

    size: height and width of the frames, cut after their shorter side was scaled to `short_side`. frames: of a clip;
    None: the whole video, or CLIP_FRAMES for a tokenizer with a time factor. stride: frames of the video from one frame
    of a clip to the next. dtype: of latents. most: videos of the split, evenly spread over it; None: all. Raises
    UserError, also where the folder holds something else.
    """
    dtype = dtype_name(dtype)
    if dtype not in DTYPES:
        raise UserError(f"latents are stored as {' or '.join(DTYPES)}, found {dtype!r}")
    named = name if isinstance(name, TokenizerName) else tokenizer_name(name)
    tokenizer = open_tokenizer(named, kind, device)
    plan = Plan.of(tokenizer, data, split, size, frames, stride, short_side, dtype, most)
    path = Path(folder) / f"{split}.npy"
    record = describe(named, tokenizer, plan)
    made_from = {"tokenizer": record["digest"], "with": named.settings, "data": plan.provenance["fingerprint"]}
    made_from |= plan.settings
    with lock_file(path, "writing"), disk_errors(path):
        check_folder(path.parent, record)
        array = GrowingArray(path, made_from)
        if is_finished(path, made_from):
            logger.info("%s: exists already", path)
        else:
            fill(array, plan, tokenizer, record)
            write_json(path.with_suffix(".json"), plan.facts(array, tokenizer))
            array.publish()
        array.forget()
    return path


@dataclass
class Plan:
    """What is to be encoded: clips of the videos of a split, and how they are read."""

    source: ClipSource
    videos: list[int]  # that of each clip
    clips: list[EncodedClip]
    cells: tuple[int, int, int]  # (h, w, c) of the array
    dtype: np.dtype
    provenance: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, data: str, split: str, size: int, frames: int | None, stride: int,
        short_side: int | None, dtype: str, most: int | None,
    ) -> Plan:  # fmt: skip
        """The plan of the arguments of `encode_data`. Raises UserError."""
        source, numbers = open_split(data, None if split == "all" else split)
        if most is not None and most < len(numbers):
            numbers = spread(numbers, most)
        if frames is None and tokenizer.time_factor > 1:
            frames = next(n for n in range(CLIP_FRAMES, 3 * CLIP_FRAMES * tokenizer.time_factor) if takes(tokenizer, n))
        if frames is None and stride > 1:
            raise UserError("whole videos are encoded without a stride; name the frames of a clip, too")
        videos, clips = [], []
        for video in numbers:
            whole = source.length(video)
            count = frames or whole
            for start in range(0, whole - (count - 1) * stride, count * stride):
                videos.append(video)
                length = latent_frames(tokenizer, count, "a clip")
                clips.append(EncodedClip(source.id(video), source.label(video), start, count, length))
        if not clips:
            raise UserError(f"{data}: no video of the split {split} has {(frames or 1) * stride} frames")
        shape = array_shape(tokenizer, clips[0].frames, size, size)
        opened = ClipDataset(
            source, list(dict.fromkeys(videos)), 1, None, 1, 0, windows="first", flip=False, dtype="uint8",
            on_error="raise", reading={}, opened=data, split=None if split == "all" else split,
        )  # fmt: skip
        provenance = opened.provenance(every_id=True)
        places = dict(zip(dict.fromkeys(videos), provenance["ids"], strict=True))
        provenance["ids"] = [places[video] for video in videos]
        stored = DTYPES[dtype]
        if tokenizer.kind == "codes":
            stored = next(kind for kind in INTEGERS if tokenizer.size - 1 <= np.iinfo(kind).max)
        settings = {"size": size, "short_side": short_side, "frames": frames, "stride": stride, "clips": len(clips)}
        settings["dtype"] = np.dtype(stored).name
        return cls(source, videos, clips, shape[1:], np.dtype(stored), provenance, settings)

    def pixels(self, clip: int) -> Iterator[Tensor]:
        """A clip uint8 (3, T, H, W), or pieces of it where each frame is encoded by itself anyway."""
        entry, stride, size = self.clips[clip], self.settings["stride"], self.settings["size"]
        at_once = BLOCK if entry.length == entry.frames else entry.frames
        for first in range(0, entry.frames, at_once):
            frames = self.source.read_clip(
                self.videos[clip], entry.start + first * stride, min(at_once, entry.frames - first), stride,
                (size, size), short_side=self.settings["short_side"],
            )  # fmt: skip
            yield channels_first(frames)

    def facts(self, array: GrowingArray, tokenizer: Tokenizer) -> dict[str, Any]:
        """The content of <split>.json."""
        entries = [asdict(clip) for clip in self.clips]
        facts = {"format": FORMAT, "version": 1, "clips": entries, "provenance": self.provenance}
        if tokenizer.kind == "latents":
            facts["mean"], facts["std"] = moments(array.read())
        return {**facts, "made_from": array.made_from}


def takes(tokenizer: Tokenizer, frames: int) -> bool:
    """Whether clips may have so many frames."""
    return (frames - tokenizer.causal) % tokenizer.time_factor == 0


def describe(name: TokenizerName, tokenizer: Tokenizer, plan: Plan) -> dict[str, Any]:
    """The content of tokenizer.json."""
    facts = {key: getattr(tokenizer, key) for key in ("kind", "size", "width", "time_factor", "space_factor", "causal")}
    facts |= {"frame_size": [plan.settings["size"]] * 2, "stride": plan.settings["stride"]}
    return {"format": "tokenizer", "tokenizer": name.to_dict(), "digest": tokenizer_digest(tokenizer), **facts}


def check_folder(folder: Path, record: dict[str, Any]) -> None:
    """Raises UserError where the folder holds what another tokenizer made of other frames: its splits share a file."""
    before = tokenizer_record(folder)
    if before is None:
        return
    same_but_for_place = {**record["tokenizer"], "path": before["tokenizer"].get("path")}
    changed = [key for key in record if before.get(key) not in (record[key], same_but_for_place)]
    if changed:
        key = changed[0]
        raise UserError(f"{folder}: holds data of {key} {before.get(key)}, not {record[key]}; name another folder")


def is_finished(path: Path, made_from: dict[str, Any]) -> bool:
    """Whether the array is there, made from the same. Raises UserError when it, or the .json, is something else."""
    facts = path.with_suffix(".json")
    if facts.exists() and not path.exists() and (read_json(facts) or {}).get("format") != FORMAT:
        raise UserError(f"{facts}: is a file of yours, which would be replaced; move it away, or name another folder")
    if not path.exists():
        return False
    noted = read_json(path.with_suffix(".json")) or {}
    if noted.get("made_from") != made_from:
        raise UserError(f"{path}: was made from {noted.get('made_from')}; remove it, or name another folder")
    return True


def fill(array: GrowingArray, plan: Plan, tokenizer: Tokenizer, record: dict[str, Any]) -> None:
    """Encode the clips that the array does not hold yet. record: the content of tokenizer.json."""
    path, done, total = array.path, array.done, len(plan.clips)
    ends = list(accumulate(clip.length for clip in plan.clips))
    # Before anything is written: what cannot be encoded leaves no folder that is closed to all other tokenizers.
    first = encode_one(plan, done, tokenizer, path) if done < total else None
    write_json(path.parent / TOKENIZER_FILE, record)
    array.open(plan.dtype, (ends[-1], *plan.cells))
    if done:
        logger.info("%s: %d of %d clips are there already", path, done, total)
    bar = {"desc": path.stem, "total": total, "initial": done, "unit": "clip", "disable": None, "leave": False}
    for number in tqdm(range(done, total), **bar):
        values = first if number == done else encode_one(plan, number, tokenizer, path)
        array.values[ends[number] - plan.clips[number].length : ends[number]] = values
        if number % NOTE_EVERY == NOTE_EVERY - 1 or number == total - 1:
            array.note(number + 1)


def encode_one(plan: Plan, number: int, tokenizer: Tokenizer, path: Path) -> np.ndarray:
    """The array (t, h, w, c) of one clip, as it is stored. Raises UserError for latents too large for their type."""
    device = next((weight.device for weight in tokenizer.module.parameters()), torch.device("cpu"))
    parts = [tokenizer.encode(normalize(pixels[None].to(device)))[0].cpu() for pixels in plan.pixels(number)]
    values = torch.cat(parts)
    if tokenizer.kind == "latents" and values.abs().max() > np.finfo(plan.dtype).max:
        most = float(values.abs().max())
        raise UserError(f"{path}: latents up to {most:.3g}, too large for {plan.dtype}; use --dtype fp32")
    return values.numpy().astype(plan.dtype)


def moments(array: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, to 6 digits; a channel that never changes counts as 1."""
    count, total, squares = 0, 0.0, 0.0
    for first in range(0, len(array), BLOCK):  # a block at a time, in order: the same sums whenever they are taken
        values = array[first : first + BLOCK].reshape(-1, array.shape[-1]).astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
    variance = np.maximum(squares / count - (total / count) ** 2, 0)
    deviation = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    return [float(f"{x:.6g}") for x in total / count], [float(f"{x:.6g}") for x in deviation]


def encode_splits(args: argparse.Namespace) -> Iterator[str]:
    """What scripts/encode.py does, a line for each split and one that says what comes next."""
    device, named = announced(resolve_device(args.device)), tokenizer_name(args.tokenizer)
    for split in args.splits:
        check_place(args.out / f"{split}.npy")  # of all, before the first is encoded
    options = {name: getattr(args, name) for name in ("size", "kind", "frames", "stride", "short_side", "dtype")}
    for split in args.splits:
        path = encode_data(named, args.data, split, args.out, device=device, most=args.max_videos, **options)
        found = Encoded(path)
        shape = " x ".join(map(str, found.array.shape[1:]))
        yield f"{path}: {len(found.clips)} clips, {len(found.array)} frames of {shape} {found.kind}"
    record = tokenizer_record(args.out)
    if record["kind"] == "codes":
        sizes = ["MODEL.AUTOREGRESSIVE.VT.NC", str(record["width"]), "MODEL.AUTOREGRESSIVE.VT.NV", str(record["size"])]
        if found.whole_clips:  # a configuration counts frames of codes, of which such a clip has others than of pixels
            length = str(found.clips[0].length)
            sizes += [word for part in ("TRAIN", "TEST") for word in (f"INPUT.N_FRAMES_PER_VIDEO_{part}", length)]
        words = ["python", "scripts/train_lvt.py", "--config-file", "CONFIG", "--data", str(args.out), *sizes]
    else:
        words = ["python", "scripts/train_flow_pred.py", "--config", "CONFIG", f"data.latents={args.out}"]
    yield f"next: {command_line(words)}"
