"""Extract zip, tar and rar archives that come from anywhere: checked first, resumable, complete or absent.

First the listing: nothing outside the folder, no links, no devices, no bombs. Then the members that are missing, each
of them verified. Python reads zip and tar. For rar, rarfile lists the members, and a program from PATH (or unrar2-cffi)
unpacks them whole; no one free tool reads every kind, so the next is tried for the members that are still missing.
unrar2-cffi can hang, so it too has a process of its own: `python -m videodata.archive ARCHIVE FOLDER`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import lzma
import os
import posixpath
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from tqdm import tqdm

from videodata.errors import UserError, said_by
from videodata.files import environment, lock_file, readable_size, require_room
from videodata.files import replace as rename

if TYPE_CHECKING:
    import rarfile

logger = logging.getLogger(__name__)
# What Python's modules raise about a damaged archive; the last line is of names that are no text and numbers too large.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError,
    ValueError, ArithmeticError, LookupError, TypeError, MemoryError, struct.error,
)  # fmt: skip
BOMB_RATIO = 100  # unpacked bytes per packed byte; videos hardly shrink at all
BOMB_FLOOR = 16 << 20  # archives that unpack to less than this are never called a bomb
MOST_MEMBERS = 2_000_000
WRITING = ".unfinished"  # folder in `<folder>.partial`, of the member that is being written; it tells that it is ours
# None of them asks a question. unrar and bsdtar leave existing files alone; unar, told so, skips whole folders.
TOOLS = {
    "unrar": lambda archive, folder: ["unrar", "x", "-o-", "-y", "-p-", "-inul", archive, folder + os.sep],
    "unar": lambda archive, folder: [
        "unar", "-quiet", "-no-directory", "-force-overwrite", "-output-directory", folder, archive
    ],
    "bsdtar": lambda archive, folder: ["bsdtar", "-x", "-k", "-f", archive, "-C", folder],
}  # fmt: skip
CFFI = "unrar2-cffi"
RAR_3 = 29  # version of the program that a member needs, as members of version 3 say
NO_END = "%s: has no end, as if it was cut off or damaged between two members: some may be missing"
LEAST_SECONDS = 60
SLOWEST_RATE = 1 << 20  # bytes per second; a tool that is slower than this hangs
INSTALL = "install one (pip install unrar2-cffi; on Debian and Ubuntu: apt install unar libarchive-tools)"


class ArchiveError(UserError):
    """An archive that cannot or must not be extracted."""

    def __init__(self, archive: object, reason: str) -> None:
        super().__init__(f"{archive}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """One entry of an archive, as its listing describes it."""

    name: str  # with / between the parts
    size: int
    kind: str  # "file", "folder", "link" or "other"
    crc32: int | None = None
    target: str | None = None  # of a link; of a file: the member that it is a copy of
    stored: bool = False  # without compression, in a rar


def extract(archive: str | os.PathLike, folder: str | os.PathLike, *, hint: str = "") -> Path:
    """Extract `archive` to the new folder `folder` and return it; an existing folder is returned as it is.

    Members go to `<folder>.partial` first; a run that was interrupted continues with the missing ones, and a folder of
    that name in which none was at work is refused. Every file is checked (size, and CRC-32 where the archive has one)
    before the folder gets its name. hint: other source of the same data, for the line that says that no rar extractor
    is installed. Raises ArchiveError or UserError.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        return folder
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    unfinished = folder.with_name(folder.name + ".partial")
    with lock_file(folder, "extracting to"):
        _take(unfinished)
        try:
            _extractor(archive)(archive, unfinished, hint)
        except (ArchiveError, *DAMAGE, OSError) as error:
            reason = error.reason if isinstance(error, ArchiveError) else f"cannot be extracted ({said_by(error)})"
            if _holds_members(unfinished):
                reason += "; what is extracted so far is kept for the next run"
            else:
                shutil.rmtree(unfinished)
            raise ArchiveError(archive, reason) from error
        shutil.rmtree(unfinished / WRITING, ignore_errors=True)
        rename(unfinished, folder)
    return folder


def _take(unfinished: Path) -> None:
    """Make the folder that grows, or go on with one. Raises UserError where there is something else."""
    ours = (unfinished / WRITING).is_dir()
    if os.path.lexists(unfinished) and not ours and not (unfinished.is_dir() and not any(unfinished.iterdir())):
        raise UserError(f"{unfinished}: is there already, and no extraction was at work in it; move it away")
    shutil.rmtree(unfinished / WRITING, ignore_errors=True)  # with what a kill left half-written
    (unfinished / WRITING).mkdir(parents=True)


def _holds_members(unfinished: Path) -> bool:
    walk = os.walk(unfinished)
    return any(files and Path(folder) != unfinished / WRITING for folder, _, files in walk)


def _extractor(archive: Path):
    with open(archive, "rb") as file:
        start = file.read(8)
    if start.startswith(b"Rar!\x1a\x07"):
        return extract_rar
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _extract_zip
    with contextlib.suppress(*DAMAGE, OSError):
        tarfile.open(archive).close()
        return _extract_tar
    raise ArchiveError(archive, "is no zip, tar or rar archive")


def safe_members(members: Iterable[Member], archive: Path, packed_bytes: int) -> list[Member]:
    """The files and folders to write, names normalised; links inside the folder are left out with a warning.

    Raises ArchiveError for a member that would land outside the folder, a link that leaves it, a device, a path that
    leads through a file or link, two files with one name (case ignored), or a total size that no video archive has.
    """
    kept: list[Member] = []
    kinds: dict[str, str] = {}
    links, total = 0, 0
    for count, member in enumerate(members):
        total += member.size
        if count >= MOST_MEMBERS or total > max(BOMB_FLOOR, BOMB_RATIO * packed_bytes):
            raise ArchiveError(
                archive, f"refused: unpacks {packed_bytes} bytes to {total} or more, as archive bombs do"
            )
        name = _normal_name(member, archive)
        if name == ".":
            continue
        if _key(name) in kinds and not member.kind == kinds[_key(name)] == "folder":
            raise ArchiveError(archive, f"refused: two members are called {name!r} (case ignored)")
        kinds[_key(name)] = member.kind
        if member.kind == "link":
            _check_link(name, member.target, archive)
            links += 1
        else:
            kept.append(replace(member, name=name))
    for member in kept:
        for parent in map(str, PurePosixPath(member.name).parents):
            if kinds.get(_key(parent), "folder") != "folder":
                raise ArchiveError(
                    archive, f"refused: member {member.name!r} leads through the file or link {parent!r}"
                )
    if links:
        logger.warning("%s: %d symbolic links are left out", archive, links)
    return kept


def _normal_name(member: Member, archive: Path) -> str:
    name = member.name
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\\" in name or not name:
        raise ArchiveError(archive, f"refused: member {name!r} would be written outside the folder")
    if any(ord(character) < 32 for character in name) or member.kind == "other":
        raise ArchiveError(archive, f"refused: member {name!r} is no plain file or folder")
    name = posixpath.normpath(name)
    if _key(name.split("/")[0]) == WRITING:
        raise ArchiveError(archive, f"refused: member {member.name!r} has the name of what is not finished")
    return name


def _check_link(name: str, target: str | None, archive: Path) -> None:
    """Refuse a link that leaves the folder. A target that the listing does not tell is harmless: links are not made."""
    if target is None:
        return
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if target.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", target) or inside.split("/")[0] == "..":
        raise ArchiveError(archive, f"refused: link {name!r} leads out of the folder, to {target!r}")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def check_room(members: Iterable[Member], folder: Path, archive: Path) -> None:
    """Raise ArchiveError when the files do not fit on the disk of `folder`."""
    needed = sum(member.size for member in members)
    require_room(folder, needed, partial(ArchiveError, archive), f"unpacks to {readable_size(needed)}")


def is_intact(path: Path, member: Member) -> bool:
    """Whether `path` is a plain file with the size, and the CRC-32 if known, of `member`."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != member.size:
        return False
    if member.crc32 is None:
        return True
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc == member.crc32


def _extract_zip(archive: Path, folder: Path, hint: str) -> None:
    with zipfile.ZipFile(archive) as opened:
        infos = {posixpath.normpath(info.filename): info for info in opened.infolist()}
        members = [_zip_member(info, opened) for info in opened.infolist()]
        wanted = safe_members(members, archive, archive.stat().st_size)
        _write_members(wanted, folder, archive, lambda name: opened.open(infos[name]))


def _zip_member(info: zipfile.ZipInfo, opened: zipfile.ZipFile) -> Member:
    mode = info.external_attr >> 16
    if info.is_dir():
        return Member(info.orig_filename, 0, "folder")
    if stat.S_ISLNK(mode):
        return Member(
            info.orig_filename, info.file_size, "link", target=opened.read(info)[:4096].decode(errors="replace")
        )
    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
    return Member(info.orig_filename, info.file_size, "file" if plain else "other", info.CRC)


def _extract_tar(archive: Path, folder: Path, hint: str) -> None:
    with tarfile.open(archive) as opened:
        infos: dict[str, tarfile.TarInfo] = {}
        wanted = safe_members(_tar_members(opened, infos), archive, archive.stat().st_size)
        lacks_end = opened.fileobj.tell() - opened.offset < tarfile.BLOCKSIZE  # which is a block of zeros
        while block := opened.fileobj.read(1 << 20):  # the checksum of a compressed tar stands behind its last member
            lacks_end = lacks_end or block.count(0) < len(block)  # what Python took for the end was a damaged member
        if lacks_end:
            logger.warning(NO_END, archive)
        _write_members(wanted, folder, archive, lambda name: opened.extractfile(infos[name]))


def _tar_members(opened: tarfile.TarFile, infos: dict[str, tarfile.TarInfo]) -> Iterator[Member]:
    for info in opened:
        infos[posixpath.normpath(info.name)] = info
        original = infos.get(posixpath.normpath(info.linkname)) if info.islnk() else None
        if original is not None:  # a hard link: reading it gives the content of the original
            yield Member(info.name, original.size, "file")
        elif info.issym() or info.islnk():
            yield Member(info.name, 0, "link", target=info.linkname)
        else:
            yield Member(info.name, info.size, "folder" if info.isdir() else "file" if info.isfile() else "other")


def _write_members(members: Iterable[Member], folder: Path, archive: Path, open_member) -> None:
    for member in members:
        if member.kind == "folder":
            (folder / member.name).mkdir(parents=True, exist_ok=True)
    files = [member for member in members if member.kind == "file"]
    missing = [member for member in files if not is_intact(folder / member.name, member)]
    check_room(missing, folder, archive)
    total = sum(member.size for member in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"extract {archive.name}", leave=False, disable=None) as bar:
        for member in missing:
            with open_member(member.name) as source:
                _write_file(source, folder, member.name)
            if not is_intact(folder / member.name, member):
                raise ArchiveError(archive, f"member {member.name!r} is damaged")
            bar.update(member.size)


def _write_file(source: IO[bytes], folder: Path, name: str) -> None:
    # not files.atomic_path: no sync for each of 13,320 videos; `is_intact` checks each file instead
    path, temporary = folder / name, folder / WRITING / "member"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.parent.mkdir(exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def extract_rar(archive: Path, folder: Path, hint: str = "") -> None:
    """Extract all members of a rar archive, or the first volume of several, to the existing folder `folder`.

    Raises ArchiveError when a volume is missing, a password is needed, no tool is installed or members stay damaged.
    """
    members, packed_bytes = _listing(archive)
    wanted = safe_members(members, archive, packed_bytes)
    names = {member.name for member in wanted}
    for member in wanted:
        if member.target is not None and member.target not in names:
            raise ArchiveError(archive, f"refused: {member.name!r} is a copy of {member.target!r}, which is not in it")
    missing = _clean(wanted, folder)
    check_room(missing, folder, archive)
    tools, tried = available_tools(), []
    if not tools and any(not member.stored and member.target not in names for member in missing):
        raise no_tool(archive, hint)
    _write_stored(archive, missing, folder)
    missing = _clean(wanted, folder)
    for tool in tools if missing else []:
        logger.info("%s: extracting %d files with %s", archive, len(missing), tool)
        tried.append(_run(tool, archive, folder, sum(member.size for member in wanted)))
        missing = _clean(wanted, folder)
        if not missing:
            break
    if missing:
        how = "; ".join(tried) or "stored, without compression"
        raise ArchiveError(
            archive,
            f"{len(missing)} of {len(wanted)} members could not be extracted, the first is {missing[0].name!r} "
            f"({how}): the archive is damaged, or {INSTALL}" + (f"; {hint}" if hint else ""),
        )


def no_tool(archive: object, hint: str = "") -> ArchiveError:
    """What to say where a rar cannot be extracted for want of a program."""
    return ArchiveError(
        archive, f"no program that extracts rar is installed: {INSTALL}" + (f"; {hint}" if hint else "")
    )


def _write_stored(archive: Path, missing: Iterable[Member], folder: Path) -> None:
    """Write those of the members that are stored as they are, which needs no program. What fails, a tool may manage."""
    names = {member.name for member in missing if member.stored}
    import rarfile

    with rarfile.RarFile(archive) as opened:
        for info in opened.infolist():
            name = posixpath.normpath(info.filename)
            if name in names:
                with contextlib.suppress(rarfile.Error), opened.open(info) as source:
                    _write_file(source, folder, name)


def available_tools() -> list[str]:
    """Names of the installed programs and packages that extract rar, in the order in which they are tried."""
    found = [name for name in TOOLS if shutil.which(name)]
    return [*found, CFFI] if importlib.util.find_spec("unrar") and importlib.util.find_spec("unrar.cffi") else found


def _listing(archive: Path) -> tuple[list[Member], int]:
    """Members, and the bytes of all volumes."""
    import rarfile  # here, and below: --help answers without it

    headers: list[rarfile.RarInfo] = []
    try:
        with rarfile.RarFile(archive, info_callback=headers.append) as opened:
            if opened.strerror():
                raise ArchiveError(archive, f"is incomplete: {opened.strerror()}")
            if opened.needs_password():
                raise ArchiveError(archive, "needs a password, which is not supported")
            _warn_without_end(archive, headers)
            packed_bytes = sum(os.path.getsize(volume) for volume in opened.volumelist())
            return [_member(info, opened) for info in opened.infolist()], packed_bytes
    except rarfile.NeedFirstVolume as error:
        raise ArchiveError(archive, "is a later volume: name the first one (part1)") from error
    except rarfile.Error as error:
        raise ArchiveError(archive, f"is no readable rar archive ({error})") from error


def _warn_without_end(archive: Path, headers: list[rarfile.RarInfo]) -> None:
    """Warn of a rar that was cut off between two members, of which rarfile says nothing: the listing lacks the rest.

    Since version 3 the last header is one for the end; older files have none, and members that old programs can read.
    """
    import rarfile

    files = [info for info in headers if info.type == rarfile.RAR_BLOCK_FILE]
    is_old = files and not any(info.extract_version >= RAR_3 or info.flags & rarfile.RAR_FILE_EXTTIME for info in files)
    if not is_old and (not headers or headers[-1].type != rarfile.RAR_BLOCK_ENDARC):
        logger.warning(NO_END, archive)


def _member(info: rarfile.RarInfo, opened: rarfile.RarFile) -> Member:
    import rarfile

    if info.is_dir():
        return Member(info.filename, 0, "folder")
    redirection = getattr(info, "file_redir", None)
    if info.is_symlink():
        target = redirection[2] if redirection else None
        if target is None and info.compress_type == rarfile.RAR_M0:  # RAR4 keeps it as content; stored needs no tool
            target = opened.read(info).decode("utf-8", "replace")
        return Member(info.filename, info.file_size, "link", target=target)
    if redirection:  # a hard link or a reference to an equal file
        return Member(info.filename, info.file_size, "file", target=redirection[2])
    stored = info.compress_type == rarfile.RAR_M0
    return Member(info.filename, info.file_size, "file" if info.is_file() else "other", info.CRC, stored=stored)


def _run(tool: str, archive: Path, folder: Path, size: int) -> str:
    """Run a tool over the whole archive and say how it ended. Its exit status proves nothing: the files do."""
    places = str(archive.resolve()), str(folder.resolve())
    process = subprocess.Popen(
        [sys.executable, "-m", "videodata.archive", *places] if tool == CFFI else TOOLS[tool](*places),
        stdin=subprocess.DEVNULL,  # a tool that asks for a volume or a password gets an end of file
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**environment(), "LC_ALL": "C.UTF-8"},  # names with accents
    )
    try:
        output, _ = process.communicate(timeout=LEAST_SECONDS + size / SLOWEST_RATE)
    except subprocess.TimeoutExpired:
        return f"{tool}: hung and was stopped"
    finally:
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.communicate()
    lines = output.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"{tool}: exit status {process.returncode}, {last[:200]}"


def _clean(members: list[Member], folder: Path) -> list[Member]:
    """Remove what the tools should not have made, supply copies, and return the members that are not intact."""
    wanted = {member.name: member for member in members}
    for root, folders, files in os.walk(folder):
        if WRITING in folders and Path(root) == folder:
            folders.remove(WRITING)
        for name in folders + files:
            path = Path(root, name)
            member = wanted.get(path.relative_to(folder).as_posix())
            if path.is_symlink() or (not path.is_dir() and (member is None or not _is_good(path, member, wanted))):
                path.unlink()
    for member in members:
        path = folder / member.name
        if member.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
        elif member.target in wanted and not path.exists() and (folder / member.target).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / member.target, path)
    return [m for m in members if m.kind == "file" and not _is_good(folder / m.name, m, wanted)]


def _is_good(path: Path, member: Member, wanted: dict[str, Member]) -> bool:
    if member.target is None:
        return is_intact(path, member)
    original = wanted.get(member.target)
    return original is not None and is_intact(path, Member(member.name, original.size, "file", original.crc32))


def unpack_with_cffi(archive: str, folder: str) -> None:
    """Write every member that is not in the folder yet. The caller has checked the names of all members."""
    from unrar.cffi.unrarlib import FLAGS_RHDF_DIRECTORY, BadRarFile, RarArchive

    try:
        with RarArchive.open_for_processing(archive) as opened:
            for header in opened.iterate_headers():
                path = os.path.join(folder, joined_surrogates(header.FileNameW))
                if header.Flags & FLAGS_RHDF_DIRECTORY or os.path.lexists(path):
                    header.skip()
                    continue
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    header.test(file.write)
    except BadRarFile as error:
        sys.exit(str(error))


def joined_surrogates(name: str) -> str:
    """The library hands over a character beyond U+FFFF as the two halves that UTF-16 makes of it."""
    return name.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


if __name__ == "__main__":
    unpack_with_cffi(*sys.argv[1:])
