"""A loopback web server of the files in a folder, with ranges and connections that stay open, as object storage has.

In a process of its own: python -m tests.videodata.range_server FOLDER, which prints its address.
"""

from __future__ import annotations

import http.server
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class RangeServer(http.server.ThreadingHTTPServer):
    """faults: what happens to the next GET requests of tars, one entry each: ("status", n) answers with it, ("hang", s)
    waits so many seconds before it answers, ("cut", n) sends n bytes and hangs up.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.ranges = folder, True
        self.faults: list[tuple[str, float]] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path and Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or else each small answer waits for the one before

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server: RangeServer = self.server
        path = urllib.parse.unquote(self.path)
        asked = self.headers.get("Range")
        server.requests.append((self.command, path, asked))
        fault, number = "none", 0.0
        if self.command == "GET" and path.endswith(".tar") and server.faults:
            fault, number = server.faults.pop(0)
        if fault == "hang":
            time.sleep(number)
        file = server.folder / path.lstrip("/")
        if fault == "status" or not file.is_file():
            self._answer(int(number) or 404, {}, b"")
            return
        found = file.stat()
        first, last, status = 0, found.st_size - 1, 200
        headers = {"ETag": f'"{found.st_size}-{found.st_mtime_ns}"', "Accept-Ranges": "bytes"}
        if asked and server.ranges:
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            first, last, status = int(start), min(int(end or last), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{found.st_size}"
        if self.command == "HEAD":
            self._answer(200, {**headers, "Content-Length": str(found.st_size)}, None)
            return
        with open(file, "rb") as opened:
            opened.seek(first)
            body = opened.read(last + 1 - first)
        if fault == "cut":
            headers["Content-Length"] = str(len(body))
            self.close_connection = True
            body = body[: int(number)]
        self._answer(status, headers, body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is not None and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            with suppress(ConnectionError):
                self.wfile.write(body)


@contextmanager
def range_server(folder: Path, port: int = 0) -> Iterator[RangeServer]:
    """A running server."""
    server = RangeServer(folder, port)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    alone = RangeServer(Path(sys.argv[1]))
    print(alone.url, flush=True)
    alone.serve_forever()
