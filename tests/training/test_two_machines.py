"""Two agents of torchrun on this machine play two machines: the same weights as from one, and one may come back."""

import re
import shutil
import time
from pathlib import Path

import pytest

from tests.training import processes
from tests.training.processes import free_port
from tests.training.runs import largest_difference, run, weights
from tests.training.tiny_run import GATE
from tests.training.two_machines import Agent, machines, meeting
from training import distributed
from training.checkpoint import load_checkpoint

SCRIPT = Path(__file__).parent / "tiny_run.py"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights after a run of four processes of one machine."""
    folder = tmp_path_factory.mktemp("alone")
    Agent(folder / "log", ["--standalone", "--nproc-per-node", "4"], [SCRIPT, folder / "run"]).finish()
    return weights(folder / "run")


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_two_machines_of_two_processes_are_one_machine_of_four(tmp_path, alone):
    flags = meeting(free_port())
    with machines() as agents:
        agents += [Agent(tmp_path / name, flags, [SCRIPT, tmp_path / "two"]) for name in ("a", "b")]
        texts = [agent.finish() for agent in agents]
    assert sum(text.count("finished 12") for text in texts) == 4
    assert "cpu, 4 processes" in "".join(texts)
    assert largest_difference(weights(tmp_path / "two"), alone) <= 1e-6


@pytest.mark.exhaustive
@pytest.mark.posix
@pytest.mark.timeout(900)
def test_a_machine_that_was_lost_comes_back(tmp_path, alone):
    """Its agent is started again by the same command: all go on from the newest checkpoint, to the same weights."""
    port, folder, gate = free_port(), tmp_path / "run", tmp_path / "gate"
    with machines() as agents:

        def start(name: str) -> Agent:
            agents.append(Agent(tmp_path / name, meeting(port), [SCRIPT, folder], **{GATE: str(gate)}))
            return agents[-1]

        both = [start("first"), start("second")]
        deadline = time.monotonic() + 600
        while not (folder / "checkpoints" / "step-0000008.json").exists():  # here the gate stops them
            assert time.monotonic() < deadline and both[0].process.poll() is None, both[0].log.read_text()[-3000:]
            time.sleep(0.02)
        host, lost = sorted(both, key=lambda agent: not agent.listens_on(port))  # the place where they meet must stay
        lost.pull_the_plug()
        gate.touch()
        assert load_checkpoint(folder)["step"] == 8
        texts = [agent.finish() for agent in (start("again"), host)]
    assert sum(text.count("finished 12") for text in texts) == 4
    assert set(re.findall(r"continuing \S+ at step (\d+)", "".join(texts))) == {"8"}
    assert largest_difference(weights(folder), alone) <= 1e-6


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
