"""Tar shards of WebDataset: what is in them, films that are copied, addresses, shares, and kills."""

import io
import json
import os
import sys
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.test_folder_writer import content, decoder, prepare
from videodata import open_clips, read_video
from videodata.errors import UserError
from videodata.storage import Remote, StorageError
from videodata.stream_copy import copy_stretch
from videodata.tars.index import TEXTS, TarIndex
from videodata.tars.scan import index_shards
from videodata.tars.source import TarSource
from videodata.tars.writer import Packing, key_of

SMALL = ["--num_frames", "4", "--width", "32", "--height", "32", "--workers", "1", "--format", "tar"]
DRAWN = ["digits", "--count", "20", "--frames", "6", "--size", "16", "--num_frames", "4", "--format", "tar"]


def frames_of(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """A square that moves over noise, uint8 (T, H, W, 3)."""
    frames = np.random.default_rng(seed).integers(0, 40, (count, size, size, 3), np.uint8)
    for index in range(count):
        frames[index, 4:12, index % (size - 8) : index % (size - 8) + 8] = (40 * seed + 200) % 256
    return frames


def encoded(path: Path, frames: np.ndarray, key_every: int = 4, b_frames: int = 0, **flags: str) -> Path:
    """H.264 with a key frame every so many frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    parameters = f"keyint={key_every}:min-keyint={key_every}:scenecut=0:bframes={b_frames}" + flags.pop("more", "")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001), width=width, height=height)
        stream.pix_fmt, stream.options = "yuv420p", {"x264-params": parameters, "preset": "veryfast", **flags}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}


def facts(index: TarIndex) -> list[tuple]:
    """All that an index says about its samples."""
    numbers = ("offset", "bytes", "frames", "height", "width", "hash")
    return [
        (
            index.id(row), index.fps(row), *(index.text(name, row) for name in TEXTS),
            *(int(index.columns[name][row]) for name in numbers),
        )
        for row in range(len(index))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Three films of two classes: one is an odd size, one has a dot in its name."""
    root = tmp_path_factory.mktemp("films")
    encoded(root / "run" / "a.mp4", frames_of(9, 1))
    encoded(root / "walk" / "b.x.mkv", frames_of(8, 2))
    encoded(root / "walk" / "c.mp4", frames_of(7, 3, 48))
    return root


@pytest.fixture(scope="module")
def packed(films, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    prepare_data.main(["folder", str(films), "--out", str(out), *SMALL])
    return out


def test_members_of_a_shard(packed, films):
    """One key per video with film, class and facts; headers without times and owners."""
    shard = packed / "shard-000000.tar"
    with tarfile.open(shard) as opened:
        for info in opened:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
    found = members(shard)
    keys = ["run/a", "walk/b%2Ex", "walk/c"]
    assert list(found) == [f"{key}.{suffix}" for key in keys for suffix in ("mp4", "cls", "json")]
    assert [found[f"{key}.cls"] for key in keys] == [b"0", b"1", b"1"]
    assert json.loads(found["walk/b%2Ex.json"]) == {
        "id": "walk/b.x", "label": "walk", "group": "walk/b.x", "frames": 8, "fps": "30000/1001"
    }  # fmt: skip
    assert found["run/a.mp4"] == (films / "run" / "a.mp4").read_bytes()  # wanted as it is, and so it is
    assert json.loads((packed.parent / "out.json").read_text())["content"] == "tar"


def test_a_film_that_is_copied_keeps_its_frames(packed, films):
    """Of another container the packets are copied; another size is encoded anew."""
    source = TarSource(packed)
    assert np.array_equal(source.read(0), read_video(films / "run" / "a.mp4")[0])
    assert np.array_equal(source.read(1), read_video(films / "walk" / "b.x.mkv")[0])
    small = read_video(films / "walk" / "c.mp4", size=32, resize="squeeze")[0]
    error = source.read(2).astype(float) - small
    assert source.size(2) == (32, 32) and error.any() and abs(error.mean()) < 1


def test_the_index_is_that_of_the_reader(packed):
    """Indexing the shards again finds the same samples, at the same bytes."""
    written = facts(TarIndex.open(packed / "shards.index"))
    index_shards(packed, str(packed.parent / "again.index"), workers=1)
    assert written == facts(TarIndex.open(packed.parent / "again.index"))


def test_webdataset_reads_them(packed):
    """The package itself groups and decodes the members."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    data = webdataset.WebDataset(str(packed / "shard-000000.tar"), shardshuffle=False, empty_check=False).decode()
    samples = list(data)
    assert [sample["__key__"] for sample in samples] == ["run/a", "walk/b%2Ex", "walk/c"]
    assert [sample["cls"] for sample in samples] == [0, 1, 1] and samples[0]["json"]["label"] == "run"


def test_frames_as_arrays_and_captions(films, tmp_path):
    """--members npy stores the pixels; a csv gives captions, and the parts that it declares."""
    listing = films / "list.csv"
    listing.write_text("path,text,split\nrun/a.mp4,a square runs,train\nwalk/c.mp4,two. squares,val\n")
    prepare_data.main(["folder", str(listing), "--out", str(tmp_path / "out"), *SMALL, "--members", "npy"])
    listing.unlink()
    found = members(tmp_path / "out" / "shard-000000.tar")
    assert list(found) == [f"{key}.{suffix}" for key in ("run/a", "walk/c") for suffix in ("npy", "json", "txt")]
    pixels = np.load(io.BytesIO(found["run/a.npy"]), allow_pickle=False)
    assert np.array_equal(pixels, read_video(films / "run" / "a.mp4")[0]) and found["walk/c.txt"] == b"two. squares"
    source = TarSource(tmp_path / "out")
    assert np.array_equal(source.read(0), pixels) and source.fps(0) == Fraction(30000, 1001)
    assert [source.label(index) for index in range(2)] == ["a square runs", "two. squares"]
    assert source.splits() == {"train": [0], "val": [1]}
    index_shards(tmp_path / "out", str(tmp_path / "again.index"), workers=1)
    assert facts(source.index) == facts(TarIndex.open(tmp_path / "again.index"))


@pytest.mark.parametrize("more", ["", ":open-gop=1"])
def test_which_cuts_are_copied(tmp_path, more):
    """From a key frame on, and nothing that is stored between others; all others are refused, and leave nothing."""
    film = encoded(tmp_path / "film.mp4", frames_of(24), key_every=6, b_frames=2, more=":b-adapt=0" + more)
    frames = read_video(film)[0]
    target = tmp_path / "cut.mp4"
    for start, stop, expected in ((0, 24, True), (6, 12, not more), (12, 24, not more), (5, 12, False), (6, 8, False)):
        assert copy_stretch(film, start, frames[start:stop], target) is expected, (start, stop)
        assert target.exists() is expected
        if expected:
            assert np.array_equal(read_video(target)[0], frames[start:stop])
            target.unlink()
    assert not copy_stretch(film, 0, frames[:, :16, :16], target)
    assert not copy_stretch(film, 0, frames[::-1], target) and not target.exists()


@pytest.mark.posix
def test_killed_in_the_middle_of_a_shard(tmp_path):
    """Finished shards stay, the open one is written again: the same bytes, the index too."""
    packing = Packing("npy", shard_size=6000)
    prepare(tmp_path / "whole" / "out", "tar", packing=packing)
    assert len(list((tmp_path / "whole" / "out").glob("*.tar"))) == 3
    for kill_at in (3, 12, 30):
        out = tmp_path / str(kill_at) / "out"
        child = os.fork()
        if not child:
            try:
                prepare(out, "tar", packing=packing, decode=decoder(kill_at))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not out.exists()
        prepare(out, "tar", packing=packing)
        assert content(out) == content(tmp_path / "whole" / "out")
    with pytest.raises(UserError, match="shard_size 6000, now 7000.*--restart"):
        prepare(out, "tar", packing=replace(packing, shard_size=7000))


def test_a_kill_after_the_last_shard(tmp_path, monkeypatch):
    """Between the index of all shards and the name of the folder nothing is lost."""
    prepare(tmp_path / "whole" / "out", "tar", packing=Packing("npy", 5000))
    with monkeypatch.context() as patch:
        patch.setattr("videodata.folder_writer.replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "cut" / "out", "tar", packing=Packing("npy", 5000))
    prepare(tmp_path / "cut" / "out", "tar", packing=Packing("npy", 5000))
    assert content(tmp_path / "cut" / "out") == content(tmp_path / "whole" / "out")


def test_shares_become_one_index(tmp_path):
    """Merged, the shards of three shares are the videos of the unshared run in its order, members and classes too."""
    flags = ["--split", "train", "--members", "npy", "--shard_size", "8kB"]
    prepare_data.main([*DRAWN, *flags, "--out", str(tmp_path / "whole")])
    for number in (3, 1, 2):
        prepare_data.main([*DRAWN, *flags, "--out", str(tmp_path / "out"), "--shard", f"{number}/3"])
    prepare_data.main(["merge", str(tmp_path / "out")])
    whole, merged = (TarSource(tmp_path / name) for name in ("whole/train", "out/train.index"))
    assert [merged.id(index) for index in range(len(merged))] == [whole.id(index) for index in range(len(whole))]
    assert all(np.array_equal(merged.read(index), whole.read(index)) for index in range(len(whole)))
    clips = [open_clips(tmp_path / name, 4, 16, split="val", windows="first") for name in ("whole", "out")]
    assert len(whole) == 16 and clips[0].provenance()["ids"] == clips[1].provenance()["ids"] != []
    both = [
        {name: data for shard in sorted(folder.rglob("*.tar")) for name, data in members(shard).items()}
        for folder in (tmp_path / "whole", tmp_path / "out")
    ]
    assert both[0] == both[1]


def test_an_address(tmp_path, monkeypatch):
    """Finished shards are sent and removed here; after a failure the same command sends the rest, at last the index."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.chdir(tmp_path)
    flags = ["--split", "train", "--members", "npy", "--shard_size", "8kB"]
    prepare_data.main([*DRAWN, *flags, "--out", "here"])
    command = [*DRAWN, *flags, "--out", "memory://bucket/data"]
    sent, write = [], Remote.write

    def fails_once(self: Remote, name: str, file: Path) -> None:
        sent.append(name)
        if len(sent) == 3:
            raise StorageError("memory://bucket/data/train: cannot be reached")
        write(self, name, file)

    monkeypatch.setattr(Remote, "write", fails_once)
    with pytest.raises(UserError, match="cannot be reached"):
        prepare_data.main(command)
    assert not memory.exists("/bucket/data/train/shards.index")
    prepare_data.main(command)
    assert not list((tmp_path / "data.upload").rglob("*.tar"))
    assert sent[:2] == ["shard-000000.tar", "shard-000001.tar"] and sent[3] == "shard-000002.tar"
    names = sorted(path.rpartition("/")[2] for path in memory.ls("/bucket/data/train", detail=False))
    assert names == sorted(path.name for path in (tmp_path / "here" / "train").iterdir())
    for name in names:
        assert memory.cat(f"/bucket/data/train/{name}") == (tmp_path / "here" / "train" / name).read_bytes()
    assert json.loads(memory.cat("/bucket/data/train.json"))["content"] == "tar"
    there = TarSource("memory://bucket/data/train")
    assert np.array_equal(there.read(5), TarSource("here/train").read(5))
    count = len(sent)
    prepare_data.main(command)
    assert len(sent) == count  # complete: nothing is sent again


def test_shares_at_an_address(tmp_path, monkeypatch):
    """The merged index is sent beside the folders of the shares, and opens them all."""
    memory = pytest.importorskip("fsspec", reason="fsspec is not installed").filesystem("memory")
    memory.store.clear()
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        prepare_data.main(
            [*DRAWN, "--split", "val", "--members", "npy", "--out", "memory://b/d", "--shard", f"{number}/2"]
        )
    prepare_data.main(["merge", "memory://b/d"])
    source = TarSource("memory://b/d/val.index")
    assert len(source) == 2 and source.read(1).shape == (6, 16, 16, 3)


def test_addresses_at_which_nothing_can_be_written(tmp_path, monkeypatch):
    """One that names no place, or whose package is missing, is refused before anything is made here."""
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for out, line in (("s3://", "names no place"), ("s3:///", "names no place"), ("s3://b/d", "pip install s3fs")):
        with pytest.raises(UserError, match=line):
            prepare_data.main([*DRAWN, "--out", out])
    assert not list(tmp_path.iterdir())


def test_an_address_of_folders_that_are_not_there_yet(tmp_path, monkeypatch):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    monkeypatch.chdir(tmp_path)
    prepare_data.main([*DRAWN, "--split", "val", "--members", "npy", "--out", f"{tmp_path.as_uri()}/new/data"])
    assert TarSource(f"{tmp_path.as_uri()}/new/data/val").read(0).shape == (6, 16, 16, 3)


def test_flags_of_tars_alone(tmp_path):
    for flags in (["--members", "npy"], ["--shard_size", "1MB"], []):
        out = str(tmp_path / "out") if flags else "memory://bucket/data"
        with pytest.raises(UserError, match="go with --format tar"):
            prepare_data.main([*DRAWN[:-1], "npy", "--out", out, *flags])


def test_keys():
    """No dot in the last part, no part that is hidden or leads elsewhere, no two alike."""
    names = ["a/b", "a.x/b", "a/b.c", "../b", ".a/b", "/a/b", "a/.b", "a/b%2Ec", "a/b.", "con/b"]
    keys = [key_of(name) for name in names]
    assert keys[:3] == ["a/b", "a.x/b", "a/b%2Ec"] and len(set(keys)) >= len(names) - 1
    for key in keys:
        assert "." not in key.rpartition("/")[2] and not key.startswith("/")
        assert not any(part.startswith(".") for part in key.split("/"))
