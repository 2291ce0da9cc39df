"""Downloads that survive cut connections, restarts and lying servers."""

import logging
import os
import time
import urllib.parse
from pathlib import Path

from videodata.errors import UserError
from videodata.lock import exclusive
from videodata.transfer import DownloadError, Interrupted, Transfer, hash_file

__all__ = ["DownloadError", "download", "sha256_of"]

logger = logging.getLogger(__name__)

LONGEST_WAIT = 300.0


def download(
    url: str,
    path: str | os.PathLike,
    *,
    size: int | None = None,
    sha256: str | None = None,
    insecure: bool = False,
    allow_file: bool = False,
    hint: str = "",
    tries: int = 5,
    wait: float = 1.0,
    timeout: float = 60.0,
    reserve: int = 0,
) -> Path:
    """Fetch `url` to `path` and return the path; `path` appears only when it is complete and checked.

    size (bytes) and sha256 (hexadecimal, or its first characters) are checked when given; a file that is already there
    is used when it agrees with them. A part left by a former run is continued when the server still has the same file.
    insecure: accept any TLS certificate. allow_file: `file://` is allowed as well. hint ends every error line.
    tries: attempts in a row that bring nothing new; wait: seconds before the second, doubled each time.
    reserve: bytes that must stay free on the disk besides the file. Raises DownloadError or UserError.
    """
    target = Path(path)
    if target.exists():
        _check_existing(target, size, sha256)
        return target
    _check_scheme(url, allow_file)
    transfer = Transfer(url, target, size, sha256, insecure, hint, timeout, reserve)
    with exclusive(target, "downloading"):
        if target.exists():  # another process was faster
            _check_existing(target, size, sha256)
        elif urllib.parse.urlsplit(url).scheme == "file":
            transfer.copy_local()
        else:
            _with_retries(transfer, tries, wait)
    return target


def sha256_of(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hash_file(Path(path)).hexdigest()


def _check_existing(path: Path, size: int | None, sha256: str | None) -> None:
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path}: has {found} bytes in place of {size}; delete it and it is downloaded again")
    if sha256 and not sha256_of(path).startswith(sha256.lower()):
        raise UserError(f"{path}: its SHA-256 is not {sha256}; delete it and it is downloaded again")


def _check_scheme(url: str, allow_file: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" and allow_file and parts.netloc in ("", "localhost"):
        return
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise UserError(f"{url}: only https:// and http:// addresses can be downloaded")


def _with_retries(transfer: Transfer, tries: int, wait: float) -> None:
    failures, most = 0, transfer.have
    while True:
        try:
            transfer.attempt()
            return
        except Interrupted as problem:
            # A part that was thrown away and came again is no progress: a server that lies would keep us for ever.
            failures = 1 if transfer.have > most else failures + 1
            most = max(most, transfer.have)
            if failures >= tries:
                raise transfer.error(
                    f"gave up after {failures} tries ({problem}); run the command again to continue"
                ) from problem
            pause = problem.wait if problem.wait is not None else wait * 2 ** (failures - 1)
            logger.warning("%s: %s; next try in %.0f s", transfer.url, problem, min(pause, LONGEST_WAIT))
            time.sleep(min(pause, LONGEST_WAIT))
