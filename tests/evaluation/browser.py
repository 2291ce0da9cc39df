"""A headless Chromium for tests, driven over a pipe by its DevTools protocol: it needs no package."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--autoplay-policy=no-user-gesture-required", "--hide-scrollbars", "--mute-audio", "--remote-debugging-pipe"),
)
LAUNCHER = """import os, sys
for descriptor, wanted in zip(sys.argv[1:3], (3, 4)):  # the browser reads 3 and writes 4
    os.dup2(int(descriptor), wanted)
    os.close(int(descriptor))
os.execv(sys.argv[3], sys.argv[3:])"""
SECONDS = 120  # for one answer; a loaded machine starts a browser slowly


def find_browser() -> str | None:
    """The Chromium that $CHROMIUM names; none is started unasked, because a busy machine plays videos too late."""
    return os.environ.get("CHROMIUM")


class Browser:
    """One page in a browser of its own. `requests` and `complaints` grow while it is open."""

    def __init__(self, program: str, profile: Path) -> None:
        self.requests: list[str] = []  # addresses that the page asked for
        self.complaints: list[str] = []  # console errors and warnings, exceptions, failed and blocked loads
        self._count, self._buffer, self._answers = 0, b"", {}
        import fcntl  # here, because Windows lacks it

        to_browser, from_browser = os.pipe(), os.pipe()
        kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (to_browser[0], from_browser[1])]
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *map(str, kept), *arguments],
            pass_fds=kept,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for descriptor in (*kept, to_browser[0], from_browser[1]):
            os.close(descriptor)
        self._out, self._in = to_browser[1], from_browser[0]
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in targets if item["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # the browser leaves when its pipe closes
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + SECONDS
        while self._count not in self._answers:
            self._read(end)
        answer = self._answers.pop(self._count)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def view(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and the colours that the reader prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, path: Path) -> None:
        """Open a file and wait until it has loaded."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never true in {seconds} s: {condition}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key, as a person would."""
        numbers = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        number = numbers[key] if len(key) > 1 else ord(key.upper())
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": number}
        typed = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def _read(self, end: float) -> None:
        ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"the browser did not answer within {SECONDS} s"
        data = os.read(self._in, 1 << 16)
        assert data, "the browser has left"
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message.get("params", {}))

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(details["args"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif event == "Network.loadingFailed" and not details.get("canceled"):
            self.complaints.append(f"load failed: {details['errorText']}")
