"""Single members of a zip on a web server, fetched by byte ranges: 20 videos of UCF101 cost 10 MB and not 7 GB."""

import contextlib
import http.client
import io
import logging
import os
import posixpath
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from videodata.archive import ArchiveError, Member, is_intact, safe_members
from videodata.download import (
    RETRY_STATUS,
    USER_AGENT,
    DownloadError,
    content_extent,
    opener,
    strong_validator,
)
from videodata.errors import disk_errors
from videodata.files import lock_file, write_file

LOCAL_HEADER = 30 + 1024  # bytes before a member's data: the fixed part, and room for its extra fields
TAIL = 1 << 16  # what is fetched for a read that nobody announced
logger = logging.getLogger(__name__)


class NoRanges(DownloadError):
    """The server sends whole files only."""


class RangeFile(io.RawIOBase):
    """A file on a web server, read by requests for parts of it, each tried `tries` times.

    Raises DownloadError for a server that does not answer, and when the file changes while it is read; NoRanges for
    one that cannot send parts.
    """

    def __init__(
        self, url: str, insecure: bool = False, tries: int = 5, wait: float = 1.0, timeout: float = 60.0
    ) -> None:
        super().__init__()
        self.url, self.tries, self.wait, self.timeout = url, tries, wait, timeout
        self._opener = opener(insecure)
        self._validator: str | None = None
        self._position, self._start, self._block = 0, 0, b""
        self.size = 0
        self.fetch(0, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the file goes."""
        count = max(0, min(len(buffer), self.size - self._position))
        inside = self._position - self._start
        if count and not 0 <= inside <= len(self._block) - count:
            self.fetch(self._position, max(count, TAIL))
            inside = 0
        buffer[:count] = self._block[inside : inside + count]
        self._position += count
        return count

    def fetch(self, start: int, count: int) -> None:
        """Keep the bytes from `start` on in memory, as many as asked for or as there are, for the reads to come."""
        for left in range(self.tries - 1, -1, -1):
            try:
                self._start, self._block = start, self._request(start, count)
                return
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                if not left or is_final(error):
                    untrusted = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
                    remedy = "--insecure goes on without this check" if untrusted else "run the command again"
                    raise DownloadError(f"{self.url}: cannot be read in parts ({error}); {remedy}") from error
                pause = self.wait * 2 ** (self.tries - 1 - left)
                logger.warning("%s: %s; next try in %.0f s", self.url, error, pause)
                time.sleep(pause)

    def _request(self, start: int, count: int) -> bytes:
        last = min(start + count, self.size or start + count) - 1
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Range": f"bytes={start}-{last}"}
        request = urllib.request.Request(self.url, headers=headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            if response.status != 206:
                raise NoRanges(f"{self.url}: the server does not send parts of files")
            begin, total = content_extent(response)
            validator = strong_validator(response)
            if self.size and (total, validator) != (self.size, self._validator):
                raise DownloadError(f"{self.url}: the file on the server changed; run the command again")
            data = response.read()
        if begin != start or total is None or len(data) != last - start + 1:
            raise http.client.HTTPException(f"the server sent {len(data)} bytes from {begin}, not {start}-{last}")
        self.size, self._validator = total, validator
        return data


def is_final(error: Exception) -> bool:
    """Whether the same request would fail again: a wrong certificate, or a status such as 404."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code not in RETRY_STATUS
    return isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)


def fetch_members(
    url: str,
    folder: Path,
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    size: int | None = None,
    insecure: bool = False,
    reserve: int = 0,
) -> None:
    """Bring the members that `choose` picks from the names of all files into `folder`; intact ones are not fetched.

    Each file is checked (size, CRC-32) before it gets its name. size: bytes that the archive must have, if known.
    reserve: bytes that must stay free on the disk. Raises DownloadError, NoRanges, or ArchiveError for a zip that is
    damaged or must not be extracted.
    """
    with lock_file(folder, "downloading to"), remote_zip(url, insecure) as (source, opened):
        if size not in (None, source.size):
            raise DownloadError(f"{url}: the server offers {source.size} bytes, expected {size}")
        infos = {posixpath.normpath(info.filename): info for info in opened.infolist() if not info.is_dir()}
        listed = [Member(info.filename, info.file_size, "file", info.CRC) for info in infos.values()]
        members = {member.name: member for member in safe_members(listed, url, source.size)}
        folder.mkdir(parents=True, exist_ok=True)
        missing = [members[name] for name in choose(list(members)) if not is_intact(folder / name, members[name])]
        total = sum(member.size for member in missing)
        needed, free = total + reserve, shutil.disk_usage(folder).free
        if needed > free:
            raise DownloadError(
                f"{url}: its videos and what is made of them need {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free at {folder.resolve()}"
            )
        with tqdm(total=total, unit="B", unit_scale=True, desc=folder.name, leave=False, disable=None) as bar:
            for member in missing:
                info = infos[member.name]
                source.fetch(info.header_offset, LOCAL_HEADER + len(member.name) + info.compress_size)
                with disk_errors(folder / member.name):
                    write_file(folder / member.name, opened.read(info))
                bar.update(member.size)


@contextlib.contextmanager
def remote_zip(url: str, insecure: bool) -> Iterator[tuple[RangeFile, zipfile.ZipFile]]:
    """The listing of a zip on a web server, and the file under it."""
    source = RangeFile(url, insecure)
    try:
        with zipfile.ZipFile(source) as opened:
            yield source, opened
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(url, f"is no intact zip archive ({error})") from error
