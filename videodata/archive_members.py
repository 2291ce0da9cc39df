"""Which members of an archive may be written: nothing outside the folder, no links, no devices, no bombs."""

import logging
import posixpath
import re
import shutil
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from videodata.errors import UserError

logger = logging.getLogger(__name__)

BOMB_RATIO = 100  # unpacked bytes per packed byte; videos hardly shrink at all
BOMB_FLOOR = 16 << 20  # archives that unpack to less than this are never called a bomb
MOST_MEMBERS = 2_000_000


@dataclass(frozen=True)
class Member:
    """One entry of an archive, as its listing describes it."""

    name: str  # with / between the parts
    size: int
    kind: str  # "file", "folder", "link" or "other"
    crc32: int | None = None
    target: str | None = None  # of a link; of a file: the member that it is a copy of


class ArchiveError(UserError):
    """An archive that cannot or must not be extracted."""

    def __init__(self, archive: object, reason: str) -> None:
        super().__init__(f"{archive}: {reason}")


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
        _claim(name, member.kind, kinds, archive)
        if member.kind == "link":
            _check_link(name, member.target, archive)
            links += 1
        else:
            kept.append(replace(member, name=name))
    for member in kept:
        _check_parents(member.name, kinds, archive)
    if links:
        logger.warning("%s: %d symbolic links are left out", archive, links)
    return kept


def check_room(members: Iterable[Member], folder: Path, archive: Path) -> None:
    """Raise ArchiveError when the files do not fit on the disk of `folder`."""
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise ArchiveError(
            archive, f"unpacks to {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free at {folder.parent.resolve()}"
        )


def is_intact(path: Path, member: Member) -> bool:
    """Whether `path` is a plain file with the size, and the CRC-32 if known, of `member`."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != member.size:
        return False
    return member.crc32 is None or file_crc32(path) == member.crc32


def file_crc32(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _normal_name(member: Member, archive: Path) -> str:
    name = member.name
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\\" in name or not name:
        raise ArchiveError(archive, f"refused: member {name!r} would be written outside the folder")
    if any(ord(character) < 32 for character in name) or member.kind == "other":
        raise ArchiveError(archive, f"refused: member {name!r} is no plain file or folder")
    return posixpath.normpath(name)


def _claim(name: str, kind: str, kinds: dict[str, str], archive: Path) -> None:
    key = _key(name)
    if key in kinds and not kind == kinds[key] == "folder":
        raise ArchiveError(archive, f"refused: two members are called {name!r} (case ignored)")
    kinds[key] = kind


def _check_link(name: str, target: str | None, archive: Path) -> None:
    """Refuse a link that leaves the folder. A target that the listing does not tell is harmless: links are not made."""
    if target is None:
        return
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if target.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", target) or inside.split("/")[0] == "..":
        raise ArchiveError(archive, f"refused: link {name!r} leads out of the folder, to {target!r}")


def _check_parents(name: str, kinds: dict[str, str], archive: Path) -> None:
    parent = posixpath.dirname(name)
    while parent:
        if kinds.get(_key(parent), "folder") != "folder":
            raise ArchiveError(archive, f"refused: member {name!r} leads through the file or link {parent!r}")
        parent = posixpath.dirname(parent)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
