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
from torch.utils.data import Dataset

from videodata.errors import UserError, VideoError
from videodata.pixels import channels_first, normalize
from videodata.provenance import MOST_NAMED, base_of, packed_ids
from videodata.resize import INTERPOLATIONS, RESIZE_RULES, Size, as_size
from videodata.source import ClipSource, GeneratedSource, Objects, Videos, as_array, each
from videodata.splits import HELD_OUT, open_split

logger = logging.getLogger(__name__)

WINDOWS = ("random", "consecutive", "first")
DTYPES = ("float32", "uint8")


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


def spread(videos: Sequence[Any] | np.ndarray, total: int | None) -> Sequence[Any] | np.ndarray:
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
        videos: Videos,
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
        self._fingerprint: str | None = None
        self._videos, lengths = self._long_enough(videos)
        self._in_order = not draws
        if draws:
            drawn = np.random.default_rng((seed, 2)).integers(len(self._videos), size=draws)
            self._videos, lengths = as_array(self._videos)[drawn], lengths[drawn]
        self._last_item: np.ndarray | None = None  # items up to and including each video; None: one of each
        if windows == "consecutive":
            self._last_item = np.cumsum(self._windows_of(self._videos, lengths))

    def offset(self, video: int, frame: int) -> int:
        """How many frames of the video lie between the first of a clip and its frame `frame`."""
        return frame * self.stride if self.fps is None else self._offset_at(self.source.fps(video), frame)

    def _offset_at(self, stored: Fraction | None, frame: int) -> int:
        """The same for a video with so many frames per second."""
        if self.fps is None:
            return frame * self.stride
        if stored is None:
            raise UserError(f"{self.source.path}: does not say its frames per second; use a stride in place of fps")
        return math.floor(frame * stored / self.fps + Fraction(1, 2))  # the nearest in time, exactly

    def span(self, video: int) -> int:
        """Frames of the video from the first to the last of a clip, both included."""
        return self.offset(video, self.frames - 1) + 1

    def _spans(self, videos: Videos) -> np.ndarray:
        """`span` of each of the videos."""
        if self.fps is None:
            return np.broadcast_to(np.int64(self._offset_at(None, self.frames - 1) + 1), len(videos))
        rates, numbers = self.source.distinct("fps", videos)
        return np.array([self._offset_at(rate, self.frames - 1) + 1 for rate in rates], np.int64)[numbers]

    def __len__(self) -> int:
        return len(self._videos) if self._last_item is None else int(self._last_item[-1])

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
        return self.source.label(self._video(self._split_index(index)[0]))

    def labels(self) -> list[str]:
        return sorted(self.distinct_labels() - {None})

    def distinct_labels(self) -> set[str | None]:
        """`labels`, and None where a video has none."""
        return set(self.source.distinct("label", self._videos)[0])

    def stored_sizes(self) -> set[Size]:
        """The sizes (height, width) that the videos have where they lie."""
        return set(self.source.distinct("size", self._videos)[0])

    def rates(self) -> set[Fraction | None]:
        """Their frames per second; None where the source does not say."""
        return set(self.source.distinct("fps", self._videos)[0])

    def blocks(self) -> np.ndarray | None:
        """Number of the first item of each stretch that lies together, such as a tar; None where nothing does."""
        firsts = self.source.blocks()
        if firsts is None or not self._in_order:
            return None
        items = firsts if self._is_all else np.searchsorted(as_array(self._videos), firsts)
        if self._last_item is not None:
            items = np.concatenate([[0], self._last_item])[items]
        return np.unique(items[items < len(self)])

    @property
    def _is_all(self) -> bool:
        """Whether it holds every video of the source, in order."""
        return isinstance(self._videos, range) and self._videos == range(len(self.source))

    def fingerprint(self) -> str:
        """Hash of the ids, lengths and file sizes of the videos: changes when the data does."""
        if self._fingerprint is None:
            digest, known = hashlib.sha256(), self.source.digest()
            if known is None:
                for video in each(self._videos):
                    facts = (self.source.id(video), self.source.length(video), self.source.stamp(video))
                    digest.update(repr(facts).encode())
            else:  # of all that there is; then which of it, unless it is all
                digest.update(known.encode())
                if not self._is_all:
                    digest.update(as_array(self._videos).astype("<i8", copy=False))
            self._fingerprint = f"{len(self._videos)}-{digest.hexdigest()[:16]}"
        return self._fingerprint

    def provenance(self, every_id: bool = False) -> dict[str, Any]:
        """What a run that trains on this must remember: source, split, fingerprint, and ids of the videos.

        The ids are the same in every run and for every way of opening the same data: places of files relative to the
        source, or names for what has no files. Of a source of very many videos they are a few bits each
        (provenance.py), unless every_id is set. See `overlap`.
        """
        facts = {"source": self.opened, "split": self.split, "fingerprint": self.fingerprint()}
        base = base_of(self.opened)
        if base is not None:
            facts["source"] = os.path.realpath(self.opened)
        known = self.source.digest()
        if known is not None and len(self.source) > MOST_NAMED and not every_id:
            return {**facts, "ids": packed_ids(known, len(self.source), self._videos)}
        places = [(self.source.place(video), video) for video in each(self._videos)]
        ids = [
            f"{self.source.stamp(video)}/{self.source.id(video)}"
            if place is None or base is None
            else os.path.relpath(place, base).replace(os.sep, "/")
            for place, video in places
        ]
        return {**facts, "ids": ids}

    def items_of(self, ids: Collection[str], items: Sequence[int] | None = None) -> int:
        """How many items, or of these items, are cut from the videos with these ids of `provenance`."""
        own = self.provenance(every_id=True)["ids"]
        return int(sum(count for id, count in zip(own, self._counts(items), strict=True) if id in ids))

    def items_among(self, chosen: np.ndarray, items: Sequence[int] | None = None) -> int:
        """How many items are cut from those videos of the source that are marked, bool (N,)."""
        return int(self._counts(items)[chosen[as_array(self._videos)]].sum())

    def _counts(self, items: Sequence[int] | None) -> np.ndarray:
        """How many of the items, by default of all, each video has."""
        if items is not None:
            return np.bincount([self._place(item) for item in items], minlength=len(self._videos))
        return np.ones(len(self), np.int64) if self._last_item is None else np.diff(self._last_item, prepend=0)

    def _split_index(self, index: int | tuple[int, int]) -> tuple[int, int | None]:
        item, position = index if isinstance(index, tuple) else (index, None)
        item = int(item) + (len(self) if item < 0 else 0)
        if not 0 <= item < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return item, position

    def _place(self, item: int) -> int:
        """Which of the videos an item is cut from."""
        return item if self._last_item is None else int(np.searchsorted(self._last_item, item, side="right"))

    def _video(self, item: int) -> int:
        """Its number in the source."""
        return int(self._videos[self._place(item)])

    def _window(self, item: int, position: int | None) -> Window:
        place = self._place(item)
        video = int(self._videos[place])
        key = (self.seed, 0, item) if position is None else (self.seed, 1, int(position))
        draws = np.random.default_rng(key)
        start = 0
        if self.windows == "random":
            start = int(draws.integers(self.source.length(video) - self.span(video) + 1))
        elif self.windows == "consecutive":
            before = int(self._last_item[place - 1]) if place else 0
            start = self.offset(video, (item - before) * self.frames)
        return Window(video, start, self.flip and bool(draws.integers(2)))

    def _windows_of(self, videos: Videos, lengths: np.ndarray) -> np.ndarray:
        """How many windows without overlap each of the videos has."""
        spans = self._spans(videos)
        if self.fps is None:
            return (lengths - spans) // (self.frames * self.stride) + 1
        counts = np.ones(len(videos), np.int64)
        for place, video in enumerate(each(videos)):
            while self.offset(video, int(counts[place]) * self.frames) + spans[place] <= lengths[place]:
                counts[place] += 1
        return counts

    def _long_enough(self, videos: Videos) -> tuple[Videos, np.ndarray]:
        """Those of the videos that hold a clip, and their lengths."""
        lengths, spans = self.source.lengths(videos), self._spans(videos)
        enough = lengths >= spans
        need = f"{spans[0] if len(videos) else 'frames'} frames are needed for {self.frames} frames {self.stride} apart"
        if self.fps is not None:
            need = f"{self.frames} frames at {float(self.fps):g} per second are needed"
        if not enough.any():
            longest = int(lengths.max()) if len(videos) else 0
            raise VideoError(self.source.path, f"no video is long enough: {need}, the longest has {longest}")
        if enough.all():
            return videos, lengths
        logger.warning("%s: %d videos are too short and left out (%s)", self.source.path, (~enough).sum(), need)
        return as_array(videos)[enough], lengths[enough]


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
