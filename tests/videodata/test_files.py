"""Files are complete or absent, locked by one process, and listed in one way."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from evaluation.gallery.runs import read_series
from training.log import keep_rows
from videodata import files
from videodata.errors import UserError, VideoError, disk_errors
from videodata.files import (
    atomic_path,
    files_in_folder,
    holds_files,
    lock_file,
    parse_json,
    portable_name,
    read_json,
    remove_debris,
    replace,
    sha256_of,
    sole_path,
    write_file,
    write_json,
)
from videodata.journal import read_sidecar

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", ["files", "splits", "prepare", "datasets.prepare", "decode"])
def test_needs_no_torch(module):
    """Scripts that prepare, list or lock, and their --help, start without it."""
    code = (
        f"import sys, videodata.{module}, videodata.datasets; videodata.datasets.data_sets(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("before", ["", "videodata.encode, ", "videodata.splits, videodata.video, videodata.clips, "])
def test_names_of_the_package_are_functions(before):
    """Whatever was imported before; and the package alone brings neither numpy nor the codecs."""
    code = (
        f"import sys, {before}videodata; light = {before!r} or not {{'numpy', 'av', 'torch'}} & set(sys.modules); "
        "sys.exit(not (light and all(callable(getattr(videodata, name)) for name in videodata.__all__)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("content", ["text ü", "text ü".encode(), lambda file: file.write("text ü".encode())])
def test_a_file_has_what_was_written_and_its_hash(tmp_path, content):
    """Text, bytes, or a function; folders are made; the hash is that of the bytes."""
    path = tmp_path / "a" / "b.txt"
    assert write_file(path, content) == sha256_of(path) == hashlib.sha256("text ü".encode()).hexdigest()
    assert path.read_text(encoding="utf-8") == "text ü" and os.listdir(path.parent) == ["b.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    """Whatever goes wrong before the rename, the former content stays and nothing is left over."""
    path = tmp_path / "a.bin"
    write_file(path, b"old")

    def half(file) -> None:
        file.write(b"new")
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        write_file(path, half)
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.posix
def test_everything_is_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    """Bytes, then name, then folder: in this order, so that a power cut never leaves a name without content."""
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: steps.append(os.path.isdir(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(files.os, "replace", lambda a, b: steps.append("rename") or replace(a, b))
    write_file(tmp_path / "a.txt", "x")
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("x")
    assert steps == [False, "rename", True] * 2


class InUse(PermissionError):
    """What Windows says of a file that another process has open."""

    winerror = 32


@pytest.mark.parametrize("times", [1, 99])
def test_a_rename_waits_for_a_scanner_and_not_for_ever(tmp_path, monkeypatch, times):
    """A few tries, a little later each; any other refusal is an error at once."""
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    tries, pauses, rename = [], [], os.replace

    def refused(source, target, error=InUse):
        tries.append(source)
        if len(tries) <= times:
            raise error(13, "in use", str(target))
        rename(source, target)

    monkeypatch.setattr(files.time, "sleep", pauses.append)
    monkeypatch.setattr(files.os, "replace", refused)
    if times > 10:
        with pytest.raises(InUse):
            replace(tmp_path / "a", tmp_path / "b")
        assert pauses == list(files.PAUSES) and (tmp_path / "b").read_text() == "old"
    else:
        replace(tmp_path / "a", tmp_path / "b")
        assert len(pauses) == times and (tmp_path / "b").read_text() == "new"
    monkeypatch.setattr(files.os, "replace", lambda *paths: refused(*paths, error=PermissionError))
    pauses.clear(), tries.clear()
    with pytest.raises(PermissionError):
        replace(tmp_path / "b", tmp_path / "c")
    assert not pauses


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    """Also where the system renames no folder over another."""
    for name in ("new", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "new" / "a").write_text("a")
    (tmp_path / "full" / "b").write_text("b")
    with pytest.raises(OSError):
        replace(tmp_path / "new", tmp_path / "full")
    replace(tmp_path / "new", tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == ["a"] and os.listdir(tmp_path / "full") == ["b"]


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("playing guitar/a_b-1.mp4", "playing guitar/a_b-1.mp4"),
        ("con/Aux.mp4", "%63on/%41ux.mp4"),
        ("console/com10.mp4", "console/com10.mp4"),
        ("12:30:45 clip.mp4", "12%3A30%3A45 clip.mp4"),
        ("end./space /dots...mp4", "end%2E/space%20/dots...mp4"),
        ('what? "this"*|<that>\\', "what%3F %22this%22%2A%7C%3Cthat%3E%5C"),
        ("two\nlines/größe/日本", "two%0Alines/größe/日本"),
    ],
)
def test_names_that_every_system_can_have(name, portable):
    """What Windows refuses is written as in a URL; all else stays as it is, and the name can be had back."""
    assert portable_name(name) == portable == portable_name(portable)
    assert unquote(portable) == name


def test_a_path_of_more_than_260_characters(tmp_path):
    """Files, their locks and their debris, far down."""
    path = tmp_path.joinpath(*["deep" * 20] * 4, "a.json")
    with lock_file(path, "writing"):
        write_json(path, {"a": 1})
    assert len(str(path)) > 260 and read_json(path) == {"a": 1} and os.listdir(path.parent) == ["a.json"]
    assert remove_debris(path.parent) == []


def test_debris_of_a_killed_process_is_found(tmp_path):
    """What a kill left is removed by name; finished files stay."""
    code = (
        "import os, sys; from videodata.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], cwd=ROOT, check=False)
    write_file(tmp_path / "b.txt", "whole")
    left = [name for name in os.listdir(tmp_path) if name != "b.txt"]
    assert len(left) == 1 and remove_debris(tmp_path) == left
    assert os.listdir(tmp_path) == ["b.txt"]


def test_json(tmp_path):
    """Written whole; read as a dictionary or not at all."""
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "a": "ü",\n "b": 1\n}\n'
    write_json(tmp_path / "b.json", {"b": 1, "a": 2}, sort_keys=False)
    assert list(json.loads((tmp_path / "b.json").read_text())) == ["b", "a"]
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}
    (tmp_path / "c.json").write_text("[1]")
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "f.json").write_text('{"a": ' + "[" * 100_000)
    assert [read_json(tmp_path / f"{name}.json") for name in "cdef"] == [None] * 4


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL])
def test_a_name_that_a_disk_refuses_is_the_error_of_one_file(tmp_path, number):
    """EINVAL is what exFAT and NTFS say of `12:30`; the run goes on with the next file, which a full disk would end."""
    with pytest.raises(VideoError, match="a.mp4: cannot be written under this name"), disk_errors(tmp_path / "a.mp4"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(UserError, match="no room left") as raised, disk_errors(tmp_path / "a.mp4"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not isinstance(raised.value, VideoError)


def test_json_that_is_nested_too_deep(tmp_path):
    """It is no error of its own kind: a damaged side-car, a line that is passed over."""
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(deep)
    for name in ("a.json", "metrics.jsonl"):
        (tmp_path / name).write_text(f'{deep}\n{{"step": 1, "loss": 2.0}}\n')
    with pytest.raises(VideoError, match="a.json: is not valid JSON"):
        read_sidecar(tmp_path / "a.json")
    assert read_series(tmp_path / "metrics.jsonl") == {"loss": [(1.0, 2.0)]}
    keep_rows(tmp_path / "metrics.jsonl", 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_lock_is_held_by_one_and_given_back_by_the_dead(tmp_path):
    """The second process gets one line; a killed holder leaves a file that stops nobody."""
    with lock_file(tmp_path / "a", "writing"), pytest.raises(UserError, match="another process is writing"):  # noqa: SIM117
        with lock_file(tmp_path / "a", "writing"):
            pass
    assert os.listdir(tmp_path) == []
    code = (
        "import os, sys; from videodata.files import lock_file\n"
        "with lock_file(sys.argv[1], 'x'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, check=False)
    assert os.listdir(tmp_path) == ["a.lock"]
    with lock_file(tmp_path / "a", "writing"):
        pass


def test_listing(tmp_path, caplog):
    """Natural order, any case of the suffix, hidden names passed over, links followed once, others counted."""
    for name in ("b/2.mp4", "b/10.MP4", "a.mp4", ".hidden/x.mp4", "b/._2.mp4", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "b")
    found = [path.relative_to(tmp_path).as_posix() for path in files_in_folder(tmp_path, {".mp4"}, wanted="videos")]
    once = [name for name in found if not name.startswith("a")]
    assert found[0] == "a.mp4" and [Path(name).name for name in once] == ["2.mp4", "10.MP4"]
    assert "1 files that are not videos are left out (1 .txt)" in caplog.text
    assert files_in_folder(tmp_path, {".mp4"}, deep=False) == [tmp_path / "a.mp4"]
    assert files_in_folder(tmp_path / "a.mp4", {".mp4"}) == [tmp_path / "a.mp4"]
    assert holds_files(tmp_path, {".txt"}) and not holds_files(tmp_path, {".txt"}, deep=False)


def test_a_folder_that_cannot_be_opened_is_no_empty_folder(tmp_path, monkeypatch):
    """Missing or locked folders are one line: what they hold would be missing silently."""
    with pytest.raises(UserError, match="none: cannot be opened"):
        files_in_folder(tmp_path / "none", {".mp4"})
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match="locked: cannot be opened .Permission denied"):
        files_in_folder(tmp_path, {".mp4"})


@pytest.mark.posix
def test_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    """Only the process that took the lock holds it; the file may lie elsewhere than beside what it is for."""
    code = (
        "import os, sys, time; from videodata.files import lock_file\n"
        "with lock_file(sys.argv[1], 'x', lock=sys.argv[2]):\n"
        "    told, tell = os.pipe()\n"
        "    if os.fork(): os.read(told, 1), os.kill(os.getpid(), 9)\n"
        "    os.write(tell, b'x'), time.sleep(10), os._exit(0)"
    )
    lock = tmp_path / "inside.lock"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), str(lock)], check=False, cwd=ROOT)
    assert lock.exists()
    with lock_file(tmp_path / "a", "writing", lock=lock), pytest.raises(UserError, match="is writing .*a: wait"):  # noqa: SIM117
        with lock_file(tmp_path / "a", "writing", lock=lock):
            pass
    assert not lock.exists()


def test_a_large_file_is_written_by_one_process_and_leaves_no_debris(tmp_path):
    """What a killed process left of it goes, that of another file stays; a second process is refused."""
    for name in (".a.hdf5.123.tmp", ".b.hdf5.123.tmp"):
        (tmp_path / name).write_text("half")
    with sole_path(tmp_path / "a.hdf5") as temporary:
        temporary.write_text("whole")
        with pytest.raises(UserError, match="is writing .*a.hdf5: wait"), sole_path(tmp_path / "a.hdf5"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.hdf5.123.tmp", "a.hdf5"]


def test_no_empty_folders_are_left_of_what_was_refused(tmp_path):
    """Those that were there before stay; so do those that something was written to."""
    for using in (atomic_path, lambda path: lock_file(path, "writing"), sole_path):
        with pytest.raises(ZeroDivisionError), using(tmp_path / "new" / "er" / "a"):
            assert (tmp_path / "new" / "er").is_dir()
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []
    write_file(tmp_path / "kept" / "a", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "empty" / "b"):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "empty", "kept"]
