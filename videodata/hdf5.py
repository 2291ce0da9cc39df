"""Videos in HDF5: shards read in three layouts, and written in two of them.

chunked   ours: `frames` (sum of frames, H, W, 3) in chunks of 8 frames, `offset` (videos + 1); `id`, `label`, `group`,
          `fps` (videos,) strings. 10 to 20 times faster to read than one dataset per frame.
river     RIVER, Neural SDE, MCVD: `len/<i>` = frames of video i, `<i>/<t>` = frame t (H, W, 3); other groups ignored.
videogpt  VideoGPT: `train_data` (frames, H, W, 3), `train_idx` = first frame of each video; the same for `test`.
"""

from __future__ import annotations

import bisect
import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, chain, islice
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5s

from videodata.errors import UserError, VideoError
from videodata.files import is_hidden, publish
from videodata.resize import Size
from videodata.source import ClipSource, PerProcess, by_split, frame_range

HDF5_SUFFIXES = (".hdf5", ".h5")
FORMAT = "videodata-hdf5"
CHUNK_FRAMES = 8
BLOCK = 8 * CHUNK_FRAMES  # frames that are held in memory while a video is written
CACHE_BYTES = 8 << 20  # four chunks of 320x240
ROOM_TO_CLOSE = CACHE_BYTES + (8 << 20)  # with what HDF5 keeps of its own structures


@dataclass
class Contents:
    """What one file holds: the frame count of each of its videos, and facts about them where the file has any."""

    lengths: list[int]
    facts: dict[str, list[str | None]] = field(default_factory=dict)  # "id", "label", "group", "fps"
    splits: list[str] | None = None  # the split of each video


class Layout(ABC):
    """Reads videos of one layout; holds no file."""

    @abstractmethod
    def contents(self, file: h5py.File) -> Contents:
        """The videos of an open file."""

    @abstractmethod
    def size(self, file: h5py.File, index: int) -> Size:
        """(height, width) of a video's frames."""

    @abstractmethod
    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        """The given frames of a video, uint8 (T, H, W, 3)."""


class Chunked(Layout):
    """All frames of the file in one dataset."""

    def contents(self, file: h5py.File) -> Contents:
        facts = {}
        for name in ("id", "label", "group", "fps"):
            if name in file:
                facts[name] = [text or None for text in file[name].asstr()[()]]
        return Contents(np.diff(file["offset"][()]).tolist(), facts)

    def size(self, file: h5py.File, index: int) -> Size:
        return file["frames"].shape[1:3]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        return _slice(file["frames"], int(file["offset"][index]), frames)


class River(Layout):
    """One dataset per frame, under one group per video."""

    def contents(self, file: h5py.File) -> Contents:
        # By the low-level calls: there can be 100,000 of these one-number datasets, and they are five times faster.
        group, length, lengths = file["len"].id, np.empty((), np.int64), []
        for index in range(len(file["len"])):
            h5d.open(group, b"%d" % index).read(h5s.ALL, h5s.ALL, length)
            lengths.append(int(length))
        return Contents(lengths)

    def size(self, file: h5py.File, index: int) -> Size:
        return file[f"{index}/0"].shape[:2]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        video = file[str(index)]
        return np.stack([video[str(frame)][()] for frame in frames])


class VideoGPT(Layout):
    """Two long datasets of frames, one for training and one for testing."""

    def contents(self, file: h5py.File) -> Contents:
        lengths, splits = [], []
        for split in ("train", "test"):
            if f"{split}_data" in file:
                starts = file[f"{split}_idx"][()]
                found = np.diff(np.append(starts, len(file[f"{split}_data"]))).tolist()
                lengths += found
                splits += [split] * len(found)
        return Contents(lengths, splits=splits)

    def size(self, file: h5py.File, index: int) -> Size:
        return self._locate(file, index)[0].shape[1:3]

    def read(self, file: h5py.File, index: int, frames: range) -> np.ndarray:
        data, first = self._locate(file, index)
        return _slice(data, first, frames)

    def _locate(self, file: h5py.File, index: int) -> tuple[h5py.Dataset, int]:
        train = len(file["train_idx"]) if "train_idx" in file else 0
        split, local = ("train", index) if index < train else ("test", index - train)
        return file[f"{split}_data"], int(file[f"{split}_idx"][local])


def layout_of(file: h5py.File) -> Layout:
    """The layout of an open file. Raises VideoError if it is none of the three."""
    if "frames" in file and "offset" in file:
        return Chunked()
    if "len" in file:
        return River()
    if "train_data" in file or "test_data" in file:
        return VideoGPT()
    raise VideoError(
        file.filename,
        "is no HDF5 file of videos: expected groups `len` and `0`, `1`, ..., or datasets `frames` and `offset`, "
        f"or `train_data` and `train_idx`; found {sorted(file)[:5]}",
    )


def _slice(data: h5py.Dataset, first: int, frames: range) -> np.ndarray:
    """Frames of a contiguous stretch; read whole and thinned after, because HDF5 is slow at strides."""
    return data[first + frames.start : first + frames[-1] + 1][:: frames.step]


class Hdf5Source(ClipSource):
    """Videos of all shards, numbered through in the order of the shards' names. Shards without videos are allowed."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._shards = _shards(Path(path))
        self._files = [PerProcess(open_hdf5, shard) for shard in self._shards]
        self._layouts: list[Layout] = []
        self._contents: list[Contents] = []
        for shard in self._shards:
            with open_hdf5(shard) as file:
                self._layouts.append(layout_of(file))
                self._contents.append(self._layouts[-1].contents(file))
        self._ends = list(accumulate(len(contents.lengths) for contents in self._contents))
        if self._ends[-1] == 0:
            raise VideoError(path, "holds no videos")
        if not all(isinstance(layout, Chunked) for layout in self._layouts):
            self.interpolation = "bilinear"  # as the programs do that these layouts come from

    def __len__(self) -> int:
        return self._ends[-1]

    def id(self, index: int) -> str:
        shard, local = self.locate(index)
        return self._fact("id", index) or f"{self._shards[shard].stem}/{local}"

    def label(self, index: int) -> str | None:
        return self._fact("label", index)

    def group(self, index: int) -> str:
        return self._fact("group", index) or self.id(index)

    def fps(self, index: int) -> Fraction | None:
        fps = self._fact("fps", index)
        return Fraction(fps) if fps else None

    def length(self, index: int) -> int:
        shard, local = self.locate(index)
        return self._contents[shard].lengths[local]

    def size(self, index: int) -> Size:
        shard, local = self.locate(index)
        return self._layouts[shard].size(self._files[shard].get(), local)

    def splits(self) -> dict[str, list[int]] | None:
        return by_split([name for part in self._contents for name in part.splits or [None] * len(part.lengths)])

    def place(self, index: int) -> str:
        shard, local = self.locate(index)
        return f"{self._shards[shard]}#{local}"

    def read(self, index: int, start: int = 0, count: int | None = None, step: int = 1) -> np.ndarray:
        shard, local = self.locate(index)
        where = f"{self._shards[shard]}, video {local}"
        frames = frame_range(where, self._contents[shard].lengths[local], start, count, step)
        try:
            pixels = self._layouts[shard].read(self._files[shard].get(), local, frames)
        except (OSError, KeyError, ValueError) as error:
            raise VideoError(where, f"cannot be read ({error}); prepare the data again") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise VideoError(where, f"expected frames uint8 (H, W, 3), found {pixels.dtype} {pixels.shape[1:]}")
        return pixels

    def locate(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _fact(self, name: str, index: int) -> str | None:
        shard, local = self.locate(index)
        values = self._contents[shard].facts.get(name)
        return values[local] if values else None


def open_hdf5(path: str | Path) -> h5py.File:
    """Open for reading. Raises VideoError if the file is missing, truncated or no HDF5."""
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise VideoError(path, "no such file") from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        reason = "truncated: the file is shorter than it should be" if "truncated" in reason else reason
        raise VideoError(path, f"is not a readable HDF5 file ({reason}); prepare it again") from error


def _shards(path: Path) -> list[Path]:
    if not path.exists():
        raise VideoError(path, "no such file or folder")
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in HDF5_SUFFIXES and not is_hidden(file.name))


class Hdf5Writer:
    """Appends videos to shards of at most `videos_per_shard` in a folder; use it in a `with` block.

    layout: "chunked" or "river", as described above. A shard gets its final name when it is complete; `written` counts
    the videos. Raises UserError for a folder that holds shards already.
    """

    def __init__(self, folder: str | os.PathLike, layout: str = "chunked", videos_per_shard: int = 100_000) -> None:
        if layout not in ("chunked", "river"):
            raise UserError(f'layout must be "chunked" or "river", found {layout!r}')
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._new_shard = SHARDS[layout]
        self._digits = 5 if layout == "chunked" else 4
        self._videos_per_shard, self._number, self.written = videos_per_shard, 0, 0
        self._shard: ChunkedShard | RiverShard | None = None
        complete = list(self.folder.glob("shard_*.hdf5"))
        if complete:
            raise UserError(f"{self.folder} holds {len(complete)} shards already: choose an empty folder")

    def add(
        self,
        frames: Iterable[np.ndarray],
        id: str = "",
        label: str | None = None,
        fps: Fraction | None = None,
        group: str | None = None,
    ) -> None:
        """Append one video: an array uint8 (T, H, W, 3), or an iterable of uint8 (H, W, 3). Raises UserError."""
        if self._shard is None:
            self._number += 1
            path = self.folder / f"shard_{self._number:0{self._digits}d}.hdf5"
            self._shard = self._new_shard(path)
        self._shard.add(_checked(frames, id), [id, label or "", group or "", "" if fps is None else str(fps)])
        self.written += 1
        if self._shard.videos == self._videos_per_shard:
            self._finish_shard()

    def close(self) -> None:
        """Complete the last shard."""
        if self._shard is not None:
            self._finish_shard()

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None:
            self.close()
        elif self._shard is not None:
            self._shard.discard()

    def _finish_shard(self) -> None:
        self._shard.finish()
        self._shard = None


class _Shard:
    """A shard under its temporary name."""

    def __init__(self, path: Path) -> None:
        self.path, self.videos = path, 0
        self._partial = path.with_name(path.name + ".partial")
        # Blocks of frames end inside a chunk: the cache must hold the chunk until the next block completes it.
        self.file = h5py.File(self._partial, "w", rdcc_nbytes=CACHE_BYTES)

    def add(self, frames: Iterable[np.ndarray], facts: list[str]) -> None:
        """Append a whole video, given frame by frame."""
        frames = iter(frames)
        while block := list(islice(frames, BLOCK)):
            self.write(np.stack(block))
        self.end_video(facts)

    def write(self, frames: np.ndarray) -> None:
        """Append frames (n, H, W, 3) to the video that is being written."""
        raise NotImplementedError

    def end_video(self, facts: list[str] | None) -> None:
        """Keep the video that is being written, with its id, label, group and fps; None drops it."""
        raise NotImplementedError

    def finish(self) -> None:
        self.file.close()
        publish(self._partial, self.path)

    def discard(self) -> None:
        with suppress(OSError, RuntimeError):
            self.file.close()
        self._partial.unlink(missing_ok=True)

    def _require_room(self, size: int) -> None:
        """Raise OSError while there is still room for what HDF5 holds.

        On a full disk its files cannot be closed: it crashes, or prints tracebacks that cannot be caught.
        """
        if shutil.disk_usage(self.path.parent).free < size + ROOM_TO_CLOSE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ChunkedShard(_Shard):
    """All frames in one dataset."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets, self._facts, self._end = [0], [], 0

    def write(self, frames: np.ndarray) -> None:
        self._require_room(frames.nbytes)
        data, shape = self._frames(frames.shape[1:]), frames.shape[1:]
        if shape != data.shape[1:]:
            raise UserError(f"{self.path}: all videos must have one size, {data.shape[1:]}, found {shape}")
        if self._end + len(frames) > len(data):
            data.resize(self._end + len(frames), axis=0)
        data[self._end : self._end + len(frames)] = frames
        self._end += len(frames)

    def end_video(self, facts: list[str] | None) -> None:
        if facts is None:
            self._end = self._offsets[-1]
            return
        self._offsets.append(self._end)
        self._facts.append(facts)
        self.videos += 1

    def finish(self) -> None:
        if "frames" in self.file:
            self.file["frames"].resize(self._end, axis=0)  # without what a dropped video left behind
        self.file["offset"] = np.array(self._offsets, np.int64)
        for name, values in zip(("id", "label", "group", "fps"), zip(*self._facts, strict=True), strict=True):
            self.file.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
        self.file.attrs.update(format=FORMAT, version=1, color="RGB")
        super().finish()

    def _frames(self, shape: tuple[int, ...]) -> h5py.Dataset:
        if "frames" in self.file:
            return self.file["frames"]
        return self.file.create_dataset(
            "frames",
            (0, *shape),
            np.uint8,
            maxshape=(None, *shape),
            chunks=(CHUNK_FRAMES, *shape),
        )


class RiverShard(_Shard):
    """One dataset per frame, lzf, and the empty group `videos` that readers of this layout may look for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file.create_group("len")
        self.file.create_group("videos")

    def write(self, frames: np.ndarray) -> None:
        self._require_room(frames.nbytes)
        video = self.file.require_group(str(self.videos))
        for count, frame in enumerate(frames, len(video)):
            video.create_dataset(str(count), data=frame, chunks=frame.shape, compression="lzf")

    def end_video(self, facts: list[str] | None) -> None:
        video = self.file.require_group(str(self.videos))
        if facts is None:
            del self.file[str(self.videos)]
            return
        self.file["len"].create_dataset(str(self.videos), data=np.int64(len(video)))
        self.videos += 1


SHARDS = {"chunked": ChunkedShard, "river": RiverShard}


def _checked(frames: Iterable[np.ndarray], id: str) -> Iterable[np.ndarray]:
    """The frames, each of them uint8 (H, W, 3) all of one size. Raises UserError, also if there is none."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError(f"video {id!r} has no frames")
    for frame in chain([first], frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != first.shape:
            raise UserError(
                f"video {id!r}: expected uint8 (H, W, 3) frames of one size, found {frame.dtype} {frame.shape}"
            )
        yield frame
