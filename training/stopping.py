"""When to leave early: signals and the time limit."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context in which the first signal asks the run to save and leave, and a second one ends it at once."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.reason: str | None = None
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes > 0 else float("inf")
        self._signalled = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @property
    def requested(self) -> bool:
        """Whether a signal came or the time is over."""
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason = "time limit"
        return self.reason is not None

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signalled = True
        self.reason = signal.Signals(number).name
