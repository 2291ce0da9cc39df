"""Shares of a preparation that an engine calls: the bytes of the unshared run, whoever is killed in the middle."""

import hashlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from scripts import prepare_data
from tests.videodata.local_ray import local_ray
from videodata import open_clips
from videodata.datasets import engines
from videodata.datasets.prepare import prepare_share
from videodata.errors import UserError

SHARES = 4
PACKAGES = {"local": "videodata", "ray": "ray", "dask": "distributed", "spark": "pyspark"}
SMALL = ["shapes", "--count", "9", "--frames", "5", "--size", "16", "--num_frames", "4", "--format", "npy", "--out"]


def sequences_of(out: Path) -> str:
    """Digest of all sequences, in the order of the videos."""
    parts = sorted(out.glob("clips*.npy"))
    return hashlib.sha256(np.concatenate([np.load(part, mmap_mode="r") for part in parts]).tobytes()).hexdigest()


def ids_of(path: Path) -> list[str]:
    data = open_clips(path, 4, 16, windows="first", dtype="uint8")
    return [data.describe(index)["id"] for index in range(len(data))]


def one_after_the_other(call, count, cores):
    """An engine without processes."""
    return (call(number) for number in range(1, count + 1))


def test_a_share_is_a_function_that_can_be_pickled(tmp_path):
    """From a text or a list of words, relative to a folder that it is told; the other flags of sharing are its own."""
    words = [*SMALL, "out", "--engine", "ray", "--shares", "3"]
    one, two = (pickle.loads(pickle.dumps(partial(prepare_share, given, folder=str(tmp_path)))) for given in
                (words, " ".join(words)))  # fmt: skip
    before = os.getcwd()
    assert "clips-0001-of-0002.npy" in one(1, 2)[0] and "clips-0002-of-0002.npy" in two(2, 2)[0]
    assert "complete already" not in "".join(one(1, 2)) and os.getcwd() == before
    prepare_data.main(["merge", str(tmp_path / "out")])
    prepare_data.main([*SMALL, str(tmp_path / "whole")])
    assert sequences_of(tmp_path / "out") == sequences_of(tmp_path / "whole")
    assert ids_of(tmp_path / "out" / "clips.json") == ids_of(tmp_path / "whole" / "clips.npy")


def test_threads_of_one_process(tmp_path):
    """Shares of one folder at once, those of another after them; each writes where it should."""
    before = os.getcwd()
    work = [(folder, k) for folder in ("a", "b") for k in (1, 2, 3)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda task: prepare_share([*SMALL, "out"], task[1], 3, tmp_path / task[0]), work))
    assert os.getcwd() == before
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npy")} == {
        f"{folder}/out/clips-{k:04d}-of-0003.npy" for folder, k in work
    }


def test_a_share_that_cannot_be_done_says_so(tmp_path):
    """An error is one that the caller can catch: never the end of an engine's process."""
    for words, message in (
        ("shapes --count 9", "no such command"),
        ("merge out", "merge: is no work that shares divide"),
        (["folder", str(tmp_path / "none"), "--out", "out"], "no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_share(words, 1, 2, tmp_path)
    with pytest.raises(UserError, match="cannot be entered on"):
        prepare_share([*SMALL, "out"], 1, 2, tmp_path / "none")
    with pytest.raises(UserError, match="--shard 3/2"):
        prepare_share([*SMALL, "out"], 3, 2, tmp_path)
    with pytest.raises(UserError, match=r"videos are no work for 99 shares; ask for fewer shares"):
        prepare_share([*SMALL, "out"], 1, 99, tmp_path)


@pytest.mark.parametrize("flags", [["--shard", "1/2", "--shares", "2"], ["--dry_run", "--shares", "2"], []])
def test_flags_that_do_not_go_together(tmp_path, flags):
    with pytest.raises(UserError, match="--engine ray does all of --shares N"):
        prepare_data.main([*SMALL, str(tmp_path / "out"), "--engine", "ray", *flags])


@pytest.mark.parametrize("engine", ["ray", "dask", "spark"])
def test_an_engine_that_is_not_installed(tmp_path, monkeypatch, engine):
    """One line that names the command, before anything is written."""
    monkeypatch.setitem(sys.modules, PACKAGES[engine], None)
    with pytest.raises(UserError, match=f"--engine {engine} needs the package {PACKAGES[engine]} .*: pip install "):
        prepare_data.main([*SMALL, str(tmp_path / "out"), "--engine", engine, "--shares", "2"])
    assert not (tmp_path / "out").exists()


def test_one_share_fails_and_the_others_are_done(tmp_path, monkeypatch, capsys):
    """The first error is told, with its share; the same command does what is missing, and merges."""
    monkeypatch.setitem(engines.ENGINES, "local", one_after_the_other)
    command = [*SMALL, str(tmp_path / "out"), "--shares", "3"]
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "clips-0002-of-0003.json"
    mine.write_text("a file of the user")
    with pytest.raises(UserError, match=r"share 2 of 3: .*was not made by this command"):
        prepare_data.main(command)
    assert mine.read_text() == "a file of the user" and not (tmp_path / "out" / "clips.json").exists()
    mine.unlink()
    prepare_data.main(command)
    assert "clips.json: 3 parts, 9 videos, 9 items" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "clips.json").read_text())["videos"] == 9


class Killer(threading.Thread):
    """Kills the process that works on a share when the share is between its second video and its last but one."""

    def __init__(self, out: Path, videos: int) -> None:
        super().__init__(daemon=True)
        self.out, self.videos, self.done_then, self.over = out, videos, None, threading.Event()

    def run(self) -> None:
        while not self.over.is_set() and self.done_then is None:
            for journal in self.out.glob("*.journal.jsonl"):
                if 2 <= done_in(journal) < self.videos - 1:
                    self.kill_writer(journal)
                    return
            time.sleep(0.005)

    def kill_writer(self, journal: Path) -> None:
        for process in psutil.process_iter():
            try:
                if str(journal) not in [file.path for file in process.open_files()]:
                    continue
                process.suspend()  # so that it is in the middle now, too
                self.done_then = done_in(journal)
                process.send_signal(signal.SIGKILL)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


def done_in(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


@pytest.fixture
def started(request, monkeypatch):
    """An engine with its own small cluster, where it can be told to have one."""
    engine = request.param
    pytest.importorskip(PACKAGES[engine], reason=f"{PACKAGES[engine]} is not installed")
    monkeypatch.setattr(engines, "available_cores", lambda: SHARES)
    if engine != "ray":
        monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
        yield engine
        return
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with local_ray(SHARES):
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("started", ["ray", "dask", "spark"], indirect=True)
def test_a_pipeline_calls_the_function_itself(tmp_path, started):
    """As docs/cluster.md shows it: one call for each share, among whatever else an engine does."""
    command, root = " ".join([*SMALL, str(tmp_path / "out")]), str(Path(__file__).resolve().parents[2])
    if started == "ray":
        import ray

        share = ray.remote(prepare_share).options(num_cpus=1, max_retries=3)
        ray.get([share.remote(command, k, 3) for k in (1, 2, 3)])
    elif started == "dask":
        from distributed import Client

        with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            client.gather([client.submit(prepare_share, command, k, 3) for k in (1, 2, 3)])
    else:
        from pyspark import SparkConf, SparkContext

        settings = SparkConf().setMaster(f"local[{SHARES},4]")  # as below: Java keeps it for the next context
        settings.setExecutorEnv("PYTHONPATH", root)
        with SparkContext(conf=settings) as spark:
            spark.parallelize(range(1, 4), 3).foreach(lambda k: prepare_share(command, k, 3))
    prepare_data.main(["merge", str(tmp_path / "out")])
    prepare_data.main([*SMALL, str(tmp_path / "whole")])
    assert sequences_of(tmp_path / "out") == sequences_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.posix
@pytest.mark.timeout(600)
@pytest.mark.parametrize("started", engines.ENGINES, indirect=True)
def test_a_worker_is_killed_in_the_middle(tmp_path, started, capsys):
    """kill -9 of the process of one share: the cluster tries it again, this machine when it is told to; in the end
    there are the bytes of the unshared run.
    """
    count, out = 40, tmp_path / "out"
    words = ["shapes", "--count", str(count), "--frames", "48", "--size", "48", "--format", "npy", "--out"]
    command = [*words, str(out), "--engine", started, "--shares", str(SHARES)]
    killer = Killer(out, count // SHARES)
    killer.start()
    try:
        if started == "local":
            with pytest.raises(UserError, match="its processes died .*run the same command again"):
                prepare_data.main(command)
        else:
            prepare_data.main(command)
    finally:
        killer.over.set()
        killer.join()
    assert killer.done_then is not None and killer.done_then < count // SHARES
    if started == "local":
        prepare_data.main(command)
    assert f"{SHARES} parts, {count} videos" in capsys.readouterr().out
    prepare_data.main([*words, str(tmp_path / "whole")])
    assert sequences_of(out) == sequences_of(tmp_path / "whole")
    assert ids_of(out / "clips.json") == ids_of(tmp_path / "whole" / "clips.npy")
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"clips-{k:04d}-of-{SHARES:04d}.{suffix}" for k in range(1, SHARES + 1) for suffix in ("json", "npy")),
        "clips.json",
    ]
