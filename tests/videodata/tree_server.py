"""A loopback web server with a tree of files that cuts connections, lies about lengths and forgets files on demand."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager


class TreeServer(http.server.ThreadingHTTPServer):
    """files: content by path. faults: what happens to the next requests for a path, one entry each:
    ("cut", n) sends n bytes of the body, ("lie", n) declares n bytes more than there are,
    ("status", n) answers with it.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple[str, int]]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and Range

    @property
    def url(self) -> str:
        """Address of the root."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server: TreeServer = self.server
        path = urllib.parse.unquote(self.path)
        server.requests.append((path, self.headers.get("Range")))
        kind, number = server.faults.get(path, [("none", 0)])[0]
        if server.faults.get(path):
            server.faults[path].pop(0)
            server.faults = {path: faults for path, faults in server.faults.items() if faults}
        data = server.files.get(path)
        if kind == "status" or data is None:
            self._answer(number if kind == "status" else 404, {"Content-Length": "0"})
            return
        etag = f'"{len(data)}-{sum(data[:4096])}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") in (None, etag):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            total = len(data) + (number if kind == "lie" else 0)
            self._answer(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        body = data[start:]
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = str(len(body) + (number if kind == "lie" else 0))
        self._answer(206 if start else 200, headers)
        self.wfile.write(body[:number] if kind == "cut" else body)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def tree_server() -> Iterator[TreeServer]:
    """A running server."""
    server = TreeServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
