"""From tar shards to their index: `scripts/prepare_data.py index SHARDS`.

Members with one key are a sample (WebDataset's rule: the key of `a/b.c.mp4` is `a/b`, its suffix `c.mp4`): a video or
an array of frames, and what `.cls`, `.txt` and `.json` beside it say. Several processes take the shards one by one.
The index of each is on the disk when it is done, so that a kill costs the shards that were being read; those that are
as they were are not read again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from videodata.errors import UserError, VideoError, disk_errors, said_by
from videodata.files import has_suffix, is_hidden, lock_file, natural_key, parse_json, sha256_of, user_cache
from videodata.npy import check_layout
from videodata.prepare import available_cores
from videodata.source import stored_rate
from videodata.storage import Local, Storage, StorageError, divided, is_address, open_storage
from videodata.stretch import Stretch
from videodata.tars.index import FRAMES, INDEX_NAME, Sample, Shard, TarIndex, write_index
from videodata.tars.names import ShardList
from videodata.tars.source import open_index
from videodata.video import VIDEO_SUFFIXES, count_frames, probe
from videodata.video_folder import parse_name

NAMED = ".mp4, .mkv, .webm, .avi"  # among others
LONGEST_TEXT = 1 << 20  # bytes of a .txt, .cls or .json
SAID = 20  # skipped samples that are named
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
DAMAGE = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, MemoryError)


@dataclass
class Summary:
    """What `index_shards` did."""

    index: str
    shards: int
    samples: int
    bad: int
    read: int  # shards that were read in this run
    reasons: list[str]

    def lines(self) -> list[str]:
        """For people."""
        more = [f"  and {self.bad - SAID} more"] if len(self.reasons) >= SAID and self.bad > SAID else []
        shards = f"{self.shards} shards ({self.read} read now)"
        return [
            f"{self.index}: {shards}, {self.samples} videos, {self.bad} unreadable",
            *(f"  skipped {reason}" for reason in self.reasons[:SAID]),
            *more,
        ]


def index_shards(
    path: str | os.PathLike,
    out: str | None = None,
    *,
    workers: int = 0,
    restart: bool = False,
    max_bad_fraction: float = 0.5,
) -> Summary:
    """Write the index of the shards that `path` names (tars/names.py) beside them, or to `out`, and say what it holds.

    Shards that the index has already stay in it, and are read again where they changed. restart: read all of them.
    workers: processes; 0: one per core. Raises UserError for shards that cannot be read, before the index is written,
    and after it, when more than max_bad_fraction of the samples cannot be read.
    """
    shards = ShardList.parse(str(path))
    if has_suffix(str(path), {".index"}):  # again those that it holds, wherever they lie
        opened = open_index(shards)
        shards.base, shards.names = opened.base or shards.base, [shard.name for shard in opened.shards]
    storage = open_storage(shards.base)
    names = shards.names
    if names is None:
        names = [name for name in storage.names() if has_suffix(name, {".tar"}) and not is_hidden(name)]
        if not names:
            raise VideoError(shards.base, "holds no tar shards; name them, as in x-{000000..000999}.tar")
    names = sorted(dict.fromkeys(names), key=natural_key)
    target = out or shards.index
    base = shards.base if divided(target)[0] != shards.base.rstrip("/") else None
    work = _work_folder(target)
    with lock_file(work, "indexing to"):
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        old = None if restart else _old_index(target, work)
        results = _scan_all(shards.base, names, work, old, workers or available_cores(), restart)
        parts = [TarIndex.open(work / part_name(name)) for name in names]
        kept, again = [], set(names)
        if old is not None and shards.names is not None:  # else the folder has the others no longer
            kept = [old.of_shard(n) for n, shard in enumerate(old.shards) if shard.name not in again]
        samples, bad = sum(map(len, parts)), sum(part.shards[0].skipped for part in parts)
        holds_any = bool(samples + bad + sum(map(len, kept)))
        if holds_any:
            _publish([*kept, *parts], target, base, work)
        del old, kept, parts  # Windows removes only what is not mapped
        shutil.rmtree(work)
    if not holds_any:
        raise VideoError(path, f"its tar shards hold no videos, as {NAMED} or .npy; no index was written")
    reasons = [reason for result in results for reason in result.reasons]
    summary = Summary(target, len(names), samples, bad, sum(result.was_read for result in results), reasons)
    if bad > max_bad_fraction * (samples + bad):
        first = f"; the first is {reasons[0]}" if reasons else ""
        raise UserError(
            f"{target}: complete, but {bad} of {samples + bad} videos could not be read, more than "
            f"--max_bad_fraction {max_bad_fraction:g} allows{first}"
        )
    return summary


class Result(NamedTuple):
    """What became of a shard."""

    error: str | None
    reasons: list[str]  # of samples that were skipped in this run
    was_read: bool


def _scan_all(
    base: str, names: Sequence[str], work: Path, old: TarIndex | None, workers: int, restart: bool
) -> list[Result]:
    """The index of each shard as a file of `work`."""
    numbers = {shard.name: number for number, shard in enumerate(old.shards)} if old else {}
    known = [(old.path, numbers[name]) if name in numbers else None for name in names]
    tasks = [(base, name, work / part_name(name), part, restart) for name, part in zip(names, known, strict=True)]
    workers = min(workers, len(names))
    bar = {"total": len(names), "unit": "shard", "leave": False, "disable": None}
    if workers == 1:
        results = list(tqdm(map(_scan, tasks), **bar))
    else:
        context = multiprocessing.get_context("spawn")  # threads of PyAV and fsspec do not survive a fork
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            try:
                results = list(tqdm(pool.map(_scan, tasks), **bar))
            except BrokenProcessPool as error:
                raise UserError(f"{base}: a process that read shards died, perhaps for lack of memory") from error
            finally:
                pool.shutdown(cancel_futures=True)
    failed = [result.error for result in results if result.error is not None]
    if failed:
        more = f" ({len(failed)} of {len(names)} shards cannot be indexed)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}; what is indexed so far is kept for the next run")
    return results


def _scan(task: tuple[str, str, Path, tuple[str, int] | None, bool]) -> Result:
    """Bring the index of a shard to its place, from what is known of it where it is as it was."""
    base, name, place, known, restart = task
    try:
        storage = open_storage(base)
        part = None
        if not restart and place.exists():
            part = _unchanged(storage, name, TarIndex.open(place))
        if part is None and known is not None:
            part = _unchanged(storage, name, _opened(known[0]).of_shard(known[1]))
        if part is not None:
            write_index(place, [part])
            return Result(None, [], False)
        part, reasons = scan_shard(storage, name, place.parent)
        write_index(place, [part])
        return Result(None, reasons, True)
    except UserError as error:
        return Result(str(error), [], False)


_opened = lru_cache(1)(TarIndex.open)  # a process asks for many shards of one index


def _unchanged(storage: Storage, name: str, known: TarIndex) -> TarIndex | None:
    """What is known of a shard that is as it was; None for another one."""
    if known.shards[0].name != name:
        return None
    shard, found = known.shards[0], storage.status(name)
    if found is None or found.bytes != shard.bytes:
        return None
    if (found.modified, found.etag) == (shard.modified, shard.etag):
        return known if found.modified or found.etag else None
    if isinstance(storage, Local) and sha256_of(storage.path(name)) == shard.sha256:  # a copy, with another date
        shard = replace(shard, modified=found.modified, etag=None)
        return TarIndex(known.path, [shard], known.columns, known.base, known.ids)
    return None


def scan_shard(storage: Storage, name: str, scratch: Path) -> tuple[TarIndex, list[str]]:
    """The index of a shard, and why samples of it were skipped. scratch: a folder that one from a server is brought to.

    Raises UserError for a shard that cannot be used.
    """
    before = storage.status(name)
    if before is None:
        raise StorageError(f"{storage.path(name)}: no such file")
    with _on_this_machine(storage, name, before.bytes, scratch) as (place, digest):
        samples, reasons = read_shard(place, storage.path(name))
    if storage.status(name) != before:
        raise StorageError(f"{storage.path(name)}: changes while it is read; wait until it is written")
    shard = Shard(name, before.bytes, digest, before.modified, before.etag, skipped=len(reasons))
    return TarIndex.of(shard, samples), reasons


@contextmanager
def _on_this_machine(storage: Storage, name: str, size: int, scratch: Path) -> Iterator[tuple[Path, str]]:
    """A shard as a file of this machine for the length of the block, and its SHA-256."""
    if isinstance(storage, Local):
        try:
            place = Path(storage.path(name))
            yield place, sha256_of(place)
        except OSError as error:
            raise StorageError(f"{storage.path(name)}: cannot be read ({said_by(error)})") from error
        return
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        place = Path(folder, "shard.tar")
        with disk_errors(place), open(place, "wb") as file:
            for piece in storage.chunks(name, size):
                file.write(piece)
                digest.update(piece)
        yield place, digest.hexdigest()


def read_shard(place: Path, shown: str) -> tuple[list[Sample], list[str]]:
    """The samples of a tar, and what is wrong with those that are left out. shown: how messages call it."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with open(place, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for info in opened:
                    _take(members, info, shown)
                file.seek(opened.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if end.count(0) < tarfile.BLOCKSIZE:  # Python takes a damaged member for the end
                    raise tarfile.ReadError("it has no end")
        except DAMAGE as error:
            file.seek(0)
            if file.read(6).startswith(COMPRESSED):
                raise VideoError(shown, "is compressed, which hides where things are; unpack it to a .tar") from error
            raise VideoError(shown, f"is no whole tar ({said_by(error)}): damaged, or cut off") from error
        samples, reasons = [], []
        for key, own in members.items():
            try:
                samples.append(_examine(file, key, own, shown))
            except VideoError as error:
                reasons.append(f"{shown}#{key}: {error.reason}")
    return samples, reasons


def _take(members: dict[str, dict[str, tarfile.TarInfo]], info: tarfile.TarInfo, shown: str) -> None:
    """Put a member to those of its key. Links, devices and folders are no members."""
    parts = info.name.split("/")
    if info.name.startswith("/") or ".." in parts or "\\" in info.name:
        raise VideoError(shown, f"refused: member {info.name!r} would be written outside its folder")
    if not info.isreg() or info.issparse() or any(is_hidden(part) for part in parts if part != "."):
        return
    folder, _, name = "/".join(part for part in parts if part != ".").rpartition("/")
    stem, _, suffix = name.partition(".")
    own = members.setdefault(f"{folder}/{stem}" if folder else stem, {})
    if suffix.lower() in own:
        raise VideoError(shown, f"refused: two members are called {info.name!r}")
    own[suffix.lower()] = info


def _examine(file: BinaryIO, key: str, own: dict[str, tarfile.TarInfo], shown: str) -> Sample:
    """What the members of a key say. Raises VideoError for a sample that cannot be read."""
    name = f"{shown}#{key}"
    suffix = _film_of(own, name)
    info, kind = own[suffix], os.path.splitext(f"x.{suffix}")[1]
    about = _about(file, own, name)
    parsed = parse_name(key)
    label = about.pop("label") or (parsed.label if parsed else key.rpartition("/")[0].rpartition("/")[2] or None)
    about |= {"label": label, "group": about["group"] or (parsed.group if parsed else None)}
    if kind == FRAMES:
        offset, shape = _array(file, info, name)
        size = info.offset_data + info.size - offset
        return Sample(key, kind, offset, size, *shape, **about)
    with _stretch(file, info, f"{name}{kind}") as film:
        try:
            found = probe(film)
            about["fps"] = found.fps
            shape = count_frames(film), found.height, found.width
            return Sample(key, kind, info.offset_data, info.size, *shape, **about)
        except VideoError as error:
            raise VideoError(name, error.reason) from error


def _film_of(own: dict[str, tarfile.TarInfo], name: str) -> str:
    """The suffix of the member with the frames: a video before an array, which may hold something else beside one."""
    for choice in (VIDEO_SUFFIXES, {FRAMES}):
        found = [suffix for suffix in own if f".{suffix}" in choice]
        found = found or [suffix for suffix in own if has_suffix(f"x.{suffix}", choice)]
        if len(found) > 1:
            raise VideoError(name, f"has several videos ({', '.join(found)})")
        if found:
            return found[0]
    raise VideoError(name, f"has no video among its members ({', '.join(own)})")


def _about(file: BinaryIO, own: dict[str, tarfile.TarInfo], name: str) -> dict:
    """label, group, split and fps by the members beside a video; a class comes before a caption."""
    facts = {}
    if "json" in own:
        try:
            facts = parse_json(_text(file, own["json"], name))
        except ValueError as error:
            raise VideoError(name, f"its .json is damaged ({said_by(error)})") from error
        facts = facts if isinstance(facts, dict) else {}
    named = facts.get("label")  # before .cls, which may be only the number of the class
    texts = [named] if isinstance(named, str) else []
    texts += [_text(file, own[suffix], name).strip() for suffix in ("cls", "txt") if suffix in own]
    texts += [str(facts[word]) for word in ("label", "caption", "text") if isinstance(facts.get(word), (str, int))]
    group, split = (facts.get(word) if isinstance(facts.get(word), str) else None for word in ("group", "split"))
    fps = facts.get("fps")
    try:
        fps = stored_rate(fps) if isinstance(fps, (int, float, str)) else None
    except ValueError as error:
        raise VideoError(name, f"its .json has an fps that cannot be: {error}") from error
    fps = fps if fps and fps > 0 else None
    return {"label": next(filter(None, texts), None), "group": group, "split": split, "fps": fps}


def _text(file: BinaryIO, info: tarfile.TarInfo, name: str) -> str:
    if info.size > LONGEST_TEXT:
        raise VideoError(name, f"{info.name} is too long for a text ({info.size} bytes)")
    file.seek(info.offset_data)
    return file.read(info.size).decode("utf-8", "replace")


def _array(file: BinaryIO, info: tarfile.TarInfo, name: str) -> tuple[int, tuple[int, int, int]]:
    """Where the pixels of a member in .npy begin, and its frames, height and width."""
    file.seek(info.offset_data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, in_columns, dtype = read(file)
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError, OverflowError) as error:
        raise VideoError(name, f"its .npy is damaged ({said_by(error)})") from error
    offset = file.tell()
    if dtype.hasobject or in_columns or len(shape) != 4:
        raise VideoError(name, f"its .npy is no uint8 (T, H, W, 3) in C order, but {dtype} {shape}")
    if any(type(side) is not int or side < 1 for side in shape):  # numpy takes True for a number
        raise VideoError(name, f"its .npy has no frames or no pixels, but the shape {shape}")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != info.offset_data + info.size - offset:
        raise VideoError(name, "its .npy is shorter or longer than its header says")
    check_layout(name, np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * 4))
    return offset, shape[:3]


def _stretch(file: BinaryIO, info: tarfile.TarInfo, name: str) -> Stretch:
    def read(start: int, count: int) -> bytes:
        file.seek(info.offset_data + start)
        return file.read(count)

    return Stretch(name, info.size, read)


def part_name(name: str) -> str:
    """The file with the index of one shard."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.index"


def _work_folder(target: str) -> Path:
    """Where the indexes of single shards gather: beside the index, or in the user's folder for one on a server."""
    if is_address(target):
        return user_cache() / f"{hashlib.sha256(target.encode()).hexdigest()[:16]}.partial"
    return Path(f"{target}.partial")


def _old_index(target: str, work: Path) -> TarIndex | None:
    """The index that is there, mapped; None for none."""
    if not is_address(target):
        return TarIndex.open(target) if os.path.exists(target) else None
    folder, name = divided(target)
    storage = open_storage(folder)
    status = storage.status(name)
    if status is None:
        return None
    with _on_this_machine(storage, name, status.bytes, work) as (place, _):
        place.replace(work / "old.index")
    return TarIndex.open(work / "old.index")


def _publish(parts: Sequence[TarIndex], target: str, base: str | None, work: Path) -> None:
    """The index of all, at its place."""
    if not is_address(target):
        if base is not None and not is_address(base):
            base = os.path.abspath(base)
        write_index(target, parts, base)
        return
    folder, name = divided(target)
    write_index(work / INDEX_NAME, parts, base)
    open_storage(folder).write(name, work / INDEX_NAME)


def _end_with_parent() -> None:
    """In a process of the pool: no longer than the one that started it, which may have been killed."""

    def watch() -> None:
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
