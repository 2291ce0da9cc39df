"""Extract zip, tar and rar archives that come from anywhere: checked first, resumable, complete or absent."""

import contextlib
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from videodata.archive_members import ArchiveError, Member, check_room, is_intact, safe_members
from videodata.archive_rar import extract_rar
from videodata.errors import UserError
from videodata.lock import exclusive

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


def extract(archive: str | os.PathLike, folder: str | os.PathLike, *, hint: str = "") -> Path:
    """Extract `archive` to the new folder `folder` and return it; an existing folder is returned as it is.

    Members go to `<folder>.partial` first; a run that was interrupted continues with the missing ones. Every file is
    checked (size, and CRC-32 where the archive has one) before the folder gets its name. hint: other source of the
    same data, for the line that says that no rar extractor is installed. Raises ArchiveError or UserError.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        return folder
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    partial = folder.with_name(folder.name + ".partial")
    with exclusive(folder, "extracting to"):
        partial.mkdir(parents=True, exist_ok=True)
        try:
            _extractor(archive)(archive, partial, hint)
        except ArchiveError:
            raise
        except (*DAMAGE, OSError) as error:
            kept = "; what is extracted so far is kept for the next run" if any(partial.iterdir()) else ""
            raise ArchiveError(archive, f"cannot be extracted ({error}){kept}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.rmdir()  # only when nothing is in it
        partial.mkdir(exist_ok=True)
        os.replace(partial, folder)
    return folder


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


def _extract_zip(archive: Path, folder: Path, hint: str) -> None:
    with zipfile.ZipFile(archive) as opened:
        infos = {_stripped(info.filename): info for info in opened.infolist()}
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
        while opened.fileobj.read(1 << 20):  # the checksum of a compressed tar stands behind its last member
            pass
        _write_members(wanted, folder, archive, lambda name: opened.extractfile(infos[name]))


def _tar_members(opened: tarfile.TarFile, infos: dict[str, tarfile.TarInfo]) -> Iterator[Member]:
    for info in opened:
        infos[_stripped(info.name)] = info
        original = infos.get(_stripped(info.linkname)) if info.islnk() else None
        if original is not None:  # a hard link: reading it gives the content of the original
            yield Member(info.name, original.size, "file")
        elif info.issym() or info.islnk():
            yield Member(info.name, 0, "link", target=info.linkname)
        else:
            yield Member(info.name, info.size, "folder" if info.isdir() else "file" if info.isfile() else "other")


def _stripped(name: str) -> str:
    return os.path.normpath(name)


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
                _write_file(source, folder / member.name)
            if not is_intact(folder / member.name, member):
                raise ArchiveError(archive, f"member {member.name!r} is damaged")
            bar.update(member.size)


def _write_file(source: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name[:200] + ".partial")
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
