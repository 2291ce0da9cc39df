"""Files on disk: complete or absent whatever happens, one process at a time, hashed, and listed in one way.

The one module for this, at the bottom of the house: it needs the standard library and `filelock`. A file is written
under a hidden temporary name in its own folder, brought to the disk, and renamed; the name is brought to the disk too,
so that neither a kill nor a power cut leaves half a file under a name that somebody trusts.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from videodata.errors import UserError, one_line

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # suffix of files that are being written; `remove_debris` knows them by it
ROOM_IN_NAME = 200  # bytes; file systems take 255, and the names of unfinished files are longer than the final ones
BLOCK = 1 << 20  # bytes
IN_USE = (5, 32)  # errors of Windows: denied, and shared with another process
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices, with any suffix
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$')
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds; a virus scanner or an indexer has a new file open for less


class Busy(UserError):
    """Another process is at work there."""


class HashingFile:
    """A write-only file that knows the SHA-256 of what was written, and the first error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def write_file(path: str | Path, content: str | bytes | Callable[[HashingFile], object]) -> str:
    """Write a text, bytes, or whatever the function `content` writes into the file; gives its SHA-256.

    Raises OSError when the disk refuses; then neither the file nor its temporary form is left.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary, open(temporary, "wb") as raw:
        file = HashingFile(raw)
        if callable(data):
            try:
                data(file)
            except RuntimeError as error:  # torch's zip writer reports a failing disk in its own words
                raise file.error or error from error
        else:
            file.write(data)
    return file.digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, for what must open a file by its name; the block's end makes it `path`."""
    path = Path(path)
    temporary = path.with_name(f".{short_name(path.name)}.{os.getpid()}{TEMPORARY}")
    with made_folder(path.parent):
        try:
            yield temporary
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, for what the block writes; what was made for nothing is removed at its end."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty, or no longer there
            for place in made:
                place.rmdir()


def short_name(name: str) -> str:
    """The name, or a hash of it where something added to it would be too long for a file system."""
    data = os.fsencode(name)
    return name if len(data) <= ROOM_IN_NAME else hashlib.sha256(data).hexdigest()[:32]


def publish(temporary: Path, path: Path) -> None:
    """Give a written file its name, over what has it now: first its bytes are on the disk, then the name."""
    with open(temporary, "r+b") as file:  # Windows brings to the disk only what is open for writing
        os.fsync(file.fileno())
    replace(temporary, path)
    sync_folder(path.parent)


def replace(source: str | Path, target: str | Path) -> None:
    """Rename a file over another one, or a folder over an empty one, with patience for Windows.

    There a file that some process has open cannot be renamed, and no folder takes the place of another.
    """
    if os.path.isdir(source):
        with suppress(OSError):  # not there, or not empty: the rename says so
            os.rmdir(target)
    for pause in PAUSES:
        try:
            return os.replace(source, target)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in IN_USE:
                raise
        time.sleep(pause)
    return os.replace(source, target)


def sync_folder(folder: str | Path) -> None:
    """Make renames in the folder survive a power failure."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder; its file system notes renames in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(path: str | Path) -> tuple[int, Path]:
    """Bytes that are free where the path is or will be, and the nearest folder above it that is there."""
    path = Path(path).absolute()
    folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return shutil.disk_usage(folder).free, folder


def require_room(
    path: str | Path, needed: float, refuse: Callable[[str], Exception], why: str, remedy: str = ""
) -> None:
    """Raise what `refuse` makes of one line when the disk of `path` has not so many bytes."""
    free, folder = free_space(path)
    if needed > free:
        raise refuse(f"{why}, but {readable_size(free)} are free at {folder}{remedy}")


def readable_size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.1f} GB"


def parse_size(text: str) -> int:
    """Bytes of "1GB", "500 MB", "64kB" or "4096". Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|k|M|G|T)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is no size such as 1GB")
    return round(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def remove_debris(folder: str | Path, name: str | None = None) -> list[str]:
    """Remove the unfinished files that a killed process left in the folder, or those of one name; gives their names.

    Only for who holds the lock of what is written there: the unfinished files of a living process look the same.
    """
    pattern = f"*{TEMPORARY}" if name is None else f".{glob.escape(short_name(name))}.*{TEMPORARY}"
    debris = [path for path in Path(folder).glob(pattern) if path.is_file()]
    for path in debris:
        path.unlink()
    return [path.name for path in debris]


def write_json(path: str | Path, value: Any, sort_keys: bool = True) -> None:
    """Write a value as indented JSON."""
    text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # \udcff is JSON for a byte of a name that is no text


def read_json(path: str | Path) -> dict | None:
    """The dictionary in a JSON file; None for a file that is absent, damaged or holds something else."""
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, or is nested deeper than the parser follows."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    return hash_file(path).hexdigest()


def hash_file(path: str | Path) -> hashlib._Hash:
    """The same as an object that more bytes can be added to."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest


@contextmanager
def lock_file(
    target: str | os.PathLike, doing: str, wait: bool = False, lock: str | os.PathLike | None = None
) -> Iterator[None]:
    """Hold the file `lock`, by default `<target>.lock`, for the length of the block: one process per target.

    The system gives the lock back when its holder dies, even by kill -9; a forked child does not hold it. `doing`
    completes the sentence "another process is ... <target>". wait: wait for another process that holds it. Raises
    Busy at once when another process holds it, UserError when the folder cannot be written, or when the file is
    somebody's: locks are empty.
    """
    from filelock import FileLock, Timeout  # here: a third of the start of the processes that decode

    path = Path(f"{target}.lock" if lock is None else lock)
    held = FileLock(path, timeout=-1 if wait else 0, thread_local=False)
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(path.parent))
            if path.is_file() and path.stat().st_size:  # first: the library empties the file that it locks
                raise UserError(
                    f"{path}: is a file of yours where a lock must be; move it away, or choose another name"
                )
            held.acquire()
        except Timeout as error:
            raise Busy(f"another process is {doing} {target}: wait for it, or choose another name") from error
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            yield
        finally:
            with suppress(OSError):  # while still held, so that nobody can hold the removed file and believe it counts;
                path.unlink(missing_ok=True)  # Windows refuses, and its lock removes the file itself
            held.release()


@contextmanager
def sole_path(path: str | Path, doing: str = "writing") -> Iterator[Path]:
    """`atomic_path` for what is large: one process at a time, and what a killed one left is removed first.

    Raises UserError when another process writes there.
    """
    path = Path(path)
    with lock_file(path, doing):
        remove_debris(path.parent, path.name)
        with atomic_path(path) as temporary:
            yield temporary


def user_cache() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videogen" / "index"


def environment() -> dict[str, str]:
    """The environment of a child process that runs a module of the project by its name, from any folder."""
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


FILE, FOLDER = "file", "folder"
Unreadable = dict[Path, str]  # what is wrong with a file or folder that a listing had to pass over


def files_in_folder(
    root: str | Path,
    suffixes: Collection[str],
    *,
    deep: bool = True,
    wanted: str = "",
    unreadable: Unreadable | None = None,
) -> list[Path]:
    """The files with one of the suffixes in a folder and, if deep, below it, in natural order; a file gives itself.

    Hidden files and folders are passed over, links are followed. wanted: what is looked for ("videos"); all other files
    are then counted in one warning. unreadable: takes what hides files or is none, with the reason: folders that cannot
    be opened, links to nothing, pipes; None: the first of them raises UserError, as a missing `root` always does.
    """
    root = Path(root)
    if root.is_file():
        return [root] if has_suffix(root.name, suffixes) else []
    found = scan_files(root, suffixes, deep=deep, wanted=wanted, unreadable=unreadable)
    return in_order(root, [Path(folder, name) for folder, name in found])


def in_order(root: Path, files: Iterable[Path]) -> list[Path]:
    """Files below a folder in natural order."""
    return sorted(files, key=lambda file: natural_key(file.relative_to(root)))


def scan_files(
    root: str | Path,
    suffixes: Collection[str],
    *,
    deep: bool = True,
    wanted: str = "",
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[str, str]]:
    """(folder, name) of the files of `files_in_folder` as they are found: there may be millions of frames."""
    others = Counter()
    for folder, kinds in walk(root, deep=deep, unreadable=unreadable):
        for name, kind in kinds.items():
            ending = os.path.splitext(name)[1]
            if kind == FILE and has_suffix(name, suffixes):
                yield folder, name
            # a link to nothing that has no suffix may have led to a folder of such files
            elif kind not in (FILE, FOLDER) and (has_suffix(name, suffixes) or (deep and not ending)):
                _pass_over(os.path.join(folder, name), kind, unreadable)
            elif kind != FOLDER:
                others[ending or name] += 1
    if others and wanted:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        logger.warning("%s: %d files that are not %s are left out (%s)", root, others.total(), wanted, kinds)


def walk(
    root: str | Path, *, deep: bool = True, unreadable: Unreadable | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each folder, and what its visible names are: FILE, FOLDER, or why they are neither. Links are followed once."""
    waiting, seen = [os.fspath(root)], set()
    while waiting:
        folder = waiting.pop()
        try:
            status, kinds = os.stat(folder), _kinds(folder)
        except OSError as error:
            _pass_over(folder, f"cannot be opened ({error.strerror})", unreadable if seen else None)
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above, or a second one
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, kinds
        if deep:
            waiting += [os.path.join(folder, name) for name, kind in kinds.items() if kind == FOLDER]


def _kinds(folder: str) -> dict[str, str]:
    with os.scandir(folder) as entries:
        return {entry.name: _kind(entry) for entry in entries if not is_hidden(entry.name)}


def _kind(entry: os.DirEntry) -> str:
    """Looks at the file itself only where it is a link."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    return "is a link to nothing" if entry.is_symlink() else "is no plain file"


def _pass_over(path: str, reason: str, unreadable: Unreadable | None) -> None:
    if unreadable is None:
        raise UserError(f"{one_line(path)}: {reason}")
    unreadable[Path(path)] = reason


def holds_files(root: str | Path, suffixes: Collection[str], *, deep: bool = True) -> bool:
    """Whether there is such a file, or what should be one; the first one ends the search."""
    unreadable: Unreadable = {}
    found = any(True for _ in scan_files(root, suffixes, deep=deep, unreadable=unreadable))
    return found or any(has_suffix(path.name, suffixes) for path in unreadable)


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a name ends in one of the suffixes, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in suffixes


def portable_name(name: str) -> str:
    """A path with / between its parts that every system can have, so that a folder made here can be copied there.

    What Windows refuses (`aux`, `12:30`, a dot at the end) is written as in a URL: `%61ux`, `12%3A30`, `end%2E`.
    """
    parts = []
    for part in name.split("/"):
        part = FORBIDDEN.sub(lambda found: f"%{ord(found[0]):02X}", part)
        parts.append(f"%{ord(part[0]):02X}{part[1:]}" if RESERVED.fullmatch(part) else part)
    return "/".join(parts)


def is_hidden(name: str) -> bool:
    """Names that belong to the system: `.index.json`, and the `._x.png` that some file systems add to each file."""
    return name.startswith(".")


def natural_key(name: str | PurePath) -> tuple:
    """Sort key that puts frame 2 before frame 10.

    Runs of digits compare as numbers, folder by folder; ties are broken by the name itself.
    """
    text = PurePath(name).as_posix()
    parts = [
        tuple((0, int(run), "") if run.isdecimal() else (1, 0, run.lower()) for run in re.findall(r"\d+|\D+", part))
        for part in text.split("/")
    ]
    return tuple(parts), text
