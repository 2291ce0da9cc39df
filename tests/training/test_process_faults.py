"""Faults of processes and machine: kills, signals, time limits, locks, launchers."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training import faults, processes, tiny_run
from tests.training.runs import run
from tests.training.tiny_gan import TinyClips
from training import cli, distributed
from training.checkpoint import load_checkpoint
from training.folder import open_run_folder
from videodata.errors import UserError

SCRIPT = Path(__file__).parent / "tiny_run.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class SlowClips(TinyClips):
    """Clips that take a while; from position 20 on for ever, after making the file `stuck`."""

    def __init__(self, stuck=None):
        super().__init__()
        self.stuck = stuck

    def __getitem__(self, key):
        if self.stuck and key[1] >= 20:
            self.stuck.touch()
            time.sleep(1000)
        time.sleep(0.02)
        return super().__getitem__(key)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Digest of twelve steps in one go."""
    return run(tmp_path_factory.mktemp("undisturbed"), save_every=4).digest


def start(folder, **changes):
    """A forked process that runs as a script does."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: cli.run(lambda _: print(run(folder, save_every=4, **changes).step), [])
    )
    process.start()
    return process


def rows(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=60):
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        *("kill_in_step@7", "kill_in_save@4", "kill_before_save@8", "kill_after_weights@8"),
        *("kill_in_save@8", "kill_before_manifest@8", "kill_after_save@8", "kill_after_save@12"),
    ],
)
@pytest.mark.posix
def test_killed_anywhere_the_same_command_ends_with_the_same_bits(tmp_path, undisturbed, monkeypatch, fault):
    """SIGKILL in a step or at any point of a save: the rerun removes debris and ends like an undisturbed run."""
    with monkeypatch.context() as patch:
        faults.install(fault, patch.setattr)
        process = start(tmp_path)
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert run(tmp_path, save_every=4).digest == undisturbed
    assert not list(tmp_path.rglob("*.tmp"))
    assert [json.loads(row)["step"] for row in rows(tmp_path)] == list(range(1, 13))


@pytest.mark.slow
def test_a_killed_script_continues(tmp_path, undisturbed):
    """The real command line, killed from outside after a log line and started again; a worker holds no lock."""
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    for line in process.stderr:
        if line.startswith("step 6/12"):
            process.kill()
            break
    process.wait()
    process.stderr.close()
    again = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "finished 12\n"
    assert f"final weights sha256={undisturbed}" in again.stderr.splitlines()[-2]  # then what was written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.posix
def test_a_signal_saves_and_leaves_with_status_0(tmp_path, undisturbed, name):
    """The step is finished and saved; the rerun ends with the same bits."""
    process = start(tmp_path, dataset=SlowClips(), workers=1)
    wait_for(lambda: len(rows(tmp_path)) >= 2)
    os.kill(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == 0
    stopped = load_checkpoint(tmp_path)["step"]
    assert 2 <= stopped < 12
    assert f"stopped after step {stopped} by {name}" in (tmp_path / "train.log").read_text()
    assert run(tmp_path, save_every=4).digest == undisturbed


@pytest.mark.slow
@pytest.mark.posix
def test_a_second_signal_ends_the_run_at_once(tmp_path, undisturbed):
    """When the step cannot be finished, the second signal need not wait for it; nothing is lost but the step."""
    process = start(tmp_path, dataset=SlowClips(tmp_path / "stuck"))
    wait_for((tmp_path / "stuck").exists)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
    assert run(tmp_path, save_every=4).digest == undisturbed


def test_the_time_limit_saves_and_stops(tmp_path, undisturbed):
    """A run out of time is unfinished but saved, and continues with the same bits."""
    stopped = run(tmp_path, save_every=4, max_minutes=1e-9)
    assert (stopped.finished, stopped.step, load_checkpoint(tmp_path)["step"]) == (False, 1, 1)
    assert run(tmp_path, save_every=4).digest == undisturbed


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """The second says so in one line; afterwards the folder is free."""
    with open_run_folder(tmp_path), pytest.raises(UserError, match="another process is training in"):
        run(tmp_path)
    assert run(tmp_path, steps=1).finished


def test_half_set_launcher_variables_are_named(monkeypatch):
    """RANK without WORLD_SIZE and so on is an error, never a silent single process."""
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not distributed.launched()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        distributed.launched()
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "two")
    with pytest.raises(UserError, match="RANK=two is not a number"):
        distributed.launched()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    assert not distributed.is_main()  # before there is a group, too


def test_a_port_in_use_is_one_line(monkeypatch):
    """The address is named, with what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = ("0", "1", "0", "127.0.0.1", str(taken.getsockname()[1]))
        for name, value in zip(distributed.LAUNCHER_VARIABLES, values, strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"cannot meet at 127.0.0.1:\d+ .*another port"):
            distributed.setup("cpu", timeout=5)


def two(folder, **changes):
    """The digest of a run of two processes."""
    digests = processes.launch(lambda: run(folder, save_every=4, **changes).digest, 2, folder / "launch")
    assert digests[0] == digests[1]
    (folder / "launch" / "rendezvous").unlink(missing_ok=True)
    return digests[0]


def torchrun(folder, fault, *options):
    """The tiny script as two processes under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.run(
        [*launcher, str(SCRIPT), str(folder)],
        env={**ENVIRONMENT, faults.VARIABLE: fault}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, monkeypatch, capfd):
    """Rank 1 gets SIGTERM in step 6: both leave after it with one checkpoint, and continue alike."""
    monkeypatch.setenv(faults.VARIABLE, "term_in_step@6:1")
    assert processes.launched(cli.run, 2, tiny_run.main, [str(tmp_path / "run")]) == [0, 0]
    assert capfd.readouterr().out.splitlines() == ["stopped 6"] * 2
    assert load_checkpoint(tmp_path / "run")["step"] == 6
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))) == 2
    assert two(tmp_path / "run") == two(tmp_path / "straight")


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(tmp_path):
    """Rank 0 dies after a save; the restarted processes continue from it and end with the same bits."""
    result = torchrun(tmp_path / "run", "exit_after_save@4:0", "--max-restarts", "1")
    assert result.returncode == 0, result.stderr[-2000:]
    digest = re.findall(r"final weights sha256=(\w+)", result.stderr)[-1]
    assert digest == two(tmp_path / "straight")


@pytest.mark.slow
def test_a_process_that_lost_its_peer_ends_by_itself(tmp_path, monkeypatch):
    """Rank 1 dies without a word: rank 0 gets an error within the timeout and nothing hangs."""
    faults.install("exit_in_step@3:1", monkeypatch.setattr)

    def go():
        try:
            run(tmp_path / "run", process_timeout=20)
        except RuntimeError as error:
            (tmp_path / "error").write_text(str(error))
            raise

    began = time.monotonic()
    with pytest.raises(Exception, match="process [01] terminated|Process [01] terminated"):
        processes.launch(go, 2, tmp_path / "launch")
    assert time.monotonic() - began < 200
    wait_for(lambda: (tmp_path / "error").exists(), 30)
    assert not multiprocessing.active_children()
