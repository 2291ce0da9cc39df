"""Prepared videos as tar shards in the layout of WebDataset, with their index, on this disk or at an address.

    train/shard-000000.tar     members of one key are one video: <key>.mp4 (or .avi, .webm, .npy), <key>.json with what
    train/shards.index         is known of it, <key>.cls with the number of its class, <key>.txt with its caption

A film that is wanted as it is, whole or between two key frames, is copied: neither its pictures nor its bytes change.
Any other is encoded as H.264, as `--format videos` does. A shard has its name when it is complete, and headers hold
neither times nor owners: whoever was killed and when, the bytes are the same.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videodata.errors import UserError, one_line
from videodata.files import TEMPORARY, HashingFile, has_suffix, portable_name, publish
from videodata.folder_writer import Mp4Writer
from videodata.journal import Entry, sidecar_path
from videodata.storage import divided, joined, open_storage
from videodata.stream_copy import copy_stretch
from videodata.tars.index import FRAMES, INDEX_NAME, Sample, Shard, TarIndex, write_index
from videodata.video import probe

SHARD_BYTES = 10**9  # large enough for fast sequential reading, small enough to be sent again
MEMBERS = ("videos", "npy")
AS_THEY_ARE = {".mp4", ".avi", ".webm"}  # files that readers of WebDataset know by their suffix
BLOCK = 512  # bytes of a tar


@dataclass(frozen=True)
class Packing:
    """How videos are packed. classes: in the order of their numbers, () for none. address: where shards are sent."""

    members: str = "videos"
    shard_size: int = SHARD_BYTES
    classes: tuple[str, ...] = ()
    address: str | None = None

    def described(self) -> dict:
        """What the bytes, and the place, of the result depend on."""
        sent = {} if self.address is None else {"address": self.address}
        return {"members": self.members, "shard_size": self.shard_size, "class_numbers": list(self.classes), **sent}


class Film(NamedTuple):
    """The member with the frames: a file or bytes, and what the index says about it."""

    suffix: str
    content: Path | bytes
    size: tuple[int, int]  # height, width
    fps: Fraction | None
    skipped: int = 0  # bytes before the pixels


class TarWriter(Mp4Writer):
    """Shards of `packing.shard_size` bytes, or what the video that reaches it makes of that; the journal grows by them.

    With an address, a finished shard is sent there and removed here; its index and the progress stay.
    """

    notes_each_video = False

    def __init__(self, *args: object, packing: Packing | None = None, **options: object) -> None:
        super().__init__(*args, **options)
        self._packing = packing or Packing()
        self._shard: OpenShard | None = None
        address = self._packing.address
        self._storage = None if address is None else open_storage(address)

    def __exit__(self, *exception: object) -> None:
        if self._shard is not None:
            self._shard.discard()
        super().__exit__(*exception)

    def _end_video(self, entry: Entry | None) -> None:
        frames, self._frames = self._frames, []
        if entry is None:
            return
        with self._film(entry, np.concatenate(frames)) as film:
            if self._shard is None:
                self._shard = OpenShard(self.partial / shard_name(self.number))
            self._add(entry, film, sum(map(len, frames)))
        if self._shard.size >= self._packing.shard_size:
            self._complete_shard()
            self._write_lines()

    def _add(self, entry: Entry, film: Film, frames: int) -> None:
        """All members of a video."""
        key = key_of(entry.id)
        fps = film.fps or (Fraction(entry.fps) if entry.fps else None)
        caption = self.video.caption if self.video is not None else None
        names = ("id", "label", "group", "split", "source")
        facts = {name: getattr(entry, name) for name in names} | {"caption": caption, "frames": frames}
        facts |= {"fps": None if fps is None else str(fps)}
        facts = {name: value for name, value in sorted(facts.items()) if value is not None}
        offset = self._shard.add(f"{key}{film.suffix}", film.content)
        size = self._shard.end - offset
        if entry.label in self._packing.classes:
            self._shard.add(f"{key}.cls", str(self._packing.classes.index(entry.label)).encode())
        self._shard.add(f"{key}.json", json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        if caption is not None:
            self._shard.add(f"{key}.txt", one_line(caption).encode())
        label = caption if entry.label is None else entry.label
        self._shard.samples.append(
            Sample(key, film.suffix, offset + film.skipped, size - film.skipped, frames, *film.size, fps, label,
                   entry.group, entry.split)
        )  # fmt: skip

    @contextmanager
    def _film(self, entry: Entry, frames: np.ndarray) -> Iterator[Film]:
        """The frames (T, H, W, 3) as they go into the shard."""
        size = frames.shape[1:3]
        if self._packing.members == "npy":
            header, pixels = io.BytesIO(), np.ascontiguousarray(frames)
            np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(pixels))
            fps = Fraction(entry.fps) if entry.fps else None
            yield Film(FRAMES, header.getvalue() + pixels.tobytes(), size, fps, header.tell())
            return
        original = self._as_it_is(entry, size)
        if original is not None:
            yield original
            return
        path = self.partial / f".film{TEMPORARY}.mp4"
        try:
            if not self._is_copied(path, frames):
                self._encode(path, frames, entry)
            yield Film(".mp4", path, size, probe(path).fps)
        finally:
            path.unlink(missing_ok=True)

    def _as_it_is(self, entry: Entry, size: tuple[int, int]) -> Film | None:
        """The file that the video was read from, where all of it is wanted, and nothing is wrong with it."""
        video = self.video
        if video is None or not has_suffix(video.path.name, AS_THEY_ARE) or not video.path.is_file():
            return None
        is_whole = (video.start, video.reach) == (0, None) and self.arguments["stride"] == 1
        if not is_whole or entry.status != "ok" or entry.reason is not None:
            return None
        found = probe(video.path)
        if (found.height, found.width) != size:
            return None
        return Film(video.path.suffix.lower(), video.path, size, found.fps)

    def _is_copied(self, path: Path, frames: np.ndarray) -> bool:
        """Whether `path` has become a copy of the packets that hold just these frames."""
        video = self.video
        if video is None or not video.path.is_file() or self.arguments["stride"] != 1:
            return False
        return copy_stretch(video.path, video.start, frames, path)

    def _complete_shard(self) -> None:
        """Give the shard its name, note its index, and send it where there is an address."""
        shard, self._shard = self._shard, None
        place = self.partial / shard_name(self.number)
        part = TarIndex.of(shard.finish(), shard.samples)
        if self._storage is not None:
            self._storage.write(place.name, place)
            place.unlink()
        write_index(self._part_path(self.number), [part])
        self.number += 1

    def _finish(self) -> None:
        if self._shard is not None:
            self._complete_shard()
        numbers = sorted({entry.offset for entry in self.entries if entry.sequences})
        if numbers:
            write_index(self.partial / INDEX_NAME, [self._part(number) for number in numbers])
        for number in numbers:
            self._part_path(number).unlink(missing_ok=True)

    def _deliver(self) -> None:
        if self._storage is not None:
            self._storage.write(INDEX_NAME, self.partial / INDEX_NAME)
            sidecar = sidecar_path(self.path)
            open_storage(divided(self._packing.address)[0]).write(sidecar.name, sidecar)

    def _part(self, number: int) -> TarIndex:
        """The index of a shard: its own, or after a kill at the very end, what the index of all says."""
        path = self._part_path(number)
        if path.exists():
            return TarIndex.open(path)
        whole = TarIndex.open(self.partial / INDEX_NAME)
        return next(whole.of_shard(n) for n, shard in enumerate(whole.shards) if shard.name == shard_name(number))

    def _part_path(self, number: int) -> Path:
        return self.partial / f".{shard_name(number)}.index"

    def _clean(self) -> None:
        numbers = {entry.offset for entry in self.entries if entry.sequences}
        self.number = 1 + max(numbers, default=-1)
        kept = {INDEX_NAME, *map(shard_name, numbers), *(self._part_path(number).name for number in numbers)}
        for path in self.partial.iterdir():
            if path.name not in kept:
                path.unlink()


class OpenShard:
    """A tar that is being written. Nothing in it depends on when and by whom."""

    def __init__(self, path: Path) -> None:
        self.path, self.samples = path, []
        self._temporary = path.with_name(f".{path.name}{TEMPORARY}")
        self._raw = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or discard
        self._file = HashingFile(self._raw)
        # PAX: as USTAR, but that names of any length and in any script have a place.
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.end = 0  # of the last member's bytes

    @property
    def size(self) -> int:
        return self._tar.offset

    def add(self, name: str, content: Path | bytes) -> int:
        """Append a member; gives the position of its bytes."""
        info = tarfile.TarInfo(name)  # time 0, user and group 0 without names, mode 644
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as source:
            info.size = source.seek(0, io.SEEK_END)
            source.seek(0)
            self._tar.addfile(info, source)
        offset = self._tar.offset - -(-info.size // BLOCK) * BLOCK
        self.end = offset + info.size
        return offset

    def finish(self) -> Shard:
        """Complete the shard under its name."""
        self._tar.close()
        self._raw.close()
        size = self._temporary.stat().st_size
        publish(self._temporary, self.path)
        return Shard(self.path.name, size, self._file.digest.hexdigest())

    def discard(self) -> None:
        with suppress(OSError, ValueError):
            self._raw.close()
        self._temporary.unlink(missing_ok=True)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def key_of(id: str) -> str:
    """The id as a key of WebDataset, which ends at the first dot of the last part: other dots are written as in a URL.

    So are those that would hide a folder, and a slash at the beginning.
    """
    parts = portable_name(id).split("/")
    parts = [f"%2E{part[1:]}" if part.startswith(".") else part for part in parts]
    parts[-1] = parts[-1].replace(".", "%2E")
    key = "/".join(parts)
    return f"%2F{key[1:]}" if key.startswith("/") else key


def join_parts(path: Path, folders: Sequence[Path]) -> TarIndex:
    """One index of the shards that several machines made, each in its folder beside `path`. Raises UserError."""
    if path.exists():
        TarIndex.open(path)  # or it is a file of the user
    parts = []
    for folder in folders:
        index = TarIndex.open(folder / INDEX_NAME)
        for number, shard in enumerate(index.shards):
            part = index.of_shard(number)
            part.shards = [shard_in(folder.name, shard)]
            parts.append(part)
    return write_index(path, parts)


def shard_in(folder: str, shard: Shard) -> Shard:
    return Shard(joined(folder, shard.name).replace("\\", "/"), shard.bytes, shard.sha256)


def check_packing(packing: Packing, format: str) -> None:
    """Raises UserError for what only tars can be."""
    if format != "tar" and packing != Packing():
        raise UserError("--members, --shard_size and an address as --out go with --format tar")
