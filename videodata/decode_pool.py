"""Decode many videos in several processes; the frames come back in the order of the videos, in bounded memory.

Each worker has a ring of slots in memory that it shares with this process. A worker that is ahead stops when its ring
is full, so the memory depends on neither the number nor the length of the videos, and frames are never pickled.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from pathlib import Path

import numpy as np

from videodata.decode_worker import FREE_SLOT, map_slots
from videodata.errors import UserError

RING_BYTES = 64 << 20  # per worker: a few seconds of 320x240, so that workers seldom wait for their turn
SLOT_BYTES = 1 << 20
LEAST_SLOTS = 4


@dataclass(frozen=True)
class Frames:
    """Some frames of the current video, uint8 (n, H, W, 3) RGB; valid until the next item is asked for."""

    pixels: np.ndarray


@dataclass(frozen=True)
class End:
    """The current video is complete; `error` says what is wrong with it."""

    frames: int  # decoded, before the stride
    fps: str | None  # of the frames that were kept, as a fraction
    error: str | None
    note: str | None = None  # what is odd about it, though it can be used


class DecodePool:
    """Worker processes for one list of videos. Use as a context manager.

    size (height, width) and resize are those of `iter_frames`; every stride-th frame is kept. stretches: first frame
    and the one after the last of each video, None for its end; all of it by default.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        resize: str = "squeeze",
        stride: int = 1,
        workers: int = 1,
        stretches: Sequence[tuple[int, int | None]] | None = None,
    ) -> None:
        self._paths = paths
        self._stretches = stretches or [(0, None)] * len(paths)
        self._next = 0
        self._waiting: dict[int, deque] = {}  # video -> what arrived for it and was not given out yet
        frame_bytes = size[0] * size[1] * 3
        slot_frames = max(1, SLOT_BYTES // frame_bytes)
        slots = max(LEAST_SLOTS, RING_BYTES // (slot_frames * frame_bytes))
        self._settings = {
            "size": list(size), "resize": resize, "stride": stride, "slots": slots, "slot_frames": slot_frames
        }  # fmt: skip
        self._count = max(1, min(workers, len(paths)))
        self._workers: list[_Worker] = []
        self._resources = ExitStack()

    def __enter__(self) -> "DecodePool":
        with self._resources:
            for _ in range(self._count):
                worker = _Worker(self._settings)
                self._resources.callback(worker.stop)
                self._workers.append(worker)
                self._give_task(worker)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def __iter__(self) -> Iterator[Frames | End]:
        """Frames and then End for the first video, then the second, and so on. Raises UserError when a worker dies."""
        for video in range(len(self._paths)):
            arrived = self._waiting.setdefault(video, deque())
            while True:
                while not arrived:
                    self._receive()
                item, worker = arrived.popleft()
                yield item
                if isinstance(item, End):
                    break
                worker.free_slot()
            del self._waiting[video]

    def _give_task(self, worker: "_Worker") -> None:
        if self._next < len(self._paths):
            worker.video = self._next
            start, stop = self._stretches[self._next]
            worker.send({"path": str(self._paths[self._next]), "start": start, "stop": stop})
            self._next += 1

    def _receive(self) -> None:
        for connection in wait([worker.connection for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.connection is connection)
            try:
                message = worker.receive()
            except (EOFError, ConnectionResetError) as error:
                raise UserError(
                    f"{self._paths[worker.video]}: the process that decodes it died ({worker.exit_status()}); "
                    "run the same command again with fewer --workers, or move this file away"
                ) from error
            self._waiting.setdefault(worker.video, deque()).append((message, worker))
            if isinstance(message, End):
                self._give_task(worker)


class _Worker:
    """One decoding process, its connection and its ring of slots."""

    def __init__(self, settings: dict) -> None:
        self.video = -1
        height, width = settings["size"]
        shape = (settings["slots"], settings["slot_frames"], height, width, 3)
        memory = _memory_file(int(np.prod(shape)))
        self.connection, theirs = Pipe()
        try:
            self._slots = map_slots(memory, shape)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "videodata.decode_worker",
                    str(theirs.fileno()),
                    str(memory),
                    json.dumps(settings),
                ],
                pass_fds=[theirs.fileno(), memory],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        finally:
            theirs.close()
            os.close(memory)
        self._turn = 0

    def send(self, task: dict) -> None:
        self._send_bytes(json.dumps(task).encode())

    def free_slot(self) -> None:
        """Tell the worker that the oldest slot it handed over can be filled again."""
        self._send_bytes(FREE_SLOT)

    def receive(self) -> Frames | End:
        """The next message. Raises EOFError when the process has died."""
        message = json.loads(self.connection.recv_bytes())
        if "end" in message:
            return End(**message["end"])
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        return Frames(slot[: message["frames"]])

    def exit_status(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def stop(self) -> None:
        """End the process; it holds nothing that must be saved."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _send_bytes(self, message: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: the next receive says so and names the video
            self.connection.send_bytes(message)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # Keep freed pictures for the next frame: giving them back to the kernel each time costs a sixth of the decoding.
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    return {**os.environ, **allocator, "PYTHONPATH": path}


def _memory_file(size: int) -> int:
    """Descriptor of `size` bytes of memory that have no name, so that nothing is left behind whoever is killed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frames", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
