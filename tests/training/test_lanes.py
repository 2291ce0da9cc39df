"""Commands side by side: their order, their logs, what a failure and Ctrl-C leave, and the time left."""

import io
import json
import os
import re
import signal
import sys
import threading
import time

import pytest

from training import lanes
from training.lanes import Lanes, Stage, last_step, ready, remaining
from videodata.errors import UserError

SCRIPT = """
import sys, time
def main(argv):
    what, *rest = argv
    print("begins", what, "torch" in sys.modules)
    if what == "fail":
        from videodata.errors import UserError
        raise UserError("nothing here")
    if what == "write":
        open(rest[0], "a").write(rest[1])
    if what == "wait":
        open(rest[0], "w").close()
        time.sleep(600)
"""
LONGEST = 300  # seconds until a process runs, on the busiest machine


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a script of its own, looked at often."""
    (tmp_path / "little_script.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lanes, "POLL", 0.02)
    return tmp_path


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: what a shell starts in the background (`pytest &`) ignores it from birth."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stage(name, *words, **options):
    return Stage(name, ["little_script.py", *map(str, words)], **options)


def run(folder, *stages, ended=lambda stage: None, count=2):
    Lanes(folder, folder / "log", stages, count).run(ended)


def test_commands_run_in_their_order_with_a_log_each(folder, capsys):
    """What waits for another one comes after it; the log shows the command as a user would type it."""
    path, done = folder / "text", []
    stages = [
        stage("second thing", "write", path, "b", after=("first",)),
        stage("first", "write", path, "a"),
        stage("third", "write", path, "c", after=("second thing",)),
    ]
    run(folder, *stages, ended=lambda stage: done.append(stage.name) or f"{stage.name}: fine")
    assert path.read_text() == "abc" and done == ["first", "second thing", "third"]
    log = (folder / "log" / "second-thing.txt").read_text().splitlines()
    assert log[0] == f"python little_script.py write {path} b"
    assert log[1] == f"begins write {hasattr(os, 'fork')}"  # forked from a process that has torch, where one can
    assert log[2].endswith(" seconds of one core") and float(log[2].split()[0]) < 2
    assert "second thing: fine" in capsys.readouterr().out


def test_a_failure_is_one_line_and_calls_the_others_off(folder):
    """It names the log; what still runs is ended, what waits is never started."""
    waiting = stage("long", "wait", folder / "waits")
    with pytest.raises(UserError, match=r"wanted to go wrong: error: nothing here \(all of it: .*go-wrong.txt\)"):
        run(folder, waiting, stage("go wrong", "fail"), stage("never", "write", folder / "no", "", after=("go wrong",)))
    assert waiting.process.exitcode not in (None, 0)  # ended, not waited for
    assert not (folder / "no").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all(folder, number, ctrl_c):
    """The processes are gone when it returns, and the signal's handler is the one of before."""
    waiting, before = stage("long", "wait", folder / "waits"), signal.getsignal(signal.SIGTERM)

    def interrupt():
        until = time.monotonic() + LONGEST
        while not (folder / "waits").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(folder, waiting)
    thread.join()
    assert (folder / "waits").exists()
    assert waiting.process.exitcode is not None and signal.getsignal(signal.SIGTERM) is before


def test_the_longest_way_starts_first(folder):
    """Not the longest command: what waits for it counts."""
    short, long = stage("a", seconds=1.0), stage("b", seconds=5.0)
    assert [s.name for s in ready([short, long])] == ["b", "a"]
    assert [s.name for s in ready([short, long, stage("c", seconds=9.0, after=("a",))])] == ["a", "b"]


def test_the_time_left_is_that_of_the_schedule():
    """Chains and lanes count, what is done does not; a circle is an error."""
    chain = [stage("a", seconds=2.0), stage("b", seconds=3.0, after=("a",)), stage("c", seconds=4.0)]
    assert remaining(chain, 1, 0.0) == 9 and remaining(chain, 2, 0.0) == 5 and remaining(chain, 9, 0.0) == 5
    chain[0].done = True
    assert remaining(chain, 2, 0.0) == 4
    with pytest.raises(UserError, match="wait for each other: a, b"):
        remaining([stage("a", after=("b",)), stage("b", after=("a",))], 2, 0.0)


def test_a_training_tells_how_far_it_is(tmp_path):
    """By the last whole row of its log, between the rows by the clock, and never back."""
    training = stage("t", seconds=100.0, run_dir=tmp_path, steps=50, started=0.0)
    assert training.share(10.0) == pytest.approx(0.1)
    rows = [json.dumps({"step": step, "text": "x" * 3000}) for step in (10, 20, 25)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 49, "lo')
    assert last_step(tmp_path / "metrics.jsonl") == 25 and last_step(tmp_path / "none.jsonl") == 0
    assert training.share(20.0) == pytest.approx(0.45)  # faster than the table says
    assert training.share(90.0) == pytest.approx(0.55)  # slower
    (tmp_path / "metrics.jsonl").unlink()
    assert training.share(91.0) >= 0.55 and training.share(1e6) < 1
    training.done = True
    assert training.share(0.0) == 1


def test_without_a_terminal_there_is_a_line_now_and_then(folder, capsys, monkeypatch):
    """With the share that is done, the time left and what is being done."""
    monkeypatch.setattr(lanes, "WORD_EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(folder, stage("do it", "write", folder / "text", "a", seconds=90.0))
    lines = capsys.readouterr().out.splitlines()
    first = re.fullmatch(r" *(\d+) %, \d+:\d\d left, do it", lines[0])  # of 90 s; a machine may be slow for a few
    assert len(lines) > 1 and first and int(first[1]) < 50
