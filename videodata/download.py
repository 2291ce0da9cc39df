"""Downloads that survive cut connections, restarts and lying servers.

A file on its way is `<path>.part`; a note beside it names its version on the server (ETag or date), so that a later run
continues it only while that is the same. The rules for what is accepted from a server stand at the end.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from videodata.errors import UserError, disk_errors
from videodata.files import hash_file, lock_file, publish, read_json, readable_size, require_room, sha256_of, write_json

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
LONGEST_WAIT = 300.0
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
USER_AGENT = "video-generation/0.1 (dataset download)"


class DownloadError(UserError):
    """A download that cannot be finished; what arrived so far is kept for the next try unless it is wrong."""


class Interrupted(Exception):
    """The connection broke or the server asked to wait: worth another try."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


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
    parts = urllib.parse.urlsplit(url)
    is_local = parts.scheme == "file" and allow_file and parts.netloc in ("", "localhost")
    if not is_local and (parts.scheme not in ("https", "http") or not parts.netloc):
        raise UserError(f"{url}: only https:// and http:// addresses can be downloaded")
    transfer = Transfer(url, target, size, sha256, insecure, hint, timeout, reserve)
    with lock_file(target, "downloading"):
        transfer.refuse_foreign()
        if target.exists():  # another process was faster
            _check_existing(target, size, sha256)
        elif is_local:
            transfer.copy_local()
        else:
            _with_retries(transfer, tries, wait)
    return target


def _check_existing(path: Path, size: int | None, sha256: str | None) -> None:
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path}: has {found} bytes in place of {size}; delete it and it is downloaded again")
    if sha256 and not sha256_of(path).startswith(sha256.lower()):
        raise UserError(f"{path}: its SHA-256 is not {sha256}; delete it and it is downloaded again")


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


@dataclass
class Transfer:
    """One file on its way: the part on disk, what identifies it on the server, and the checks at the end."""

    url: str
    target: Path
    size: int | None
    sha256: str | None
    insecure: bool
    hint: str
    timeout: float
    reserve: int
    restarted: bool = field(default=False, init=False)  # a wrong checksum earns one fresh start

    def __post_init__(self) -> None:
        self.part = self.target.with_name(self.target.name + ".part")
        self.note = self.target.with_name(self.target.name + ".part.json")
        self._digest, self._digested = hashlib.sha256(), 0

    @property
    def have(self) -> int:
        """Bytes that arrived so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def error(self, reason: str) -> DownloadError:
        return DownloadError(f"{self.url}: {reason}" + (f"; {self.hint}" if self.hint else ""))

    def refuse_foreign(self) -> None:
        """Raise when what lies under the names of the part and its note is not of a former run."""
        for path in (self.note, self.part):
            if path.exists() and "validator" not in (read_json(self.note) or {}):
                raise self.error(f"{path} is there, and is no part of a download by this command; move it away")

    def attempt(self) -> None:
        """One request: continue or begin the part, and finish the file when all of it is there."""
        validator = self._validator()
        start = self.have if validator else 0
        try:
            with self._open(start, validator) as response:
                self._receive(response, start, validator)
        except urllib.error.HTTPError as error:
            if error.code in RETRY_STATUS:
                raise Interrupted(f"status {error.code} {error.reason}", retry_after(error)) from error
            if not self._part_is_whole(error):
                raise self.error(f"status {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            self._raise_for_network(error.reason)
        except (http.client.HTTPException, OSError) as error:
            self._raise_for_network(error)
        self._finish()

    def copy_local(self) -> None:
        """The same for a file:// address."""
        source = Path(urllib.request.url2pathname(urllib.parse.urlsplit(self.url).path))
        if not source.is_file():
            raise self.error(f"there is no file {source}")
        self.restarted = True  # a second copy would be the same
        self._check_room(source.stat().st_size)
        with disk_errors(self.part):
            self._begin(None)
        with disk_errors(self.part), open(source, "rb") as file, open(self.part, "wb") as part:
            while chunk := file.read(CHUNK):
                self._append(part, chunk)
        self._finish()

    def _open(self, start: int, validator: str | None) -> http.client.HTTPResponse:
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        request = urllib.request.Request(self.url, headers=headers)
        return opener(self.insecure).open(request, timeout=self.timeout)

    def _receive(self, response: http.client.HTTPResponse, start: int, validator: str | None) -> None:
        begin, total = content_extent(response)
        now = strong_validator(response)
        if begin not in (0, start) or (begin and now and now != validator):
            self._discard()
            raise Interrupted("the server sent another part than asked for")
        if self.size is not None and total is not None and total != self.size:
            raise self.error(f"the server offers {total} bytes, expected {self.size}")
        chunk = response.read1(CHUNK)
        if begin == 0 and not self.target.name.endswith((".html", ".htm")) and is_web_page(response, chunk):
            raise self.error("the server sent a web page in place of the file")
        self._check_room((total or 0) - begin)
        with disk_errors(self.part):
            part = self._open_part(begin, now)
        shown = {"desc": self.target.name, "unit": "B", "unit_scale": True, "leave": False, "disable": None}
        with part, tqdm(total=total, initial=begin, **shown) as bar:
            while chunk:
                with disk_errors(self.part):
                    self._append(part, chunk)
                bar.update(len(chunk))
                chunk = response.read1(CHUNK)
        if total is not None and self.have < total:
            raise Interrupted(f"the connection ended at {self.have} of {total} bytes")

    def _open_part(self, begin: int, validator: str | None) -> BinaryIO:
        """The part, cut to `begin` bytes, ready to append; the digest covers these bytes."""
        if begin == 0:
            self._begin(validator)
        elif self._digested != begin:
            self._digest, self._digested = hash_file(self.part), begin
        return open(self.part, "ab", buffering=0)

    def _begin(self, validator: str | None) -> None:
        """Drop the part; the note is there before the next one is, so that a part without a note is somebody else's."""
        self._discard()
        write_json(self.note, {"url": self.url, "validator": validator})

    def _append(self, part: BinaryIO, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[part.write(rest) :]
        self._digest.update(chunk)
        self._digested += len(chunk)

    def _part_is_whole(self, error: urllib.error.HTTPError) -> bool:
        """Whether status 416 (nothing after the part) means that the part is the file; a wrong part is dropped."""
        if error.code != 416:
            return False
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(self.have) and self.size in (None, self.have):
            self._digest, self._digested = hash_file(self.part), self.have
            return True
        self._discard()
        raise Interrupted("the part on disk does not belong to the file on the server")

    def _raise_for_network(self, problem: object) -> None:
        if isinstance(problem, ssl.SSLCertVerificationError):
            raise self.error(
                f"the certificate of the server cannot be verified ({problem.verify_message}); "
                "--insecure goes on without this check"
            )
        raise Interrupted(str(problem) or type(problem).__name__)

    def _finish(self) -> None:
        have = self.have
        if self.size is not None and have != self.size:
            self._discard()
            raise self.error(f"{have} bytes arrived, expected {self.size}")
        if self.sha256 and not self._digest.hexdigest().startswith(self.sha256.lower()):
            self._discard()
            if not self.restarted:
                self.restarted = True
                raise Interrupted("the SHA-256 is wrong", wait=0.0)
            raise self.error(f"its SHA-256 is not {self.sha256}: the file on the server changed or the line is faulty")
        with disk_errors(self.part):
            publish(self.part, self.target)
        self.note.unlink(missing_ok=True)

    def _validator(self) -> str | None:
        """ETag or Last-Modified of the part on disk: without one it cannot be continued safely."""
        note = read_json(self.note) or {}
        return note.get("validator") if note.get("url") == self.url else None

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self._digest, self._digested = hashlib.sha256(), 0

    def _check_room(self, needed: int) -> None:
        why = f"needs {readable_size(needed)} on the disk and {readable_size(self.reserve)} after it"
        require_room(self.target.parent, needed + self.reserve, self.error, why)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https down to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in ("https", "http") or (old == "https" and new == "http"):
            raise UserError(
                f"{req.full_url}: the server redirects to {newurl}, which is refused (https and http only, no way down)"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(insecure: bool = False) -> urllib.request.OpenerDirector:
    """A urllib opener that knows http and https alone (no file:, ftp: or data:). insecure: any certificate will do."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
    ):
        director.add_handler(handler)
    return director


def content_extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte that a 200 or 206 response holds, and the size of the whole file (None when the server is silent)."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else None


def strong_validator(response: http.client.HTTPResponse) -> str | None:
    """What names this version of the file: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")  # a weak ETag promises no bytes


def is_web_page(response: http.client.HTTPResponse, first_bytes: bytes) -> bool:
    """Whether the server sent a page for a browser, as error pages and consent pages are."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        return True
    return first_bytes[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait, None when it does not say."""
    value = (error.headers.get("Retry-After") or "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
