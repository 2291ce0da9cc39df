"""Rar archives: rarfile lists them, a program from PATH (or unrar2-cffi) unpacks them whole, every member is verified.

No one free tool reads every kind of rar, so the next one is tried for the members that are still missing.
"""

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import rarfile

from videodata.archive_members import ArchiveError, Member, check_room, is_intact, safe_members

logger = logging.getLogger(__name__)

# None of them asks a question. unrar and bsdtar leave existing files alone; unar, told so, skips whole folders.
TOOLS = {
    "unrar": lambda archive, folder: ["unrar", "x", "-o-", "-y", "-p-", "-inul", archive, folder + os.sep],
    "unar": lambda archive, folder: [
        "unar", "-quiet", "-no-directory", "-force-overwrite", "-output-directory", folder, archive
    ],
    "bsdtar": lambda archive, folder: ["bsdtar", "-x", "-k", "-f", archive, "-C", folder],
}  # fmt: skip
CFFI = "unrar2-cffi"
LEAST_SECONDS = 60
SLOWEST_RATE = 1 << 20  # bytes per second; a tool that is slower than this hangs
INSTALL = "install one (pip install unrar2-cffi; on Debian and Ubuntu: apt install unar libarchive-tools)"


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
    tried: list[str] = []
    for tool in available_tools() if missing else []:
        logger.info("%s: extracting %d files with %s", archive, len(missing), tool)
        tried.append(_run(tool, archive, folder, sum(member.size for member in wanted)))
        missing = _clean(wanted, folder)
        if not missing:
            break
    if missing and not tried:
        raise ArchiveError(
            archive, f"no program that extracts rar is installed: {INSTALL}" + (f"; {hint}" if hint else "")
        )
    if missing:
        raise ArchiveError(
            archive,
            f"{len(missing)} of {len(wanted)} members could not be extracted, the first is {missing[0].name!r} "
            f"({'; '.join(tried)}): the archive is damaged, or {INSTALL}" + (f"; {hint}" if hint else ""),
        )


def available_tools() -> list[str]:
    """Names of the installed programs and packages that extract rar, in the order in which they are tried."""
    found = [name for name in TOOLS if shutil.which(name)]
    return [*found, CFFI] if importlib.util.find_spec("unrar") and importlib.util.find_spec("unrar.cffi") else found


def _listing(archive: Path) -> tuple[list[Member], int]:
    """Members, and the bytes of all volumes."""
    try:
        with rarfile.RarFile(archive) as opened:
            if opened.strerror():
                raise ArchiveError(archive, f"is incomplete: {opened.strerror()}")
            if opened.needs_password():
                raise ArchiveError(archive, "needs a password, which is not supported")
            packed_bytes = sum(os.path.getsize(volume) for volume in opened.volumelist())
            return [_member(info, opened) for info in opened.infolist()], packed_bytes
    except rarfile.NeedFirstVolume as error:
        raise ArchiveError(archive, "is a later volume: name the first one (part1)") from error
    except rarfile.Error as error:
        raise ArchiveError(archive, f"is no readable rar archive ({error})") from error


def _member(info: rarfile.RarInfo, opened: rarfile.RarFile) -> Member:
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
    return Member(info.filename, info.file_size, "file" if info.is_file() else "other", info.CRC)


def _run(tool: str, archive: Path, folder: Path, size: int) -> str:
    """Run a tool over the whole archive and say how it ended. Its exit status proves nothing: the files do."""
    if tool == CFFI:
        program = str(Path(__file__).with_name("unrar_cffi_program.py"))
        command = [sys.executable, program, str(archive.resolve()), str(folder.resolve())]
    else:
        command = TOOLS[tool](str(archive.resolve()), str(folder.resolve()))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # a tool that asks for a volume or a password gets an end of file
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},  # names with accents
    )
    try:
        output, _ = process.communicate(timeout=LEAST_SECONDS + size / SLOWEST_RATE)
    except subprocess.TimeoutExpired:
        return f"{tool}: hung and was stopped"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    lines = output.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"{tool}: exit status {process.returncode}, {last[:200]}"


def _clean(members: list[Member], folder: Path) -> list[Member]:
    """Remove what the tools should not have made, supply copies, and return the members that are not intact."""
    wanted = {member.name: member for member in members}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(root, name)
            member = wanted.get(path.relative_to(folder).as_posix())
            if path.is_symlink() or (not path.is_dir() and (member is None or not _is_good(path, member, wanted))):
                path.unlink()
    for member in members:
        _supply(member, folder, wanted)
    return [m for m in members if m.kind == "file" and not _is_good(folder / m.name, m, wanted)]


def _supply(member: Member, folder: Path, wanted: dict[str, Member]) -> None:
    """Make a folder, or a file that the archive keeps as a reference to another one."""
    path = folder / member.name
    if member.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
    elif member.target in wanted and not path.exists() and (folder / member.target).is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / member.target, path)


def _is_good(path: Path, member: Member, wanted: dict[str, Member]) -> bool:
    if member.target is None:
        return is_intact(path, member)
    original = wanted.get(member.target)
    return original is not None and is_intact(path, Member(member.name, original.size, "file", original.crc32))
