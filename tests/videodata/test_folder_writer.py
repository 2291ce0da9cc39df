"""Folders of shards, frames and films: complete or absent, the same after any kill, and one line on a full disk."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from videodata import folder_writer, open_clips
from videodata.decode import End, Frames
from videodata.errors import UserError
from videodata.prepare import FORMATS, SequenceSettings, decode_source, prepare_videos
from videodata.shapes import Shapes
from videodata.tars.writer import Packing, TarWriter
from videodata.video_folder import InputVideo

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = SequenceSettings(num_frames=4, height=16, width=16)
LENGTHS = (5, 3, 9, 4, 70, 2, 6)  # those with fewer than four frames are left out
FOLDERS = [form for form in FORMATS if form != "npy"]


def videos() -> list[InputVideo]:
    return [InputVideo(Path("none"), f"c/v{k}", "c", f"g{k}", stop=n, stamp="1") for k, n in enumerate(LENGTHS)]


def decoder(kill_at: int | None = None):
    """Noise frames in blocks of three; video 3 breaks at its end. kill_at: the process ends there, without a word."""

    @contextmanager
    def decode(rest, settings, workers):
        yield blocks(rest)

    def blocks(rest):
        given = 0
        for video in rest:
            rng = np.random.default_rng(int(video.id[-1]))
            for first in range(0, video.stop, 3):
                if given == kill_at:
                    os._exit(9)
                given += 1
                count = min(3, video.stop - first)
                yield Frames(rng.integers(0, 256, (count, 16, 16, 3), np.uint8))
            yield End(video.stop, "25/1", "broken at its end" if video.id == "c/v3" else None)

    return decode


def prepare(path: Path, form: str, **options):
    return prepare_videos(videos(), path, SETTINGS, form, **({"decode": decoder()} | options))


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in root.parent.rglob("*") if path.is_file()]
    return {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def small_shards(monkeypatch):
    """Two videos to a shard."""
    make = folder_writer.ShardWriter
    for form, layout in (("hdf5", "chunked"), ("river", "river")):
        monkeypatch.setitem(FORMATS, form, lambda *a, x=layout: make(*a, layout=x, videos_per_shard=2))
    tars = {"packing": Packing(shard_size=4000)}
    monkeypatch.setitem(FORMATS, "tar", lambda *a, packing: TarWriter(*a, **tars))


@pytest.mark.parametrize("form", FOLDERS)
def test_what_is_written(tmp_path, form, small_shards):
    """Whole videos with label and group; short and broken ones leave nothing behind but their reasons."""
    summary = prepare(tmp_path / "out", form)
    clips = open_clips(tmp_path / "out", 4, 16, windows="first", dtype="uint8")
    assert [clips.source.length(index) for index in range(len(clips))] == [5, 9, 70, 6]
    if form not in ("videos", "tar"):
        expected = np.random.default_rng(4).integers(0, 256, (3, 16, 16, 3), np.uint8)
        assert np.array_equal(clips.source.read(2, 0, 3), expected)
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert [entry["id"] for entry in sidecar["videos"]] == ["c/v0", "c/v2", "c/v4", "c/v6"]
    assert {entry["id"]: entry["status"] for entry in sidecar["skipped"]} == {
        "c/v1": "short", "c/v3": "bad", "c/v5": "short"
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["out", "out.json"] and summary.sequences == 4
    assert "4 of 7 videos, 1 unreadable, 2 too short" in summary.lines(SETTINGS)[0]
    if form in ("hdf5", "river"):
        assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("form", ["frames", "videos"])
def test_names_that_some_systems_refuse(tmp_path, form):
    """Labels and names become files that can be copied to Windows; the side-car has the names as they were."""
    names = ["con/v0", "12:30/v1.", "aux/nul"]
    listed = [InputVideo(Path("none"), name, name.split("/")[0], name, stop=5, stamp="1") for name in names]
    noise = np.zeros((5, 16, 16, 3), np.uint8)

    @contextmanager
    def decode(rest, settings, workers):
        yield (item for _ in rest for item in (Frames(noise), End(5, "25/1", None)))

    prepare_videos(listed, tmp_path / "out", SETTINGS, form, decode=decode)
    made = {path.relative_to(tmp_path / "out").with_suffix("").as_posix() for path in (tmp_path / "out").glob("*/*")}
    assert made == {"%63on/v0", "12%3A30/v1%2E" if form == "frames" else "12%3A30/v1.", "%61ux/%6Eul"}
    assert [video["id"] for video in json.loads((tmp_path / "out.json").read_text())["videos"]] == names


@pytest.mark.parametrize("form", FOLDERS)
@pytest.mark.posix
def test_killed_anywhere_ends_the_same(tmp_path, form, small_shards):
    """A process that ends without clean-up after any block, three times in a row: the same files, byte for byte."""
    prepare(tmp_path / "whole" / "out", form)
    expected = content(tmp_path / "whole" / "out")
    for kill_at in (1, 4, 20, 36):
        out = tmp_path / str(kill_at) / "out"
        for _ in range(2):
            child = os.fork()
            if not child:
                try:
                    prepare(out, form, decode=decoder(kill_at))
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        prepare(out, form)
        assert content(out) == expected


def test_other_arguments_are_refused(tmp_path):
    """A folder that was begun or finished otherwise is not continued; one that is not ours is never touched."""
    prepare(tmp_path / "out", "frames")
    prepare(tmp_path / "out", "frames")  # finished: nothing to do
    with pytest.raises(UserError, match="content frames, now hdf5.*--restart"):
        prepare(tmp_path / "out", "hdf5")
    prepare(tmp_path / "out", "hdf5", restart=True)
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".hdf5"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for restart in (False, True):
        with pytest.raises(UserError, match="not made by this command"):
            prepare(tmp_path / "mine", "frames", restart=restart)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("form", ["npy", "frames", "videos", "tar"])
@pytest.mark.posix
def test_a_limit_in_the_middle_of_a_file(tmp_path, form):
    """No room for the next block: one line that says so and what to do; with room the run continues to the same end."""
    suffix = ".npy" if form == "npy" else ""
    prepare(tmp_path / "whole" / f"out{suffix}", form)
    out = tmp_path / "out" / f"out{suffix}"
    import resource  # where there are limits

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000 if form == "npy" else 700, hard))
    try:
        with pytest.raises(UserError, match="no room left|run the same command") as raised:
            prepare(out, form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value) and not out.exists()
    prepare(out, form)
    assert content(out) == content(tmp_path / "whole" / f"out{suffix}")


FULL_DISK = """
import subprocess, sys
from scripts.prepare_data import main
from videodata.errors import UserError
disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
for form in ("npy", "hdf5", "river", "frames"):
    size = "17m" if form in ("hdf5", "river") else "600k"
    flags = ["shapes", "--count", "24", "--frames", "16", "--size", "48", "--format", form, "--out", f"{disk}/{form}"]
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    try:
        main(flags)
    except UserError as error:
        print(form, "STOPPED", error)
    subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
    main(flags)
    subprocess.run(["rm", "-r", f"{disk}/{form}"], check=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, for a small file system of its own")
def test_a_full_disk(tmp_path):
    """A small file system fills up: one line for each format; enlarged, the same command completes."""
    own = ["unshare", "-rm"]
    if subprocess.run([*own, "mount", "-t", "tmpfs", "x", str(tmp_path)], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let users mount a file system of their own")
    command = [*own, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, (done.stdout, done.stderr)
    stopped = [line for line in done.stdout.splitlines() if "STOPPED" in line]
    assert [line.split()[0] for line in stopped] == ["npy", "hdf5", "river", "frames"]
    assert all("no room left" in line or "are free" in line for line in stopped)
    assert done.stdout.count("from 24 of 24 videos") == 4


def test_a_source_is_read_like_files():
    """The decoder of a source gives the frames of its videos, every stride-th, up to the limit."""
    source = Shapes(3, 10, 16)
    decode = decode_source(source)
    video = InputVideo(Path("none"), source.id(1), None, "g", stop=10, stamp="1", limit=7)
    with decode([video], SequenceSettings(2, 16, 16, stride=3), 1) as items:
        *blocks, end = items
    assert np.array_equal(np.concatenate([block.pixels for block in blocks]), source.read(1)[0:7:3])
    assert end == End(7, "4", None)
