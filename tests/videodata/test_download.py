"""The downloader against a loopback server that cuts, lies, redirects and forgets."""

import errno
import hashlib
import http.server
import os
import ssl
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

import pytest

from videodata import download as download_module
from videodata.download import download
from videodata.errors import UserError
from videodata.files import lock_file

DATA = bytes(range(256)) * 2000  # 512 000 bytes
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass
class Behaviour:
    """How the test server treats the next requests, and what it was asked."""

    data: bytes = DATA
    etag: str | None = '"one"'
    cut: list[int] = field(default_factory=list)  # per request: close the connection after so many bytes
    ranges: bool = True
    status: list[int] = field(default_factory=list)  # per request: answer with this status alone
    retry_after: str | None = None
    declared: int | None = None  # Content-Length to lie with
    content_type: str = "application/octet-stream"
    redirect: str | None = None
    requests: list[str | None] = field(default_factory=list)  # the Range headers that came


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        how: Behaviour = self.server.behaviour
        how.requests.append(self.headers.get("Range"))
        if how.redirect and self.path == "/file":
            self._head(302, {"Location": how.redirect, "Content-Length": "0"})
        elif how.status and (status := how.status.pop(0)) != 200:
            self._head(status, {"Content-Length": "0"} | ({"Retry-After": how.retry_after} if how.retry_after else {}))
        else:
            self._send(how)

    def _send(self, how: Behaviour) -> None:
        start = self._start(how)
        headers = {"Content-Type": how.content_type} | ({"ETag": how.etag} if how.etag else {})
        if start >= len(how.data) > 0:
            self._head(416, {"Content-Range": f"bytes */{len(how.data)}", "Content-Length": "0"})
            return
        body = how.data[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(how.data) - 1}/{len(how.data)}"
        headers["Content-Length"] = str(len(body) if how.declared is None else how.declared)
        self._head(206 if start else 200, headers)
        self.wfile.write(body[: how.cut.pop(0)] if how.cut else body)

    def _start(self, how: Behaviour) -> int:
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not (how.ranges and wanted) or condition not in (None, how.etag):
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.behaviour = Behaviour()
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, path, **options):
    return download(server.url, path, **({"wait": 0.0, "timeout": 5.0} | options))


def test_cut_connections_are_continued_by_range(server, tmp_path):
    """Two cuts in the middle: the file is whole, and the bytes that had arrived were not sent again."""
    server.behaviour.cut = [100_000, 200_000]
    path = fetch(server, tmp_path / "new" / "data.bin", size=len(DATA), sha256=SHA)
    assert path.read_bytes() == DATA
    assert server.behaviour.requests == [None, "bytes=100000-", "bytes=300000-"]
    assert os.listdir(path.parent) == ["data.bin"]


def test_a_later_run_continues_the_part(server, tmp_path):
    """When the tries are spent the part stays, and the next call goes on from it."""
    server.behaviour.cut = [1000]
    with pytest.raises(UserError, match="1000 of 512000.*run the command again"):
        fetch(server, tmp_path / "data.bin", tries=1)
    assert not (tmp_path / "data.bin").exists()
    assert fetch(server, tmp_path / "data.bin", sha256=SHA).read_bytes() == DATA
    assert server.behaviour.requests[-1] == "bytes=1000-"


def test_changed_file_on_the_server_starts_again(server, tmp_path):
    """Another ETag: the old part is thrown away, nothing of two versions is mixed."""
    server.behaviour.cut = [1000]
    with pytest.raises(UserError):
        fetch(server, tmp_path / "data.bin", tries=1)
    server.behaviour.data, server.behaviour.etag = DATA[::-1], '"two"'
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": None}], ids=["Range ignored", "no validator"])
def test_server_without_resume_starts_again(server, tmp_path, change):
    """A server that cannot continue a file safely sends it from the start."""
    vars(server.behaviour).update(change, cut=[1000])
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA


def test_complete_part_is_accepted_on_416(server, tmp_path):
    """A run killed between the last byte and the rename only asks and renames."""
    (tmp_path / "data.bin.part").write_bytes(DATA)
    (tmp_path / "data.bin.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"one\\""}}')
    assert fetch(server, tmp_path / "data.bin", sha256=SHA).read_bytes() == DATA
    assert server.behaviour.requests == ["bytes=512000-"]


def test_too_long_part_is_dropped_on_416(server, tmp_path):
    """A part that is longer than the file is not trusted."""
    (tmp_path / "data.bin.part").write_bytes(DATA + b"x")
    (tmp_path / "data.bin.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"one\\""}}')
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA


def test_corrupt_part_is_fetched_again(server, tmp_path):
    """A part whose bytes went bad on the disk fails the checksum once, and then the file is fetched from the start."""
    (tmp_path / "data.bin.part").write_bytes(b"?" * 1000)
    (tmp_path / "data.bin.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"one\\""}}')
    assert fetch(server, tmp_path / "data.bin", sha256=SHA).read_bytes() == DATA


def test_busy_server_is_asked_again(server, tmp_path, monkeypatch):
    """503 is tried again after the time that Retry-After names."""
    pauses = []
    monkeypatch.setattr("videodata.download.time.sleep", pauses.append)
    server.behaviour.status, server.behaviour.retry_after = [503, 429], "7"
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA
    assert pauses == [7.0, 7.0]


def test_missing_file_is_one_line(server, tmp_path):
    """404 is not tried again; the line names address and status and ends with the hint."""
    server.behaviour.status = [404]
    with pytest.raises(UserError, match=r"/file: status 404 .*; look elsewhere$"):
        fetch(server, tmp_path / "data.bin", hint="look elsewhere")
    assert len(server.behaviour.requests) == 1 and os.listdir(tmp_path) == []


def test_length_that_lies_is_noticed(server, tmp_path):
    """A declared length that never arrives ends in an error, not in a short file."""
    server.behaviour.declared, server.behaviour.ranges = len(DATA) + 5, False
    with pytest.raises(UserError, match="gave up after 3 tries"):
        fetch(server, tmp_path / "data.bin", tries=3)
    assert not (tmp_path / "data.bin").exists()


@pytest.mark.parametrize("options", [{"size": 5}, {"sha256": "0" * 64}], ids=["size", "sha256"])
def test_wrong_content_never_gets_the_name(server, tmp_path, options):
    """Another size or checksum than expected is an error and leaves nothing behind."""
    with pytest.raises(UserError, match="expected 5|SHA-256"):
        fetch(server, tmp_path / "data.bin", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_in_place_of_the_file_is_refused(server, tmp_path, kind):
    """An error or consent page is recognised by its type or by its first bytes."""
    server.behaviour.data, server.behaviour.content_type = b"\n<!DOCTYPE html><p>Sorry", kind
    with pytest.raises(UserError, match="web page"):
        fetch(server, tmp_path / "data.rar")
    assert not (tmp_path / "data.rar").exists()


def test_redirects_keep_to_the_web(server, tmp_path):
    """http may redirect to http; a redirect to file:// is refused."""
    server.behaviour.redirect = urllib.parse.urljoin(server.url, "/other")
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA
    server.behaviour.redirect = "file:///etc/hostname"
    with pytest.raises(UserError, match="file:///etc/hostname.*not allowed"):
        fetch(server, tmp_path / "other.bin")


def test_redirect_down_from_https_is_refused():
    """A secure address never leads to an insecure one."""
    request = urllib.request.Request("https://localhost/a")
    with pytest.raises(UserError, match="redirects to http://localhost/b, which is refused"):
        download_module._SafeRedirects().redirect_request(request, None, 302, "Found", {}, "http://localhost/b")


def test_file_addresses_only_on_request(tmp_path):
    """file:// is refused unless the caller allows it, and then it is a checked copy."""
    (tmp_path / "a b.bin").write_bytes(DATA)
    url = (tmp_path / "a b.bin").as_uri()
    with pytest.raises(UserError, match="only https"):
        download(url, tmp_path / "copy.bin")
    assert download(url, tmp_path / "copy.bin", allow_file=True, sha256=SHA).read_bytes() == DATA
    with pytest.raises(UserError, match="SHA-256"):
        download(url, tmp_path / "wrong.bin", allow_file=True, sha256="0" * 64)


def test_broken_certificate_names_the_flag(monkeypatch, tmp_path):
    """A certificate that cannot be verified is one line with --insecure and the hint; nothing goes on silently."""

    class Refusing:
        def open(self, *arguments: object, **options: object) -> None:
            problem = ssl.SSLCertVerificationError(1, "certificate verify failed")
            problem.verify_message = "unable to get local issuer certificate"
            raise download_module.urllib.error.URLError(problem)

    monkeypatch.setattr(download_module, "opener", lambda insecure: Refusing())
    with pytest.raises(UserError, match="unable to get local issuer.*--insecure.*; --source mirror"):
        download("https://localhost/x", tmp_path / "x", hint="--source mirror")


def test_existing_file_is_checked_not_fetched(server, tmp_path):
    """A file that is there is used when it agrees, and is an error when it does not."""
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    assert fetch(server, path, size=len(DATA), sha256=SHA[:8]) == path
    assert server.behaviour.requests == []
    with pytest.raises(UserError, match="512000 bytes in place of 7"):
        fetch(server, path, size=7)


def test_full_disk_is_told_before_the_first_byte(server, tmp_path):
    """When the file and the reserve do not fit, nothing is written and both numbers are named."""
    with pytest.raises(UserError, match="needs 0.00 GB on the disk and 1000000000.00 GB after it"):
        fetch(server, tmp_path / "data.bin", reserve=10**18)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_up_keeps_the_part(server, tmp_path, monkeypatch):
    """ENOSPC while writing is one line; with room again the download goes on."""

    def full(self, part, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room left"):
        patch.setattr(download_module.Transfer, "_append", full)
        fetch(server, tmp_path / "data.bin")
    assert fetch(server, tmp_path / "data.bin").read_bytes() == DATA


def test_second_process_is_turned_away(server, tmp_path):
    """While one process holds the target, another gets a clear line at once."""
    with (
        lock_file(tmp_path / "data.bin", "downloading"),
        pytest.raises(UserError, match="another process is downloading"),
    ):
        fetch(server, tmp_path / "data.bin")
    assert os.listdir(tmp_path) == []
