"""Runs on tar shards behind a server: killed and started again they end with the same bits, on one process or two."""

import signal

import pytest

from tests.training import faults, processes
from tests.training.runs import run
from tests.training.test_process_faults import start
from tests.videodata.range_server import range_server
from tests.videodata.tars import make_shards
from videodata import open_clips
from videodata.tars.cache import FOLDER
from videodata.tars.scan import index_shards


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Sixteen videos in eight shards behind a loopback server."""
    pytest.importorskip("aiohttp", reason="tars behind http need fsspec and aiohttp")
    folder = make_shards(tmp_path_factory.mktemp("data") / "tars", 8, 2, films=False)
    index_shards(folder, workers=1)
    with range_server(folder) as server:
        yield f"{server.url}/x-{{000..007}}.tar"


def clips(address):
    return open_clips(address, 4, 8, seed=5, flip=True)


@pytest.mark.slow
@pytest.mark.posix
def test_killed_and_resumed(tmp_path, address, monkeypatch):
    """SIGKILL in step 7, with a cache that it was filling; then the same command, with a worker."""
    straight = run(tmp_path / "straight", dataset=clips(address), save_every=4).digest
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        faults.install("kill_in_step@7", patch.setattr)
        process = start(tmp_path / "run", dataset=clips(address))
        process.join(120)
    assert process.exitcode == -signal.SIGKILL
    resumed = run(tmp_path / "run", dataset=clips(address), save_every=4, workers=1)
    assert resumed.digest == straight and resumed.step == 12


def two(folder, address):
    return processes.launch(lambda: run(folder, dataset=clips(address), save_every=4).digest, 2, folder / "launch")


@pytest.mark.slow
@pytest.mark.posix
def test_two_processes_killed_and_resumed(tmp_path, address, monkeypatch):
    """Both processes get SIGKILL in step 7."""
    straight = two(tmp_path / "straight", address)
    with monkeypatch.context() as patch:
        faults.install("kill_in_step@7", patch.setattr)
        with pytest.raises(Exception, match="SIGKILL|signal"):
            two(tmp_path / "run", address)
    (tmp_path / "run" / "launch" / "rendezvous").unlink(missing_ok=True)
    assert two(tmp_path / "run", address) == straight and straight[0] == straight[1]
