"""Whole shards on a disk of this machine, so that the second epoch asks no server: bounded, shared by many processes.

    VIDEOGEN_CACHE=/nvme/shards VIDEOGEN_CACHE_SIZE=200GB python main.py --npy_file "s3://bucket/x-{000..999}.tar"

A shard in the folder is whole and has the digest of the index, or it is not there. The first process that needs one
fetches it in a thread of its own, and everybody reads single samples from the storage until it is there. When the room
is used up, what was not used for longest goes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from videodata.errors import UserError, disk_errors
from videodata.files import TEMPORARY, Busy, atomic_path, lock_file, readable_size, remove_debris
from videodata.storage import ChangedShard, Storage
from videodata.tars.index import Shard

logger = logging.getLogger(__name__)
FOLDER, SIZE = "VIDEOGEN_CACHE", "VIDEOGEN_CACHE_SIZE"  # names of the settings
DEFAULT_SIZE = "50GB"
UNITS = {"": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
PAUSE = 60.0  # seconds until a disk that was full is tried again


class ShardCache:
    """A folder of shards, at most `size` bytes of them. Each process has one for itself; they share the folder."""

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder, self.size = Path(folder), size
        self._fetching: threading.Thread | None = None
        self._refused: dict[str, float] = {}  # shards that cannot be had, and since when
        self._error: UserError | None = None

    def path(self, storage: Storage, shard: Shard, wait: bool = False) -> Path | None:
        """The shard, when it is here; else None, and it is on its way where that can be.

        wait: come back when it is here or cannot be had. Raises ChangedShard for one that is another than the
        index describes; a disk that is full is a warning.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        place = self.folder / name_of(shard)
        with suppress(OSError):
            os.utime(place)  # it was used now
            return place
        if self._fetching is not None and self._fetching.is_alive():
            if not wait:
                return None
            self._fetching.join()
        if time.monotonic() < self._refused.get(place.name, 0.0):
            return None
        self._fetching = threading.Thread(target=self._fetch, args=(storage, shard, place), daemon=True)
        self._fetching.start()
        if wait:
            self._fetching.join()
            return self.path(storage, shard)
        return None

    def _fetch(self, storage: Storage, shard: Shard, place: Path) -> None:
        try:
            with lock_file(place, "fetching"):
                if place.exists():
                    return
                remove_debris(self.folder, place.name)
                with disk_errors(place), atomic_path(place) as temporary:
                    if not self._reserve(temporary, shard.bytes):
                        self._refuse(place, f"{shard.name} has no room in it ({readable_size(self.size)} in all)")
                        return
                    fetch(storage, shard, temporary)
        except ChangedShard as error:  # what else is wrong with the storage shows where it is asked for a sample
            self._error = error
            self._refused[place.name] = time.monotonic() + PAUSE
        except Busy:
            return
        except UserError as error:
            self._refuse(place, str(error))

    def _refuse(self, place: Path, reason: str) -> None:
        logger.warning("%s=%s: %s; its samples are read from the storage", FOLDER, self.folder, reason)
        self._refused[place.name] = time.monotonic() + PAUSE

    def _reserve(self, temporary: Path, count: int) -> bool:
        """Make room, and take it with a file of that size. What other processes are fetching counts as if it were here.

        False: there is no room, even without all that nobody needs.
        """
        with lock_file(self.folder / "cache", "making room in", wait=True):
            self._clear_debris()
            files = [path for path in self.folder.iterdir() if path.suffix in (".tar", TEMPORARY)]
            known = {path: path.stat() for path in files if path.is_file()}
            excess = sum(status.st_size for status in known.values()) + count - self.size
            whole = sorted((path for path in known if path.suffix == ".tar"), key=lambda path: known[path].st_mtime_ns)
            if excess > sum(known[path].st_size for path in whole):
                return False
            for path in whole:
                if excess <= 0:
                    break
                with suppress(OSError):  # Windows removes nothing that is open
                    path.unlink()
                    excess -= known[path].st_size
            if excess > 0:
                return False
            with open(temporary, "wb") as file:
                file.truncate(count)
            return True

    def _clear_debris(self) -> None:
        """Remove what processes left that were killed while they fetched: nobody holds the lock of its name."""
        for debris in self.folder.glob(f".*{TEMPORARY}"):
            if owner := re.fullmatch(rf"\.(.+)\.\d+{re.escape(TEMPORARY)}", debris.name):
                with suppress(Busy, OSError), lock_file(self.folder / owner[1], "fetching"):
                    debris.unlink()


def name_of(shard: Shard) -> str:
    """What a shard is called in the cache: another content, another name."""
    return hashlib.sha256(f"{shard.sha256} {shard.bytes}".encode()).hexdigest()[:32] + ".tar"


def fetch(storage: Storage, shard: Shard, place: Path) -> None:
    """Write a shard to a file. Raises ChangedShard for one that is not what the index describes."""
    digest = hashlib.sha256()
    with open(place, "r+b" if place.exists() else "wb") as file:
        for piece in storage.chunks(shard.name, shard.bytes):
            file.write(piece)
            digest.update(piece)
    if digest.hexdigest() != shard.sha256:
        raise changed(storage, shard, "its SHA-256 is another one")


def changed(storage: Storage, shard: Shard, how: str) -> ChangedShard:
    """The error of a shard that is not the one that was indexed."""
    return ChangedShard(
        f"{storage.path(shard.name)}: changed since it was indexed ({how}); scripts/prepare_data.py index notes "
        "what it is now, or put the old one back"
    )


def cache_from_environment() -> ShardCache | None:
    """The cache that the settings name; None without one. Raises UserError."""
    folder, text = os.environ.get(FOLDER), os.environ.get(SIZE, DEFAULT_SIZE)
    if not folder:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?B?)", text)
    unit = found and (found[2] if found[2] in UNITS else f"{found[2]}B" if f"{found[2]}B" in UNITS else None)
    if unit is None or float(found[1]) == 0:
        raise UserError(f"{SIZE}={text}: must be a size such as 50GB")
    return ShardCache(folder, int(float(found[1]) * UNITS[unit]))
