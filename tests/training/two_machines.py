"""Agents of torchrun on this machine, each in the place of a machine of its own, for the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

# A store that outlives its machines has the addresses of processes that are gone: each meeting gets one of its own.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Agent:
    """An agent of torchrun with its processes; what they say is in a file."""

    def __init__(self, log: Path, flags: Sequence[str], command: Sequence[object], **variables: str) -> None:
        """flags: of torchrun. command: the script and its arguments."""
        self.log = log
        words = [sys.executable, "-m", "torch.distributed.run", *flags, *map(str, command)]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                words, env={**ENVIRONMENT, **variables}, stdout=file, stderr=subprocess.STDOUT
            )

    def listens_on(self, port: int) -> bool:
        """Whether it is the one where the others meet."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in connections)

    def pull_the_plug(self) -> None:
        """All its processes end at once, without a word."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> str:
        """Wait for its end, with status 0; gives what was said."""
        status = self.process.wait(timeout=800)
        text = self.log.read_text(errors="replace")
        assert status == 0, text[-3000:]
        return text


@contextmanager
def machines() -> Iterator[list[Agent]]:
    """A list for agents that do not outlive the block."""
    started: list[Agent] = []
    try:
        yield started
    finally:
        for agent in started:
            if agent.process.poll() is None:
                agent.pull_the_plug()


def meeting(port: int) -> list[str]:
    """The flags of docs/cluster.md, for two machines of two processes."""
    return [
        *("--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--max-restarts", "3"),
    ]
