"""Shards behind an address: what is asked of the server, what is kept of it, and what can go wrong on the way."""

import logging
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.range_server import RangeServer, range_server
from tests.videodata.tars import SIDE, SOURCE, make_shards
from videodata import UserError, open_clips, storage
from videodata.sources import open_source
from videodata.splits import declared_splits
from videodata.storage import divided, is_address, joined, open_storage
from videodata.tars import cache as shard_cache
from videodata.tars.cache import FOLDER, SIZE, ShardCache, cache_from_environment, name_of
from videodata.tars.index import INDEX_NAME
from videodata.tars.scan import index_shards

pytest.importorskip("fsspec", reason="tars behind an address need fsspec")
pytest.importorskip("aiohttp", reason="tars behind http need aiohttp")
SHARDS = "x-{000..002}.tar"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """No cache but a folder of the test, and no patience."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    for name in (FOLDER, SIZE, storage.TIMEOUT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = make_shards(tmp_path_factory.mktemp("data") / "tars", films=False)
    index_shards(folder, workers=1)
    return folder


@pytest.fixture
def server(folder):
    with range_server(folder) as running:
        yield running


def gets(server: RangeServer) -> list[str]:
    """Ranges of tars that were asked for."""
    return [asked for method, path, asked in server.requests if method == "GET" and path.endswith(".tar")]


def test_one_request_for_each_sample(server, folder):
    """Clips equal those of the files; a sample costs one range, of the frames that it needs."""
    clips, local = open_clips(f"{server.url}/{SHARDS}", 4, SIDE), open_clips(folder, 4, SIDE)
    for item in (0, 7, 11):
        assert (clips[(item, 5)] == local[(item, 5)]).all()
    assert len(gets(server)) == 3
    first, last = map(int, gets(server)[0].removeprefix("bytes=").split("-"))
    assert last + 1 - first == 4 * SIDE * SIDE * 3
    assert clips.fingerprint() == local.fingerprint()
    assert clips.provenance()["source"] == f"{server.url}/{SHARDS}"
    for split in ("train", "val", "test"):
        parts = [open_clips(place, 4, SIDE, split=split) for place in (f"{server.url}/{SHARDS}", folder)]
        assert parts[0].fingerprint() == parts[1].fingerprint()


def test_parts_at_an_address(tmp_path):
    """Folders called train and test below an address divide it, as they do here."""
    for part in ("train", "test"):
        make_shards(tmp_path / "tree" / "data" / part, 1, 2, films=False)
        index_shards(tmp_path / "tree" / "data" / part, workers=1)
    with range_server(tmp_path / "tree") as server:
        assert declared_splits(f"{server.url}/data") == ("train", "test")
        assert len(open_clips(f"{server.url}/data", 4, SIDE, split="test")) == 2


def test_an_index_of_what_lies_elsewhere(server, tmp_path, folder):
    """A server that cannot be written to: --out puts the index here, and it knows where the shards are."""
    prepare_data.main(["index", f"{server.url}/{SHARDS}", "--out", str(tmp_path / "my.index"), "--workers", "1"])
    source = open_source(tmp_path / "my.index")
    assert np.array_equal(source.read(3), SOURCE.read(3)) and source.base == server.url
    for again in (f"{server.url}/{SHARDS}", str(tmp_path / "my.index")):
        assert index_shards(again, str(tmp_path / "my.index"), workers=1).read == 0
    with pytest.raises(UserError, match=f"{server.url}: .*cannot be listed: name the shards"):
        index_shards(server.url, str(tmp_path / "my.index"), workers=1)


def test_an_address_that_can_be_written(folder):
    """Shards and index in fsspec's memory: listed, indexed, read."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for tar in folder.glob("*.tar"):
        memory.pipe(f"/bucket/deep/{tar.name}", tar.read_bytes())
    with pytest.raises(UserError, match="memory://bucket/deep: has no index, .*index memory://bucket/deep"):
        open_source("memory://bucket/deep")
    assert index_shards("memory://bucket/deep", workers=1).samples == 12
    assert index_shards("memory://bucket/deep/x-{000..001}.tar", workers=1).shards == 2
    for name in ("memory://bucket/deep", "memory://bucket/deep/x-001.tar", f"memory://bucket/deep/{INDEX_NAME}"):
        source = open_source(name)
        assert np.array_equal(source.read(len(source) - 1), SOURCE.read(7 if "001" in name else 11))


def test_what_may_pass_is_tried_again(server, caplog):
    """A busy server, an answer that breaks off, one that hangs: the sample comes all the same."""
    source = open_source(f"{server.url}/{SHARDS}")
    server.faults = [("status", 503), ("cut", 100), ("status", 429)]
    assert np.array_equal(source.read(3), SOURCE.read(3))
    assert caplog.text.count("next try in") == 3 and "status 503" in caplog.text


def test_a_server_that_hangs(server, monkeypatch, caplog):
    """It gets VIDEOGEN_TIMEOUT seconds."""
    monkeypatch.setenv(storage.TIMEOUT, "0.3")
    source = open_source(f"{server.url}/{SHARDS}")
    server.faults = [("hang", 1.5)]
    assert np.array_equal(source.read(3), SOURCE.read(3))
    assert "next try" in caplog.text
    monkeypatch.setenv(storage.TIMEOUT, "soon")
    with pytest.raises(UserError, match="VIDEOGEN_TIMEOUT=soon: must be"):
        open_source(f"{server.url}/{SHARDS}")


def test_what_does_not_pass_is_one_line(server, tmp_path, folder):
    """Refused, gone, unreachable, without ranges: one line each; when that is mended, the same source goes on."""
    address = f"{server.url}/{SHARDS}"
    source = open_source(address)
    server.faults = [("status", 403)]
    with pytest.raises(UserError, match=r"x-000.tar: refused \(status 403\); check it and your rights"):
        source.read(0)
    server.faults = [("status", 404)]
    with pytest.raises(UserError, match="x-000.tar: no such file"):
        source.read(0)
    server.ranges = False
    with pytest.raises(UserError, match="does not send parts of files"):
        source.read(0)
    server.ranges = True
    server.faults = [("status", 500)] * storage.TRIES
    with pytest.raises(UserError, match=r"cannot be reached 5 times \(status 500\); run the same command again"):
        source.read(0)
    assert np.array_equal(source.read(0), SOURCE.read(0))
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="x-000.tar: cannot be reached 5 times"):
        open_storage(server.url).read("x-000.tar", 0, 10)
    with pytest.raises(UserError, match="shards.index: cannot be reached 5 times"):  # no word of a missing index
        open_source(address)
    with range_server(folder, port):
        assert np.array_equal(source.read(1), SOURCE.read(1))


def test_a_shard_that_changed_on_the_server(tmp_path):
    """Another size or tag than in the index, before and while it is read, is one line."""
    folder = make_shards(tmp_path / "tars", 1, 2, films=False)
    with range_server(folder) as server:
        index_shards(f"{server.url}/x-000.tar", str(folder / INDEX_NAME), workers=1)
        source = open_source(f"{server.url}/x-000.tar")
        source.read(0)
        os.utime(folder / "x-000.tar", (1, 1))
        with pytest.raises(UserError, match="x-000.tar: changed since it was indexed .its tag was"):
            open_source(f"{server.url}/x-000.tar").read(0)


def test_a_copy_of_the_index_that_is_damaged(tmp_path, monkeypatch):
    """It is fetched again; where the one on the server is damaged, its address is named."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    folder = make_shards(tmp_path / "tars", 1, 2, films=False)
    index_shards(folder, workers=1)
    with range_server(folder) as server:
        open_source(f"{server.url}/{INDEX_NAME}")
        (copy,) = (tmp_path / "cache").glob("*.index")
        copy.write_bytes(bytes(copy.stat().st_size))
        assert np.array_equal(open_source(f"{server.url}/{INDEX_NAME}").read(0), SOURCE.read(0))
        assert copy.read_bytes() == (folder / INDEX_NAME).read_bytes()
        (folder / INDEX_NAME).write_bytes(b"no index")
        with pytest.raises(UserError, match=f"{server.url}/{INDEX_NAME}: is no readable index of tar shards"):
            open_source(f"{server.url}/{INDEX_NAME}")


def wait_for(place: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not place.exists():
        assert time.monotonic() < deadline, f"{place} does not come"
        time.sleep(0.01)


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix in (".tar", ".tmp"))


def test_whole_shards_are_kept(server, tmp_path, monkeypatch):
    """After the first sample of a shard the shard comes, checked; then the server is not asked any more."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    source = open_source(f"{server.url}/{SHARDS}")
    assert np.array_equal(source.read(0), SOURCE.read(0))
    place = tmp_path / "cache" / name_of(source.index.shards[0])
    wait_for(place)
    asked = len(server.requests)
    for video in range(4):
        assert np.array_equal(source.read(video), SOURCE.read(video))
    again = open_source(f"{server.url}/{SHARDS}")
    again.read(2)
    assert gets(server)[asked:] == [] and len(cached(tmp_path / "cache")) == 1
    assert place.read_bytes() == (server.folder / "x-000.tar").read_bytes()


def test_the_room_is_bounded(server, folder, tmp_path, caplog):
    """The shard that was not used for longest goes; a shard that never fits is read in parts, with a warning."""
    shards, place = open_source(folder).index.shards, open_storage(server.url)
    cache = ShardCache(tmp_path / "cache", shards[0].bytes * 2 + 100)
    first, second, third = (tmp_path / "cache" / name_of(shard) for shard in shards)
    for number in (0, 1, 0, 2):
        cache.path(place, shards[number], wait=True)
        time.sleep(0.01)
    assert first.exists() and third.exists() and not second.exists()
    (tmp_path / "cache" / f".{name_of(shards[1])}.99999.tmp").write_bytes(b"left by a process that was killed")
    assert ShardCache(tmp_path / "cache", shards[0].bytes * 2 + 100).path(place, shards[1], wait=True) == second
    assert len(cached(tmp_path / "cache")) == 2
    small = ShardCache(tmp_path / "small", 1000)
    assert small.path(place, shards[0], wait=True) is None and small.path(place, shards[0], wait=True) is None
    assert caplog.text.count("has no room in it (1.0 kB in all); its samples are read from the storage") == 1
    assert cached(tmp_path / "small") == []


def test_a_full_disk_and_a_false_shard(server, folder, tmp_path, monkeypatch, caplog):
    """Neither leaves anything behind: the first is a warning, the second is one line."""
    shards, place = open_source(folder).index.shards, open_storage(server.url)
    with monkeypatch.context() as patch:
        patch.setattr(shard_cache, "fetch", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        cache = ShardCache(tmp_path / "cache", 10**9)
        assert cache.path(place, shards[0], wait=True) is None
    assert "no room left" in caplog.text and cached(tmp_path / "cache") == []
    false = replace(shards[1], sha256="0" * 64)
    with pytest.raises(UserError, match="changed since it was indexed"):
        cache.path(place, false, wait=True)
    assert cached(tmp_path / "cache") == []


def read_all(address: str, folder: str, number: int) -> None:
    os.environ[FOLDER] = folder
    logging.disable()
    source = open_source(address)
    for step in range(30):
        video = (step * 5 + number) % 12
        assert np.array_equal(source.read(video), SOURCE.read(video))


@pytest.mark.posix
def test_many_processes_share_it(server, folder, tmp_path):
    """Four processes read in another order each, with room for one shard and a half: all frames are right."""
    size = open_source(folder).index.shards[0].bytes * 3 // 2
    os.environ[SIZE] = str(size)
    try:
        context = multiprocessing.get_context("fork")
        open_source(f"{server.url}/{SHARDS}").read(0)  # a connection that the children must not use
        arguments = [(f"{server.url}/{SHARDS}", str(tmp_path / "cache"), number) for number in range(4)]
        children = [context.Process(target=read_all, args=each) for each in arguments]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0] * 4
    finally:
        del os.environ[SIZE]
    files = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar"]
    assert sum(path.stat().st_size for path in files) <= size


def test_settings_of_the_cache(monkeypatch, tmp_path):
    """Sizes as people write them; others are one line."""
    assert cache_from_environment() is None
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for text, size in (("50GB", 50 * 10**9), ("1.5 TB", 1500 * 10**9), ("7", 7), ("20M", 20 * 10**6)):
        monkeypatch.setenv(SIZE, text)
        assert cache_from_environment().size == size
    for text in ("much", "0GB", "-1GB", "5 XB"):
        monkeypatch.setenv(SIZE, text)
        with pytest.raises(UserError, match=f"VIDEOGEN_CACHE_SIZE={text}: must be a size such as 50GB"):
            cache_from_environment()


def test_addresses_keep_their_slashes(monkeypatch):
    """What is said about an address names it as it was given; a missing package is one line with its name."""
    assert is_address("s3://bucket/x") and not is_address("a/b://c") and not is_address("shapes:5")
    assert divided("s3://bucket/a/x.tar") == ("s3://bucket/a", "x.tar") and joined("s3://b", "x") == "s3://b/x"
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3://bucket/x", "s3://bucket/x-{000..999}.tar"):
        with pytest.raises(UserError, match=r"s3://bucket.*: needs another package \(pip install s3fs\)"):
            open_clips(name, split="train")
    with pytest.raises(UserError, match=r"nothing://a: .* no nothing://"):
        open_clips("nothing://a/x.tar")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"https://host/a: needs another package \(pip install fsspec aiohttp\)"):
        open_clips("https://host/a/x.tar")
