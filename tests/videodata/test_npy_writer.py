"""The growing .npy: same bytes however often it was interrupted."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from videodata.errors import UserError
from videodata.journal import is_finished
from videodata.npy import NpyWriter, allocated_array, npy_header

SHAPE = (3, 4, 5, 3)
ARGUMENTS = {"num_frames": 3, "width": 5, "height": 4}


def video(index: int) -> np.ndarray:
    """Frames (n, 4, 5, 3) of made-up video `index`: 0 to 10 of them."""
    return np.random.default_rng(index).integers(0, 256, (index * 7 % 11, 4, 5, 3), dtype=np.uint8)


def add(writer: NpyWriter, index: int, status: str = "ok") -> None:
    frames = video(index)
    for start in range(0, len(frames), 2):
        writer.write(frames[start : start + 2])
    name = f"v{index}"
    reason = None if status == "ok" else "torn"
    writer.end_video(id=name, label=None, group=name, fps="25/1", frames=len(frames), status=status, reason=reason)


def write_all(path, count: int = 8, **options) -> bytes:
    with NpyWriter(path, SHAPE, ARGUMENTS, **options) as writer:
        for index in range(len(writer.entries), count):
            add(writer, index, "bad" if index == 5 else "ok")
        writer.finish({"format": "test"})
    return path.read_bytes() + path.with_suffix(".json").read_bytes()


def test_array_and_sidecar(tmp_path):
    """The array holds the whole sequences of the good videos in order, and the side-car says which is whose."""
    path = tmp_path / "made" / "x.npy"
    path.parent.mkdir()
    write_all(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    good = [i for i in range(8) if i != 5]
    expected = [video(i)[: len(video(i)) // 3 * 3].reshape(-1, *SHAPE) for i in good]
    np.testing.assert_array_equal(array, np.concatenate(expected))
    sidecar = json.loads(path.with_suffix(".json").read_text())
    for entry in sidecar["videos"]:
        first, count = entry["first_sequence"], entry["sequences"]
        np.testing.assert_array_equal(array[first : first + count], expected[good.index(int(entry["id"][1:]))])
    assert {entry["id"] for entry in sidecar["skipped"]} == {"v5", "v0"}
    assert sidecar["prepare"] == ARGUMENTS
    assert sorted(os.listdir(path.parent)) == ["x.json", "x.npy"]


@pytest.mark.parametrize("count", [0, 9, 10**6, 10**11])
def test_header_length_does_not_depend_on_the_count(tmp_path, count):
    """N can be rewritten in place, and numpy reads every header."""
    header = npy_header(count, (50, 240, 320, 3))
    assert len(header) == len(npy_header(0, (50, 240, 320, 3))) == 128
    (tmp_path / "h.npy").write_bytes(header)
    with open(tmp_path / "h.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((count, 50, 240, 320, 3), False, np.dtype("uint8"))


@pytest.mark.parametrize("debris", [b"", b"\0" * 1000, b"\xff" * 7])
@pytest.mark.parametrize("torn", ["", '{"id": "v4", "lab', "null\n"])
def test_interrupted_file_is_continued(tmp_path, debris, torn):
    """Bytes after the last journalled video and a torn journal line are dropped; the result has the same bytes."""
    whole = write_all(tmp_path / "whole.npy")
    path = tmp_path / "x.npy"
    with NpyWriter(path, SHAPE, ARGUMENTS) as writer:
        for index in range(4):
            add(writer, index)
        writer.write(video(4)[:2])
    with open(f"{path}.partial", "ab") as file:
        file.write(debris)
    with open(f"{path}.journal.jsonl", "a") as file:
        file.write(torn)
    assert not path.exists()
    assert write_all(path) == whole


def test_damaged_tail_is_made_again(tmp_path):
    """When the last video on disk does not have its checksum (a power cut), it is written again."""
    whole = write_all(tmp_path / "whole.npy")
    path = tmp_path / "x.npy"
    with NpyWriter(path, SHAPE, ARGUMENTS) as writer:
        for index in range(5):
            add(writer, index)
        end = writer.bytes_written
    with open(f"{path}.partial", "rb+") as file:
        file.truncate(128 + end - 10)
    with NpyWriter(path, SHAPE, ARGUMENTS) as writer:
        assert len(writer.entries) == 4
    assert write_all(path) == whole


def test_other_arguments_are_refused_until_restart(tmp_path):
    """A partial file begun with other arguments is neither mixed nor lost silently."""
    path = tmp_path / "x.npy"
    with NpyWriter(path, (2, 4, 5, 3), {**ARGUMENTS, "num_frames": 2}) as writer:
        add(writer, 3)
    with pytest.raises(UserError, match=r"num_frames 2, now 3.*--restart"), NpyWriter(path, SHAPE, ARGUMENTS):
        pass
    assert write_all(path, restart=True) == write_all(tmp_path / "whole.npy")


def test_finished_file_is_recognised(tmp_path):
    """A finished file of the same arguments needs no work; one of others is not overwritten."""
    path = tmp_path / "x.npy"
    assert not is_finished(path, ARGUMENTS)
    write_all(path)
    assert is_finished(path, ARGUMENTS)
    with pytest.raises(UserError, match="width 5, now 7.*--restart"):
        is_finished(path, {**ARGUMENTS, "width": 7})
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="side-car.*--restart"):
        is_finished(path, ARGUMENTS)


def test_one_writer_per_file(tmp_path):
    """A second writer gets a clear line at once, and the first is not disturbed."""
    path = tmp_path / "x.npy"
    with NpyWriter(path, SHAPE, ARGUMENTS) as writer:
        add(writer, 3)
        with pytest.raises(UserError, match="another process is writing .*x.npy"), NpyWriter(path, SHAPE, ARGUMENTS):
            pass
    assert write_all(path)


@pytest.mark.posix
def test_disk_full_keeps_a_state_that_continues(tmp_path):
    """A write that fails for want of room is one line; with room again the bytes are those of an undisturbed run."""
    whole = write_all(tmp_path / "whole.npy", count=30)
    path = tmp_path / "x.npy"
    import resource  # where there are limits

    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, old_limit[1]))
        with pytest.raises(UserError, match="no room left .*free some space and run the same command again"):
            write_all(path, count=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert not path.exists()
    assert write_all(path, count=30) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.videodata.test_npy_writer import write_all
system_call, calls = sys.argv[2], int(sys.argv[3])
real = getattr(os, system_call)
def counted(*arguments):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, system_call, counted)
write_all(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "number"), [("write", 0), ("write", 9), ("fsync", 2), ("ftruncate", 1), ("replace", 0), ("replace", 1)]
)
@pytest.mark.posix
def test_kill_at_a_system_call(tmp_path, call, number):
    """kill -9 in front of any system call of the writer, also those of the last steps, loses and doubles nothing."""
    whole = write_all(tmp_path / "whole.npy")
    path = tmp_path / "x.npy"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), call, str(number)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL and not path.exists()
    assert write_all(path) == whole
    assert sorted(os.listdir(tmp_path)) == ["whole.json", "whole.npy", "x.json", "x.npy"]


@pytest.mark.parametrize("system", ["has it", "refuses it", "lacks it"])
def test_an_array_with_its_room_on_every_system(tmp_path, monkeypatch, system):
    """Where the system cannot set bytes aside, zeros are written: the array is the same."""

    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if system == "refuses it":
        monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    elif system == "lacks it" and hasattr(os, "posix_fallocate"):
        monkeypatch.delattr(os, "posix_fallocate")
    path, shape = tmp_path / "a.npy", (3, 1 << 20)
    array = allocated_array(path, np.int16, shape)
    array[1] = 5
    array.flush()
    stored = np.load(path)
    assert stored.shape == shape and stored.dtype == np.int16
    assert (stored[1] == 5).all() and not stored[[0, 2]].any()
