"""The data sets, from a web server to clips, with everything on the way that can go wrong."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import prepare_data
from tests.videodata.miniatures import MAKERS, miniature
from tests.videodata.tree_server import tree_server
from videodata import download, open_clips
from videodata.errors import UserError
from videodata.labels import classes_of

SMALL = ["--num_frames", "4", "--width", "16", "--height", "16", "--workers", "1"]


@pytest.fixture(autouse=True)
def ample_room(monkeypatch):
    """The published sizes are compared with the free space: 48 GB for one of the miniatures."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**15, 0, 10**15))


@pytest.fixture
def server():
    with tree_server() as running:
        yield running


@pytest.fixture(params=MAKERS)
def dataset(request, server, monkeypatch):
    """A data set in miniature, on the server."""
    made = miniature(request.param)
    server.files = dict(made.files)
    for target, name, value in made.patches:
        monkeypatch.setattr(target, name, value)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return made


def prepare(server, made, root: Path, *flags: str, form: str = "npy") -> None:
    command = [made.name, "--root", str(root), "--out", str(root / "out"), "--url_root", server.url]
    prepare_data.main([*command, "--format", form, *SMALL, *made.flags, *flags])


def prepare_part(server, made, root: Path, *flags: str) -> None:
    prepare(server, made, root, "--split", made.split, *flags)


def sidecar(root: Path, split: str) -> dict:
    return json.loads((root / "out" / f"{split}.json").read_text())


def assert_complete(made, root: Path) -> None:
    """The part is there with all its videos, and nothing is left of any interruption."""
    content = sidecar(root, made.split)
    assert [entry["id"] for entry in content["videos"]] == made.ids
    assert len(open_clips(root / "out", 4, 16, split=made.split)) >= len(made.ids)
    left = [path for path in root.rglob("*") if ".part" in path.name or ".lock" in path.name or "journal" in path.name]
    assert left == []


@pytest.mark.parametrize("form", ["npy", "hdf5", "frames"])
def test_from_the_server_to_clips(dataset, server, tmp_path, form, capsys):
    """All parts as arrays, one in other formats: its videos, their labels, the counts, the frames themselves."""
    prepare(server, dataset, tmp_path, "--split", "all" if form == "npy" else dataset.split, form=form)
    assert_complete(dataset, tmp_path)
    content = sidecar(tmp_path, dataset.split)
    assert content["dataset"] == dataset.name and content["licence"]
    found = {"published": len(dataset.ids), "found": len(dataset.ids)}
    if dataset.name == "kinetics600":
        found |= {"published": 2, "missing": ["ddddddddddd_000001_000011"]}
    assert found.items() <= content.items()
    labels = {entry["label"] for entry in content["videos"]}
    assert content["classes"] == sorted(label for label in labels if label)
    clips = open_clips(tmp_path / "out", 4, 16, split=dataset.split, dtype="uint8", windows="first")
    if dataset.name in ("ucf101", "kth", "kinetics600"):
        assert list(classes_of(clips)) == content["classes"]
    elif form != "frames":  # whose labels are the names of folders
        with pytest.raises(UserError, match="has no label"):
            classes_of(clips)
    assert clips[0].float().std(dim=(2, 3)).max() < 3  # the frames of a miniature have one brightness each
    assert f"{found['found']} of {found['published']} published videos" in capsys.readouterr().out


def test_interrupted_twice(dataset, server, tmp_path):
    """Each run ends at a cut connection with one line; the third has the rest of the same file sent, and completes."""
    size = len(server.files[dataset.archive])
    server.faults[dataset.archive] = [("cut", size // 3), *[("cut", 0)] * 4, ("cut", size // 3), *[("cut", 0)] * 4]
    for _ in range(2):
        with pytest.raises(UserError, match="run the (same )?command again"):
            prepare_part(server, dataset, tmp_path)
        assert not (tmp_path / "out").exists()
    prepare_part(server, dataset, tmp_path)
    assert_complete(dataset, tmp_path)
    ranges = [header for path, header in server.requests if path == dataset.archive]
    assert ranges[0] is None and ranges[-1] == f"bytes={2 * (size // 3)}-"


def test_a_server_that_lies_about_the_length(dataset, server, tmp_path):
    """More bytes announced than sent: one line, no archive under its name, and the next run is well."""
    server.faults[dataset.archive] = [("lie", 1000)] * 30
    with pytest.raises(UserError, match="gave up|offers"):
        prepare_part(server, dataset, tmp_path)
    assert not list(tmp_path.rglob(Path(dataset.archive).name)) and not (tmp_path / "out").exists()
    server.faults.clear()
    prepare_part(server, dataset, tmp_path)
    assert_complete(dataset, tmp_path)


def test_a_missing_file(dataset, server, tmp_path):
    """A 404 is one line with the address; when the file is there, the same command completes."""
    server.faults[dataset.archive] = [("status", 404)]
    with pytest.raises(UserError, match="status 404"):
        prepare_part(server, dataset, tmp_path)
    assert not (tmp_path / "out").exists()
    prepare_part(server, dataset, tmp_path)
    assert_complete(dataset, tmp_path)


def test_a_corrupt_member(dataset, server, tmp_path):
    """Damage inside the archive is noticed, by its own checksum or the published one, before anything is converted."""
    good = server.files[dataset.archive]
    middle = len(good) // 2
    server.files[dataset.archive] = good[:middle] + bytes([good[middle] ^ 0x55]) + good[middle + 1 :]
    with pytest.raises(UserError, match="damaged|SHA-256|cannot be extracted|CRC") as raised:
        prepare_part(server, dataset, tmp_path)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()
    for archive in tmp_path.rglob(Path(dataset.archive).name):
        archive.unlink()  # as the line says
    server.files[dataset.archive] = good
    prepare_part(server, dataset, tmp_path)
    assert_complete(dataset, tmp_path)


@pytest.mark.parametrize("dataset", [name for name in MAKERS if name != "moving_mnist"], indirect=True)
def test_a_member_that_would_land_outside(dataset, server, tmp_path, monkeypatch):
    """`../` in a member's name: the archive is refused as a whole, nothing is written outside."""
    good = server.files[dataset.archive]
    server.files[dataset.archive] = dataset.unsafe()
    with pytest.raises(UserError, match="would be written outside|SHA-256|offers"):
        prepare_part(server, dataset, tmp_path / "in")
    assert set(os.listdir(tmp_path)) <= {"in"} and not list(tmp_path.rglob("escaped*"))
    for archive in tmp_path.rglob(Path(dataset.archive).name):
        archive.unlink()
    server.files[dataset.archive] = good
    prepare_part(server, dataset, tmp_path / "in")
    assert_complete(dataset, tmp_path / "in")


@pytest.mark.posix
def test_no_room_while_downloading(dataset, server, tmp_path):
    """The disk refuses more bytes in the middle of the archive: one line; with room, the rest is fetched."""
    size = len(server.files[dataset.archive])
    import resource  # where there are limits

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(UserError, match="no room left"):
            prepare_part(server, dataset, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    prepare_part(server, dataset, tmp_path)
    assert_complete(dataset, tmp_path)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(dataset, server, tmp_path, monkeypatch):
    """Archive, unpacked files and result are compared with the free space."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 500))
    with pytest.raises(UserError, match="but 500 bytes are free"):
        prepare_part(server, dataset, tmp_path)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.part"))


def test_existing_videos_need_no_network(dataset, server, tmp_path):
    """Without the server, a second preparation in another format uses what is unpacked."""
    prepare_part(server, dataset, tmp_path)
    server.requests.clear()
    command = [dataset.name, "--root", str(tmp_path), "--out", str(tmp_path / "h5"), "--format", "hdf5", *SMALL]
    prepare_data.main([*command, "--split", dataset.split])
    assert server.requests == [] and (tmp_path / "h5" / dataset.split).is_dir()


@pytest.mark.parametrize("dataset", ["ucf101", "bair", "kinetics600"], indirect=True)
def test_shares_and_their_index(dataset, server, tmp_path):
    """Two shares, merged by an index alone, hold the same sequences as one run; a missing share is named."""
    prepare(server, dataset, tmp_path)
    (tmp_path / "out").rename(tmp_path / "whole")
    whole = open_clips(tmp_path / "whole" / "train.npy", 4, 16, dtype="uint8", windows="first")
    prepare(server, dataset, tmp_path, "--split", "train", "--shard", "2/2")
    with pytest.raises(UserError, match="run --shard 1/2"):
        prepare_data.main(["merge", str(tmp_path / "out")])
    prepare(server, dataset, tmp_path, "--split", "train", "--shard", "1/2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    prepare_data.main(["merge", str(tmp_path / "out")])
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert set(after) - set(before) == {tmp_path / "out" / "train.json"} and before.items() <= after.items()
    merged = open_clips(tmp_path / "out" / "train.json", 4, 16, dtype="uint8", windows="first")
    assert len(merged) == len(whole) > 1
    names = [(data.describe(index)["id"], data[index].sum()) for data in (whole,) for index in range(len(data))]
    assert names == [(merged.describe(index)["id"], merged[index].sum()) for index in range(len(merged))]


def test_shares_that_run_at_the_same_time(server, tmp_path, monkeypatch):
    """Two shares on one disk: one fetches and unpacks the archive, the other waits for it and uses it."""
    made = miniature("ucf101")
    server.files = dict(made.files)
    for target, name, value in made.patches:
        monkeypatch.setattr(target, name, value)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(prepare, server, made, tmp_path, "--shard", f"{number}/2") for number in (1, 2)]
        for run in runs:
            run.result()
    assert [path for path, _ in server.requests] == [made.archive]
    prepare_data.main(["merge", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "test.json").read_text())["videos"] == 2


def test_only_the_archives_of_the_classes(server, tmp_path):
    """--classes fetches the archives of these classes alone."""
    made = miniature("kinetics600")
    server.files = dict(made.files)
    prepare(server, made, tmp_path, "--split", "train", "--classes", "Playing Chess")
    archives = {path for path, _ in server.requests if "/train/" in path and path.endswith(".tar.gz")}
    assert archives == {"/kinetics/600/train/playing chess.tar.gz"}
    assert sidecar(tmp_path, "train")["classes"] == ["playing chess"]


def test_a_list_of_addresses_cannot_choose_other_folders(server, tmp_path):
    """A mirror's list whose addresses end in `..%2F` names is refused."""
    made = miniature("kinetics600")
    listing = b"https://example.org/..%2F..%2Fescaped.tar.gz\n"
    server.files = made.files | {"/kinetics/600/val/k600_val_path.txt": listing}
    with pytest.raises(UserError, match="does not end in the name of a file"):
        prepare_part(server, made, tmp_path / "in")
    assert os.listdir(tmp_path) == ["in"]
