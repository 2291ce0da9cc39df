"""Where shards lie: a folder of this machine, or any address `scheme://...` that fsspec knows.

A storage reads parts of files, and says by what a file is known again. What may pass is tried again a few times; what
cannot be reached, or is refused, is one line (StorageError), and the same command goes on when that is mended.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from videodata.download import RETRY_STATUS
from videodata.errors import UserError, VideoError, disk_errors, said_by
from videodata.files import write_file
from videodata.source import PerProcess

logger = logging.getLogger(__name__)
INSTALL = {  # what fsspec needs for an address
    "http": "fsspec aiohttp", "https": "fsspec aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs",
    "abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "fsspec paramiko", "ssh": "fsspec paramiko",
}  # fmt: skip
TIMEOUT = "VIDEOGEN_TIMEOUT"  # name of the setting: seconds without an answer
TRIES, FIRST_WAIT = 5, 0.5  # seconds before the second try, doubled each time: 7.5 seconds in all
SLOWEST_RATE = 1 << 18  # bytes per second; what is slower than this is taken for a server that hangs
CHUNK = 16 << 20  # bytes of a whole file that are asked for at a time
REFUSED = {401: "refused", 403: "refused", 404: "no such file", 410: "no such file"}
LOST = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR)  # the same request fails again
Result = TypeVar("Result")


class StorageError(UserError):
    """Storage that does not give what it should. No VideoError: nothing is wrong with a single video."""


class ChangedShard(StorageError):
    """A shard that is not the one that was indexed."""


class Status(NamedTuple):
    """By what a file is known again."""

    bytes: int
    modified: int | None  # nanoseconds; of local files
    etag: str | None  # or a date, as a server gives it


def is_address(path: object) -> bool:
    """Whether it is `scheme://...`, which is no path: each of its slashes counts."""
    scheme, mark, _ = str(path).partition("://")
    return bool(mark) and scheme.replace("+", "").replace("-", "").isalnum()


def joined(base: str, name: str) -> str:
    """A name below a folder or an address."""
    return f"{base.rstrip('/')}/{name}" if is_address(base) else os.path.join(base, name)


def divided(path: str) -> tuple[str, str]:
    """Folder or address, and the last part."""
    if is_address(path):
        scheme, _, rest = path.partition("://")
        folder, _, name = rest.rpartition("/")
        return f"{scheme}://{folder}", name
    folder, name = os.path.split(path)
    return folder or ".", name


def open_storage(base: str) -> Storage:
    """The storage of a folder or an address, or of what lies below it. Asks nothing yet."""
    return Remote(base) if is_address(base) else Local(base)


class Storage(ABC):
    """Files below `base`, by name. Picklable; each process has connections of its own."""

    def __init__(self, base: str) -> None:
        self.base = base

    def path(self, name: str) -> str:
        return joined(self.base, name)

    @abstractmethod
    def status(self, name: str) -> Status | None:
        """None for a file that is not there. Raises StorageError."""

    @abstractmethod
    def read(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes from `start` on. Raises StorageError, also where the file ends before."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the files that lie directly there."""

    @abstractmethod
    def write(self, name: str, file: Path) -> None:
        """Store a file of this machine, whole or not at all."""

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """A whole file, piece by piece."""
        for start in range(0, size, CHUNK):
            yield self.read(name, start, min(CHUNK, size - start))


class Local(Storage):
    """A folder."""

    def status(self, name: str) -> Status | None:
        try:
            found = os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path(name)}: cannot be opened ({said_by(error)})") from error
        return Status(found.st_size, found.st_mtime_ns, None)

    def read(self, name: str, start: int, count: int) -> bytes:
        try:
            with open(self.path(name), "rb") as file:
                file.seek(start)
                data = file.read(count)
        except OSError as error:
            raise StorageError(f"{self.path(name)}: cannot be read ({said_by(error)})") from error
        if len(data) < count:
            raise StorageError(f"{self.path(name)}: ends at byte {start + len(data)}, but more was asked for")
        return data

    def names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self.base) if entry.is_file()]
        except OSError as error:
            raise StorageError(f"{self.base}: cannot be listed ({said_by(error)})") from error

    def write(self, name: str, file: Path) -> None:
        def copy(target: Any) -> None:
            with open(file, "rb") as source:
                while block := source.read(CHUNK):
                    target.write(block)

        with disk_errors(Path(self.path(name))):
            write_file(self.path(name), copy)


class Remote(Storage):
    """An address of fsspec."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        file_system_of(base)  # says at once which package is missing
        self._system = PerProcess(file_system_of, base)  # a connection does not survive a fork

    def status(self, name: str) -> Status | None:
        try:
            found = self._ask(name, "_info", lambda system, path: system.info(path), 0, missing_is_none=True)
        except FileNotFoundError:
            return None
        known = {str(key).lower(): value for key, value in found.items()}
        etag = next((known[key] for key in ("etag", "last-modified", "lastmodified", "mtime") if known.get(key)), None)
        if not isinstance(known.get("size"), int):
            raise StorageError(f"{self.path(name)}: the server does not say how large it is")
        return Status(known["size"], None, None if etag is None else str(etag).strip('"'))

    def read(self, name: str, start: int, count: int) -> bytes:
        if not count:
            return b""
        part = {"start": start, "end": start + count}
        return self._ask(name, "_cat_file", lambda system, path: system.cat_file(path, **part), count, **part)

    def names(self) -> list[str]:
        try:
            found = self._ask("", "_ls", lambda system, path: system.ls(path, detail=False), 0, detail=False)
        except StorageError as error:
            raise StorageError(f"{error}; it cannot be listed: name the shards, as in x-{{000..999}}.tar") from error
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found})

    def write(self, name: str, file: Path) -> None:
        def put(system: Any, path: str) -> None:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)  # of file and sftp, which have folders
            system.put_file(str(file), path)

        self._ask(name, "_put_file", put, file.stat().st_size, before=(str(file),))

    def _ask(
        self, name: str, method: str, plain: Callable[[Any, str], Any], count: int, before: tuple = (),
        missing_is_none: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """Call a method of the file system, with a limit of time where it can have one; `plain` where it cannot.

        count: bytes that are to come. Raises StorageError, or FileNotFoundError where missing_is_none.
        """
        path = self.path(name) if name else self.base
        limit = timeout() + count / SLOWEST_RATE

        def attempt() -> Any:
            system = self._system.get()
            inner = system._strip_protocol(path)
            if not system.async_impl:
                answer = plain(system, inner)
            else:
                from fsspec.asyn import sync

                answer = sync(system.loop, getattr(system, method), *before, inner, timeout=limit, **options)
            if count and method == "_cat_file" and len(answer) != count:
                if len(answer) > count:
                    raise StorageError(f"{path}: the server does not send parts of files, which shards need")
                raise ConnectionError(f"{len(answer)} of {count} bytes came")
            return answer

        return tried(path, attempt, missing_is_none)


def tried(path: str, attempt: Callable[[], Result], missing_is_none: bool = False) -> Result:
    """What `attempt` gives, tried again while its failures may pass. Raises StorageError."""
    for number in itertools.count(1):
        try:
            return attempt()
        except UserError:
            raise
        except Exception as error:  # each file system raises types of its own
            met = unmasked(error)
            status = status_of(met)
            missing = status in (404, 410) or (isinstance(met, FileNotFoundError) and status is None)
            if missing and missing_is_none:
                raise FileNotFoundError(path) from error
            reason = REFUSED.get(status, "no such file" if missing else "cannot be reached")
            said = f"status {status}" if status else "no answer in time" if is_timeout(met) else said_by(met)
            if missing or is_final(met, status) or number == TRIES:
                times = f" {number} times" if number > 1 else ""
                remedy = "check it and your rights" if number == 1 else "run the same command again when it answers"
                raise StorageError(f"{path}: {reason}{times} ({said}); {remedy}") from error
            pause = FIRST_WAIT * 2 ** (number - 1)
            logger.warning("%s: %s (%s); next try in %.1f s", path, reason, said, pause)
            time.sleep(pause)
    raise AssertionError("the loop above ends")


def unmasked(error: Exception) -> BaseException:
    """What happened: fsspec calls a file of a web server missing whatever kept it from asking for it."""
    cause = error.__cause__
    is_mask = isinstance(error, FileNotFoundError) and cause is not None
    return cause if is_mask and (is_timeout(cause) or type(cause).__module__.startswith("aiohttp")) else error


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status in an error, or in the one that it was made of."""
    while error is not None:
        for name in ("status", "code"):
            if isinstance(found := getattr(error, name, None), int) and found >= 300:
                return found
        error = error.__cause__ if isinstance(error, OSError) else None  # others: aiohttp calls a cut answer a 400
    return None


def is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "Timeout" in type(error).__name__


def is_final(error: BaseException, status: int | None) -> bool:
    """Whether the same request would fail again."""
    if status is not None:
        return status not in RETRY_STATUS
    if isinstance(error, (ImportError, PermissionError, TypeError, NotImplementedError)):
        return True
    return getattr(error, "errno", None) in LOST or "redentials" in type(error).__name__


def timeout() -> float:
    """Seconds without an answer after which a server is taken for gone. Raises UserError."""
    text = os.environ.get(TIMEOUT, "60")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise UserError(f"{TIMEOUT}={text}: must be a number of seconds above 0")


def file_system_of(base: str) -> Any:
    """The file system of an address, not shared with anybody. Raises UserError where a package is missing."""
    scheme = base.partition("://")[0]
    needed = INSTALL.get(scheme, "fsspec")
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{base}: needs another package (pip install {needed})") from error
    except ValueError as error:
        raise UserError(f"{base}: fsspec knows no {scheme}://; addresses such as s3://, gs:// or https://") from error
    options = dict(kind._get_kwargs_from_urls(base))
    if scheme in ("http", "https"):
        import aiohttp

        seconds = timeout()
        limits = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        options["client_kwargs"] = {"timeout": limits}
    if scheme != "memory":  # which is one dictionary for all
        options |= {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        return kind(**options)
    except ImportError as error:
        raise UserError(f"{base}: needs another package (pip install {needed})") from error
    except Exception as error:  # wrong credentials, unknown regions: each has types of its own
        raise VideoError(base, f"cannot be opened ({said_by(error)})") from error
