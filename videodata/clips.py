"""Clips for training and evaluation: fixed-length windows from any source, as a torch data set."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from videodata.errors import UserError, VideoError
from videodata.pixels import channels_first, normalize
from videodata.resize import INTERPOLATIONS, RESIZE_RULES, Size, as_size
from videodata.source import ClipSource, GeneratedSource, Objects
from videodata.sources import is_generated
from videodata.splits import HELD_OUT, NAMES, open_split
from videodata.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

WINDOWS = ("random", "consecutive", "first")
DTYPES = ("float32", "uint8")
FILES = (".csv", ".npy", ".json", ".hdf5", ".h5", *VIDEO_SUFFIXES)  # a source with one of these is no folder


UNKNOWN = {"source": "unknown", "split": None, "fingerprint": "", "ids": []}  # the provenance of data that has none


class Window(NamedTuple):
    """Where a clip is cut: which video of the source, its first frame, and whether it is mirrored."""

    video: int
    start: int
    flip: bool


def open_clips(
    path: str | os.PathLike,
    frames: int = 16,
    size: int | Size | None = 64,
    stride: int = 1,
    split: str | None = None,
    seed: int = 0,
    *,
    fps: Fraction | float | None = None,
    windows: str = "random",
    resize: str = "crop",
    flip: bool = False,
    dtype: str = "float32",
    on_error: str = "raise",
    color: str | None = None,
    interpolation: str | None = None,
    short_side: int | None = None,
    total_videos: int | None = None,
    replacement: bool = False,
    held_out: float = HELD_OUT,
) -> ClipDataset:
    """Clips from videos, folders of videos or images, a csv list, .npy, .hdf5 shards, "shapes:<n>" or "digits:<n>".

    frames, stride: each clip holds `frames` frames, `stride` apart; fps: in place of a stride, the frames nearest in
    time to so many per second, repeated where the video has fewer. size: side or (height, width); None keeps the stored
    size. split: "train", "val" or "test", by what the data declares (see splits.py), None: all; held_out: the share of
    the videos in val and in test where it declares none. windows: "random" gives one item per video with a start drawn
    anew at each position; "consecutive" gives one item per window, without overlap; "first" gives the first window of
    each video. flip mirrors half of the clips. dtype "uint8" leaves the conversion to the device.
    on_error "skip" leaves out videos that cannot be read (a counted warning), "raise" stops at them. color, resize,
    interpolation, short_side: see `NpySource`, `resize.place`, `resize_frames`. total_videos: use that many videos,
    evenly spread over the source; with `replacement` that many are drawn by the seed, each from all that are long
    enough, so that a video may come again, with another random window. Raises UserError with one line.
    """
    _check_choice("windows", windows, WINDOWS)
    _check_choice("resize", resize, RESIZE_RULES)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("on_error", on_error, ("raise", "skip"))
    _check_choice("interpolation", interpolation, (None, *INTERPOLATIONS))
    if frames < 1 or stride < 1:
        raise UserError(f"frames and stride must be at least 1, found {frames} and {stride}")
    if seed < 0:
        raise UserError(f"seed must not be negative, found {seed}")
    if fps is not None and (not 0 < fps < math.inf or stride != 1):
        raise UserError(
            f"fps must be a finite number above 0 and takes the place of stride, found fps {fps} and stride {stride}"
        )
    source, videos = open_split(path, split, color, held_out)
    _report_broken(source, on_error)
    return ClipDataset(
        source,
        videos if replacement else spread(videos, total_videos),
        frames,
        as_size(size),
        stride,
        seed,
        fps=fps,
        windows=windows,
        flip=flip,
        dtype=dtype,
        on_error=on_error,
        reading={"resize": resize, "interpolation": interpolation, "short_side": short_side},
        opened=str(path),
        split=split,
        draws=total_videos if replacement else None,
    )


def spread(videos: list[Any], total: int | None) -> list[Any]:
    """`total` videos evenly spread over the list, first and last included; all of them for None."""
    if total is None or total <= 0:
        return videos
    last = len(videos) - 1
    return [videos[round(index / max(total - 1, 1) * last)] for index in range(total)]


class ClipDataset(Dataset):
    """Items are clips (3, T, H, W): float32 in [-1, 1], or uint8. Made by `open_clips`.

    dataset[i] depends on (seed, i) alone. dataset[(i, position)] draws start and flip from (seed, position), so that a
    loader that counts positions through the whole run sees new windows in each epoch, whatever its workers do.
    """

    takes_positions = True  # the training loop's loader may ask for (index, position)

    def __init__(
        self,
        source: ClipSource,
        videos: list[int],
        frames: int,
        size: Size | None,
        stride: int,
        seed: int,
        *,
        fps: Fraction | float | None = None,
        windows: str,
        flip: bool,
        dtype: str,
        on_error: str,
        reading: dict,
        opened: str | None = None,
        split: str | None = None,
        draws: int | None = None,
    ) -> None:
        """opened, split: what the source was asked for, which `provenance` tells; the default is the source's path.

        draws: so many videos are drawn with replacement from those that are long enough; None: each of them once.
        """
        self.source, self.frames, self.size, self.stride, self.seed = source, frames, size, stride, seed
        self.fps = None if fps is None else Fraction(str(fps))
        self.windows, self.flip, self.dtype, self.on_error = windows, flip, dtype, on_error
        self.skipped = 0  # items replaced by their neighbour because they could not be read
        self.reading, self.opened, self.split = reading, opened or source.path, split
        self._videos = self._long_enough(videos)
        if draws:
            drawn = np.random.default_rng((seed, 2)).integers(len(self._videos), size=draws)
            self._videos = [self._videos[place] for place in drawn]
        counts = np.array([self._windows_of(video) if windows == "consecutive" else 1 for video in self._videos])
        self._last_item = np.cumsum(counts)  # items up to and including each video

    def offset(self, video: int, frame: int) -> int:
        """How many frames of the video lie between the first of a clip and its frame `frame`."""
        if self.fps is None:
            return frame * self.stride
        stored = self.source.fps(video)
        if stored is None:
            raise UserError(f"{self.source.path}: does not say its frames per second; use a stride in place of fps")
        return math.floor(frame * stored / self.fps + Fraction(1, 2))  # the nearest in time, exactly

    def span(self, video: int) -> int:
        """Frames of the video from the first to the last of a clip, both included."""
        return self.offset(video, self.frames - 1) + 1

    def __len__(self) -> int:
        return int(self._last_item[-1])

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        return self.with_label(index)[0]

    def with_label(self, index: int | tuple[int, int]) -> tuple[Tensor, str | None]:
        """An item and the label of the video that it was cut from, which is another one where that was skipped."""
        item, position = self._split_index(index)
        for attempt in range(len(self)):
            window = self._window((item + attempt) % len(self), position)
            try:
                return self.read(window.video, window.start, window.flip), self.source.label(window.video)
            except VideoError as error:
                if self.on_error == "raise":
                    raise
                self.skipped += 1
                logger.warning("skipped: %s", error)
        raise VideoError(self.source.path, "not one of its videos can be read")

    def read(self, video: int, start: int, flip: bool = False) -> Tensor:
        """The clip of video `video` of the source that begins at frame `start`: (3, T, H, W)."""
        offsets = [self.offset(video, frame) for frame in range(self.frames)]
        step = max(1, math.gcd(*offsets))  # all that lies between is read where the offsets are not even
        pixels = self.source.read_clip(video, start, offsets[-1] // step + 1, step, self.size, **self.reading)
        if self.fps is not None:
            pixels = pixels[[offset // step for offset in offsets]]
        if flip:
            pixels = pixels[:, :, ::-1]
        clip = channels_first(pixels)
        return normalize(clip) if self.dtype == "float32" else clip

    def describe(self, index: int | tuple[int, int]) -> dict:
        """Where item `index` comes from: id, label, group, start, flip, fps (a Fraction, or None if unknown)."""
        window = self._window(*self._split_index(index))
        source, video = self.source, window.video
        fps = source.fps(video)
        return {
            "id": source.id(video),
            "label": source.label(video),
            "group": source.group(video),
            "start": window.start,
            "flip": window.flip,
            "fps": self.fps or (None if fps is None else fps / self.stride),
        }

    def objects(self, index: int | tuple[int, int]) -> Objects:
        """What moves in item `index`, of generated videos. Raises UserError for others: of them nobody knows."""
        if not isinstance(self.source, GeneratedSource):
            raise UserError(f"{self.opened}: where things are is known in generated videos only, such as digits:200")
        window = self._window(*self._split_index(index))
        size = self.size or self.source.size(window.video)
        times = [window.start + self.offset(window.video, frame) for frame in range(self.frames)]
        found = self.source.objects(window.video, times, size)
        if window.flip:
            found.centres[..., 1] = size[1] / min(size) - found.centres[..., 1]
        return found

    def label(self, index: int | tuple[int, int]) -> str | None:
        """The label of item `index`, without drawing its window."""
        return self.source.label(self._videos[self._place(self._split_index(index)[0])])

    def labels(self) -> list[str]:
        return sorted({label for label in map(self.source.label, self._videos) if label is not None})

    def stored_sizes(self) -> set[Size]:
        """The sizes (height, width) that the videos have where they lie."""
        return {self.source.size(video) for video in self._videos}

    def rates(self) -> set[Fraction | None]:
        """Their frames per second; None where the source does not say."""
        return {self.source.fps(video) for video in self._videos}

    def fingerprint(self) -> str:
        """Hash of the ids, lengths and file sizes of the videos: changes when the data does."""
        digest = hashlib.sha256()
        for video in self._videos:
            facts = (self.source.id(video), self.source.length(video), self.source.stamp(video))
            digest.update(repr(facts).encode())
        return f"{len(self._videos)}-{digest.hexdigest()[:16]}"

    def provenance(self) -> dict[str, Any]:
        """What a run that trains on this must remember: source, split, fingerprint, and ids of the videos.

        The ids are the same in every run and for every way of opening the same data: places of files relative to the
        source, or names for what has no files. See `overlap`.
        """
        base = _base(self.opened)
        places = [self.source.place(video) for video in self._videos]
        ids = [
            f"{self.source.stamp(video)}/{self.source.id(video)}"
            if place is None or base is None
            else os.path.relpath(place, base).replace(os.sep, "/")
            for place, video in zip(places, self._videos, strict=True)
        ]
        source = self.opened if base is None else os.path.realpath(self.opened)
        return {"source": source, "split": self.split, "fingerprint": self.fingerprint(), "ids": ids}

    def items_of(self, ids: Collection[str], items: Sequence[int] | None = None) -> int:
        """How many items, or of these items, are cut from the videos with these ids of `provenance`."""
        own = self.provenance()["ids"]
        counts = np.diff(self._last_item, prepend=0)
        if items is not None:
            counts = np.bincount(np.searchsorted(self._last_item, list(items), side="right"), minlength=len(own))
        return int(sum(count for id, count in zip(own, counts, strict=True) if id in ids))

    def _split_index(self, index: int | tuple[int, int]) -> tuple[int, int | None]:
        item, position = index if isinstance(index, tuple) else (index, None)
        item = int(item) + (len(self) if item < 0 else 0)
        if not 0 <= item < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return item, position

    def _place(self, item: int) -> int:
        """Which of the videos an item is cut from."""
        return int(np.searchsorted(self._last_item, item, side="right"))

    def _window(self, item: int, position: int | None) -> Window:
        place = self._place(item)
        video = self._videos[place]
        key = (self.seed, 0, item) if position is None else (self.seed, 1, int(position))
        draws = np.random.default_rng(key)
        start = 0
        if self.windows == "random":
            start = int(draws.integers(self.source.length(video) - self.span(video) + 1))
        elif self.windows == "consecutive":
            before = int(self._last_item[place - 1]) if place > 0 else 0
            start = self.offset(video, (item - before) * self.frames)
        return Window(video, start, self.flip and bool(draws.integers(2)))

    def _windows_of(self, video: int) -> int:
        """How many windows without overlap the video has."""
        if self.fps is None:
            return (self.source.length(video) - self.span(video)) // (self.frames * self.stride) + 1
        count = 1
        while self.offset(video, count * self.frames) + self.span(video) <= self.source.length(video):
            count += 1
        return count

    def _long_enough(self, videos: list[int]) -> list[int]:
        kept = [video for video in videos if self.source.length(video) >= self.span(video)]
        needed, apart = (f"{self.span(videos[0])} frames", self.stride) if videos else ("frames", self.stride)
        need = f"{needed} are needed for {self.frames} frames {apart} apart"
        if self.fps is not None:
            need = f"{self.frames} frames at {float(self.fps):g} per second are needed"
        if not kept:
            longest = max((self.source.length(video) for video in videos), default=0)
            raise VideoError(self.source.path, f"no video is long enough: {need}, the longest has {longest}")
        if len(kept) < len(videos):
            logger.warning(
                "%s: %d videos are too short and left out (%s)", self.source.path, len(videos) - len(kept), need
            )
        return kept


def _report_broken(source: ClipSource, on_error: str) -> None:
    if not source.broken:
        return
    first, others = source.broken[0], len(source.broken) - 1
    if on_error == "raise" or len(source) == 0:
        more = f"; {others} more cannot be read either" if others else ""
        advice = '; remove it, or prepare_ucf101.py passes it over (in Python: on_error="skip")' if len(source) else ""
        raise VideoError(first.path, first.reason + more + advice)
    logger.warning("%s: %d videos cannot be read and are left out, first: %s", source.path, others + 1, first)


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r}")


def provenance_of(dataset: Any) -> dict[str, Any] | None:
    """`provenance` of a data set, also of a Subset (all that it is taken from) or a ConcatDataset; None: no say."""
    if isinstance(dataset, Subset):
        return provenance_of(dataset.dataset)
    if not isinstance(dataset, ConcatDataset):
        return dataset.provenance() if hasattr(dataset, "provenance") else None
    parts = [provenance_of(part) for part in dataset.datasets]
    return None if None in parts else together(parts)


def together(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of several data sets as one, with each of them once under `parts`."""
    parts = [part for provenance in provenances for part in provenance.get("parts", [provenance])]
    parts = [part for number, part in enumerate(parts) if part not in parts[:number]]
    if len(parts) == 1:
        return parts[0]
    splits = {part["split"] for part in parts}
    return {
        "source": " + ".join(dict.fromkeys(part["source"] for part in parts)),
        "split": splits.pop() if len(splits) == 1 else None,
        "fingerprint": " + ".join(part["fingerprint"] for part in parts),
        "ids": [id for part in parts for id in part["ids"]],
        "parts": parts,
    }


def overlap(trained_on: dict[str, Any] | None, dataset: Any) -> int | None:
    """How many items of a data set come from videos that a run was trained on; None where that cannot be known.

    trained_on: `provenance_of` the run's data, None for a run that did not note it. The same data is known again under
    another split, as a folder in or above the one that was trained on, and by its fingerprint when it lies elsewhere;
    copies in other formats are not.
    """
    own = provenance_of(dataset)
    if trained_on is None or own is None:
        return None
    found = [_common(part, own) for part in trained_on.get("parts", [trained_on])]
    common = set().union(*(ids for ids in found if ids is not None))
    if None in found and not common:
        return None
    return dataset.items_of(common) if hasattr(dataset, "items_of") else len(common)


def _common(trained_on: dict[str, Any], own: dict[str, Any]) -> set[str] | None:
    """The ids of `own` whose videos are in `trained_on`; None where nobody can say."""
    if UNKNOWN in (trained_on, own):
        return None
    bases = _base(trained_on["source"]), _base(own["source"])
    if trained_on["source"] == own["source"] or bases == (None, None):
        return set(trained_on["ids"]) & set(own["ids"])
    if None not in bases and os.path.commonpath(bases) in bases:
        known = {os.path.normpath(os.path.join(bases[0], id)) for id in trained_on["ids"]}
        return {id for id in own["ids"] if os.path.normpath(os.path.join(bases[1], id)) in known}
    return set(own["ids"]) if trained_on["fingerprint"] == own["fingerprint"] else None


def _base(source: str) -> str | None:
    """The folder that the ids of a source are relative to, above a part of divided data; None for generated videos."""
    if is_generated(source):
        return None
    path = os.path.abspath(source)
    is_file = os.path.isfile(path) or os.path.splitext(path)[1].lower() in FILES
    is_part = os.path.basename(path) in {name for names in NAMES.values() for name in names}
    return os.path.dirname(path) if is_file or is_part else path
