"""Program: decode videos for `decode_pool` and put the frames into shared memory. It needs neither torch nor a shell.

Usage: python -m videodata.decode_worker CONNECTION_FD MEMORY_FD SETTINGS_JSON
"""

import json
import mmap
import signal
import sys
from itertools import islice
from multiprocessing.connection import Connection

import numpy as np

from videodata.errors import UserError, VideoError
from videodata.video import iter_frames, probe

FREE_SLOT = b"free"


class FrameRing:
    """Slots of shared memory (slots, n, H, W, 3) uint8, filled in turn; the parent process says when one is free."""

    def __init__(self, connection: Connection, slots: np.ndarray) -> None:
        self._connection, self._slots = connection, slots
        self._free, self._turn, self._filled = len(slots), 0, 0
        self._tasks: list[dict] = []

    def next_task(self) -> dict:
        """Wait for the next video. Raises EOFError when there is none, or when the parent process is gone."""
        while not self._tasks:
            self._receive()
        return self._tasks.pop()

    def put(self, frame: np.ndarray) -> None:
        """Copy one frame (H, W, 3); waits while all slots are full."""
        while self._free == 0:
            self._receive()
        self._slots[self._turn, self._filled] = frame
        self._filled += 1
        if self._filled == self._slots.shape[1]:
            self.flush()

    def flush(self) -> None:
        """Hand over the slot that is being filled."""
        if self._filled:
            self._send({"frames": self._filled})
            self._free -= 1
            self._turn = (self._turn + 1) % len(self._slots)
            self._filled = 0

    def end(self, **outcome: object) -> None:
        """Say how the video ended."""
        self.flush()
        self._send({"end": outcome})

    def _send(self, message: dict) -> None:
        self._connection.send_bytes(json.dumps(message).encode())

    def _receive(self) -> None:
        message = self._connection.recv_bytes()
        if message == FREE_SLOT:
            self._free += 1
        else:
            self._tasks.append(json.loads(message))


def map_slots(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory of a file descriptor as uint8 array; all of it is taken at once, so that the use of memory is constant."""
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape)), flags=flags), np.uint8).reshape(shape)


def decode(
    path: str, ring: FrameRing, size: tuple[int, int], resize: str, stride: int, start: int = 0, stop: int | None = None
) -> None:
    """Every stride-th frame of one video into the ring, then the outcome: a damaged video says so at its end.

    start, stop: the stretch that is taken. One that reaches beyond the last frame is cut there, with a note.
    """
    frames, fps, error, note = 0, None, None, None
    try:
        rate = probe(path).fps / stride
        fps = f"{rate.numerator}/{rate.denominator}"
        # Damage is reported after the last frame, so whoever wants the rest of a damaged video has it by then.
        stretch = islice(iter_frames(path, size, resize), start, stop)
        for frame in stretch:
            if frames % stride == 0:
                ring.put(frame)
            frames += 1
        if stop is not None and start + frames < stop:
            note = f"frames {start} to {stop - 1} were asked for, the video has {frames} of these"
    except VideoError as problem:
        error = problem.reason
    except UserError as problem:
        error = str(problem)
    ring.end(frames=frames, fps=fps, error=error, note=note)


def main(connection_fd: str, memory_fd: str, settings_json: str) -> None:
    """Decode one video after another until the parent process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    settings = json.loads(settings_json)
    height, width = settings["size"]
    shape = (settings["slots"], settings["slot_frames"], height, width, 3)
    ring = FrameRing(Connection(int(connection_fd)), map_slots(int(memory_fd), shape))
    while True:
        decode(
            ring=ring, size=(height, width), resize=settings["resize"], stride=settings["stride"], **ring.next_task()
        )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (EOFError, BrokenPipeError, ConnectionResetError):  # no more work
        sys.exit(0)
