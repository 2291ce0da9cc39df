"""Two agents of torchrun on this machine play two machines: the same weights as from one, and one may come back."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.training import processes
from tests.training.runs import largest_difference, run, weights
from tests.training.tiny_run import GATE
from training import distributed
from training.checkpoint import load_checkpoint

SCRIPT = Path(__file__).parent / "tiny_run.py"
# A store that outlives its machines has the addresses of processes that are gone: each meeting gets one of its own.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Agent:
    """An agent of torchrun with its processes, in the place of a machine; what they say is in a file."""

    def __init__(self, log: Path, folder: Path, *flags: str, steps: int) -> None:
        self.log = log
        command = [sys.executable, "-m", "torch.distributed.run", *flags, str(SCRIPT), str(folder)]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [*command, "--steps", str(steps)], env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
            )

    def pull_the_plug(self) -> None:
        """All its processes end at once, without a word."""
        processes = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> str:
        status = self.process.wait(timeout=800)
        text = self.log.read_text(errors="replace")
        assert status == 0, text[-3000:]
        return text


def alone(folder: Path, steps: int) -> Path:
    """A run of four processes of one machine."""
    Agent(folder.with_suffix(".log"), folder, "--standalone", "--nproc-per-node", "4", steps=steps).finish()
    return folder


def meeting(port: int) -> list[str]:
    """The flags of docs/cluster.md, with two machines of two processes."""
    return [
        *("--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--max-restarts", "3"),
    ]


@pytest.fixture
def agents():
    """Started agents, which do not outlive the test."""
    started: list[Agent] = []
    yield started
    for agent in started:
        if agent.process.poll() is None:
            agent.pull_the_plug()


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_two_machines_of_two_processes_are_one_machine_of_four(tmp_path, agents):
    flags = meeting(free_port())
    for name in ("a", "b"):
        agents.append(Agent(tmp_path / f"{name}.log", tmp_path / "two", *flags, steps=12))
    texts = [agent.finish() for agent in agents]
    assert sum(text.count("finished 12") for text in texts) == 4
    assert "cpu, 4 processes" in "".join(texts)
    assert largest_difference(weights(tmp_path / "two"), weights(alone(tmp_path / "one", 12))) <= 1e-6


@pytest.mark.exhaustive
@pytest.mark.posix
@pytest.mark.timeout(900)
def test_a_machine_that_was_lost_comes_back(tmp_path, agents, monkeypatch):
    """Its agent is started again by the same command: all go on from the newest checkpoint, to the same weights."""
    steps, flags, run = 12, meeting(free_port()), tmp_path / "run"
    monkeypatch.setitem(ENVIRONMENT, GATE, str(tmp_path / "gate"))  # in the middle, for as long as it takes
    agents += [Agent(tmp_path / f"{name}.log", run, *flags, steps=steps) for name in ("host", "lost")]
    deadline = time.monotonic() + 600
    while not (run / "checkpoints" / "step-0000008.json").exists():
        assert time.monotonic() < deadline and agents[0].process.poll() is None, agents[0].log.read_text()[-3000:]
        time.sleep(0.02)
    # The host of the meeting must stay: it is the agent that could listen on the port.
    host = next(
        agent for agent in agents
        if any(found.status == psutil.CONN_LISTEN and found.laddr.port == int(flags[-3].rpartition(":")[2])
               for found in psutil.Process(agent.process.pid).net_connections("tcp"))
    )  # fmt: skip
    lost = next(agent for agent in agents if agent is not host)
    lost.pull_the_plug()
    (tmp_path / "gate").touch()
    assert load_checkpoint(run)["step"] == 8
    agents.append(Agent(tmp_path / "again.log", run, *flags, steps=steps))
    texts = [host.finish(), agents[-1].finish()]
    assert sum(text.count(f"finished {steps}") for text in texts) == 4
    continued = [int(step) for step in re.findall(r"continuing \S+ at step (\d+)", "".join(texts))]
    assert continued and set(continued) == {8}
    assert largest_difference(weights(run), weights(alone(tmp_path / "one", steps))) <= 1e-6


def train_on_own_disk(root: Path, steps: int) -> int:
    """A run whose processes have each a run folder of their own."""
    return run(root / f"machine{distributed.rank()}", steps=steps).step


def test_run_folders_that_are_not_shared(tmp_path):
    """A run starts with them; it continues when each machine has the newest checkpoint, and else stops at once."""
    assert processes.launch(train_on_own_disk, 2, tmp_path / "a", tmp_path, 4) == [4, 4]
    assert not (tmp_path / "machine1" / "checkpoints").exists()
    with pytest.raises(Exception, match="the processes see different checkpoints"):
        processes.launch(train_on_own_disk, 2, tmp_path / "b", tmp_path, 8)
    shutil.copytree(tmp_path / "machine0" / "checkpoints", tmp_path / "machine1" / "checkpoints")
    assert processes.launch(train_on_own_disk, 2, tmp_path / "c", tmp_path, 8) == [8, 8]
    processes.launch(lambda: run(tmp_path / "shared", steps=8).step, 2, tmp_path / "d")
    assert largest_difference(weights(tmp_path / "machine0"), weights(tmp_path / "shared")) == 0
