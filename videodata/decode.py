"""Decode many videos in several processes; the frames come back in the order of the videos, in bounded memory.

Each worker has a ring of slots in memory that it shares with the process that reads. A worker that is ahead stops when
its ring is full: memory depends on neither the number nor the length of the videos, and frames are never pickled.
First the reading side, `DecodePool`, then the program of a worker, which needs neither torch nor a shell:
`python -m videodata.decode CONNECTION_FD MEMORY_FD SETTINGS_JSON`. Where a process inherits no descriptors, as on
Windows, multiprocessing starts it and passes the connection and the memory on.
"""

import json
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from ctypes import Array
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np

from videodata.container import open_video
from videodata.errors import UserError, VideoError
from videodata.files import environment
from videodata.video import frames_of

RING_BYTES = 64 << 20  # per worker: a few seconds of 320x240, so that workers seldom wait for their turn
SLOT_BYTES = 4 << 20  # of frames that are handed over at a time: each costs both sides a message
LEAST_SLOTS = 4
ROUGH = 2  # frames that headers claim too many though nothing is missing
FREE_SLOT = b"free"  # the message that the oldest slot can be filled again; all others are JSON
# Keep freed pictures for the next frame: giving them back to the kernel each time costs a sixth of the decoding.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


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
                worker.send(FREE_SLOT)
            del self._waiting[video]

    def _give_task(self, worker: "_Worker") -> None:
        if self._next < len(self._paths):
            worker.video = self._next
            start, stop = self._stretches[self._next]
            worker.send(json.dumps({"path": str(self._paths[self._next]), "start": start, "stop": stop}).encode())
            self._next += 1

    def _receive(self) -> None:
        for connection in wait([worker.connection for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.connection is connection)
            try:
                message = worker.receive()
            except (EOFError, ConnectionResetError) as error:
                code = worker.process.wait()
                died = f"signal {-code}" if code < 0 else f"exit status {code}"
                raise UserError(
                    f"{self._paths[worker.video]}: the process that decodes it died ({died}); "
                    "run the same command again with fewer --workers, or move this file away"
                ) from error
            self._waiting.setdefault(worker.video, deque()).append((message, worker))
            if isinstance(message, End):
                self._give_task(worker)


class _Worker:
    """One decoding process, its connection and its ring of slots."""

    def __init__(self, settings: dict) -> None:
        self.video = -1
        start = _start_program if hasattr(os, "fork") else _start_spawned
        self.connection, theirs = Pipe()
        with theirs:
            self.process, memory = start(theirs, settings)
        self._slots = slots_in(memory, settings)
        self._turn = 0

    def send(self, message: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: the next receive says so and names the video
            self.connection.send_bytes(message)

    def receive(self) -> Frames | End:
        """The next message. Raises EOFError when the process has died."""
        message = json.loads(self.connection.recv_bytes())
        if "end" in message:
            return End(**message["end"])
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        return Frames(slot[: message["frames"]])

    def stop(self) -> None:
        """End the process; it holds nothing that must be saved."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _start_program(theirs: Connection, settings: dict) -> tuple[subprocess.Popen, mmap.mmap]:
    """A worker that inherits its connection and its memory."""
    descriptor = _memory_file(bytes_of(settings))
    try:
        program = [sys.executable, "-m", "videodata.decode"]
        process = subprocess.Popen(
            [*program, str(theirs.fileno()), str(descriptor), json.dumps(settings)],
            pass_fds=[theirs.fileno(), descriptor],
            stdin=subprocess.DEVNULL,
            env={**environment(), **ALLOCATOR},
        )
        # After the start: taking the memory takes as long as several videos, in which the worker imports.
        memory = map_memory(descriptor, bytes_of(settings))
    finally:
        os.close(descriptor)
    return process, memory


def _start_spawned(theirs: Connection, settings: dict) -> tuple["_Spawned", Array]:
    """The same for systems whose processes inherit no descriptors."""
    memory = multiprocessing.get_context("spawn").RawArray("B", bytes_of(settings))
    process = _Spawned(target=work, args=(theirs, memory, settings), daemon=True)
    process.start()
    return process, memory


class _Spawned(SpawnProcess):
    """A process of multiprocessing that is waited for like one of subprocess."""

    def wait(self) -> int:
        self.join()
        return self.exitcode


def _memory_file(size: int) -> int:
    """Descriptor of `size` bytes of memory that have no name, so that nothing is left behind whoever is killed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frames", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class FrameRing:
    """Slots of shared memory (slots, n, H, W, 3) uint8, filled in turn; the parent process says when one is free."""

    def __init__(self, connection: Connection, slots: np.ndarray) -> None:
        self._connection, self._slots = connection, slots
        self._free, self._turn, self._filled = len(slots), 0, 0
        self._tasks: list[dict] = []

    def next_task(self) -> dict:
        """The next video. Raises EOFError when there is none, or when the parent process is gone."""
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


def map_memory(descriptor: int, size: int) -> mmap.mmap:
    """Memory of a file descriptor; all of it is taken at once, so that the use of memory is constant."""
    return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def slots_in(memory: mmap.mmap | Array, settings: dict) -> np.ndarray:
    """Shared memory as slots (slots, n, H, W, 3) uint8."""
    height, width = settings["size"]
    return np.frombuffer(memory, np.uint8).reshape(settings["slots"], settings["slot_frames"], height, width, 3)


def bytes_of(settings: dict) -> int:
    """Of all slots."""
    return settings["slots"] * settings["slot_frames"] * settings["size"][0] * settings["size"][1] * 3


def decode(
    path: str, ring: FrameRing, size: tuple[int, int], resize: str, stride: int, start: int = 0, stop: int | None = None
) -> None:
    """Every stride-th frame of one video into the ring, then the outcome: a damaged video says so at its end.

    start, stop: the stretch that is taken. One that reaches beyond the last frame is cut there, with a note, and so is
    a file whose header promises more than it holds. Whatever goes wrong is the outcome of this video alone.
    """
    frames, fps, error, note = 0, None, None, None
    try:
        with open_video(path) as video:
            rate, promised = video.fps / stride, video.stream.frames or None  # as the header claims
            fps = f"{rate.numerator}/{rate.denominator}"
            wanted = range(start, sys.maxsize, stride)
            # Damage is reported after the last frame, so whoever wants the rest of a damaged video has it by then.
            for frame in islice(frames_of(video, size, resize, wanted=wanted), start, stop):
                if frame is not None:
                    ring.put(frame)
                frames += 1
        if stop is not None and start + frames < stop:
            note = f"frames {start} to {stop - 1} were asked for, the video has {frames} of these"
        if stop is None and promised is not None and start + frames < promised - ROUGH:
            note = f"its header says {promised} frames, {start + frames} can be decoded"
    except VideoError as problem:
        error = problem.reason
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent process is gone
        raise
    except UserError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001 - one file never ends a run
        error = f"cannot be decoded ({type(problem).__name__}: {problem})"
    ring.end(frames=frames, fps=fps, error=error, note=note)


def main(connection_fd: str, memory_fd: str, settings_json: str) -> None:
    """The program of a worker that inherits descriptors."""
    settings = json.loads(settings_json)
    work(Connection(int(connection_fd)), map_memory(int(memory_fd), bytes_of(settings)), settings)


def work(connection: Connection, memory: mmap.mmap | Array, settings: dict) -> None:
    """Decode one video after another until the parent process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    size = tuple(settings["size"])
    ring = FrameRing(connection, slots_in(memory, settings))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # no more work
        while True:
            decode(ring=ring, size=size, resize=settings["resize"], stride=settings["stride"], **ring.next_task())


if __name__ == "__main__":
    main(*sys.argv[1:])
