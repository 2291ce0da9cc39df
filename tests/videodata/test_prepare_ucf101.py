"""The documented command: every flag, every step that may be skipped, and the lines for what can go wrong."""

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import prepare_ucf101
from scripts import prepare_data
from videodata import archive, video_folder, write_video
from videodata.datasets import dataset, ucf101
from videodata.datasets.dataset import Place, read_split_file
from videodata.datasets.prepare import Job
from videodata.datasets.ucf101 import WholeUcf101
from videodata.errors import UserError
from videodata.prepare import SequenceSettings

ROOT = Path(__file__).resolve().parents[2]
SIZE = ["--num_frames", "4", "--width", "24", "--height", "16", "--workers", "1"]
NAMES = ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g10_c02", "HandstandPushups/v_HandStandPushups_g02_c01")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A folder UCF-101 with three small clips of 5, 9 and 13 frames."""
    root = tmp_path_factory.mktemp("tree") / "UCF-101"
    for index, name in enumerate(NAMES):
        frames = np.full((5 + 4 * index, 16, 24, 3), 40 * index, np.uint8)
        write_video(root / f"{name}.mp4", frames, Fraction(25))
    return root


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_zip(path: Path, tree: Path) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for file in tree.rglob("*.mp4"):
            opened.write(file, file.relative_to(tree.parent))
    return path


def make_rar(path: Path, tree: Path, suffix: str = ".mp4") -> Path:
    """A RAR 4 archive with stored members."""

    def block(kind: int, flags: int, fields: bytes, data: bytes = b"") -> bytes:
        body = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
        return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body + data

    parts = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for file in sorted(tree.rglob(f"*{suffix}")):
        data, name = file.read_bytes(), file.relative_to(tree.parent).as_posix().encode()
        sizes = struct.pack("<II", len(data), len(data))
        system, time, attributes = 3, 0x58210000, 0o100644  # Unix
        fields = sizes + struct.pack("<BIIBBHI", system, zlib.crc32(data), time, 20, 0x30, len(name), attributes) + name
        parts.append(block(0x74, 0x8000, fields, data))
    path.write_bytes(b"".join(parts) + block(0x7B, 0x4000, b""))
    return path


def prepared(path: str = "ucf101_50_frames.npy") -> tuple[np.ndarray, dict]:
    return np.load(path, allow_pickle=False), json.loads(Path(path).with_suffix(".json").read_text())


def assert_complete(path: str = "ucf101_50_frames.npy") -> None:
    array, sidecar = prepared(path)
    assert array.shape == (6, 4, 16, 24, 3) and array.dtype == np.uint8
    assert [v["id"] for v in sidecar["videos"]] == [*NAMES]
    assert [v["sequences"] for v in sidecar["videos"]] == [1, 2, 3]
    np.testing.assert_allclose(array.mean(axis=(1, 2, 3, 4)), [0, 40, 40, 80, 80, 80], atol=2)


def test_documented_defaults():
    """The flags and defaults of the original command."""
    args = vars(prepare_ucf101.build_parser().parse_args([]))
    expected = {
        "dataset_url": "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar",
        "rar_path": "UCF101.rar",
        "extract_path": "UCF101",
        "output_npy_file": "ucf101_50_frames.npy",
        "num_frames": 50,
        "width": 320,
        "height": 240,
    }
    assert expected.items() <= args.items()


@pytest.mark.slow
def test_command_from_a_rar_with_no_network(tmp_path, tree):
    """From a local .rar by file:// address: download, extraction and conversion, all paths at their defaults."""
    if not archive.available_tools():
        pytest.skip("no program that extracts rar is installed")
    rar = make_rar(tmp_path / "source.rar", tree)
    command = [sys.executable, str(ROOT / "prepare_ucf101.py"), "--dataset_url", rar.as_uri(), *SIZE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "uint8 (6, 4, 16, 24, 3) from 3 of 3 videos" in done.stdout and "frames/s" in done.stdout
    assert_complete()
    assert (tmp_path / "UCF101.rar").exists() and (tmp_path / "UCF101" / "UCF-101").is_dir()


def test_no_rar_is_downloaded_where_nothing_extracts_it(tmp_path, tree, monkeypatch):
    """The program is looked for before the first byte; an archive that is there is tried: its members are stored."""
    monkeypatch.setattr(dataset, "available_tools", lambda: [])
    monkeypatch.setattr(archive, "available_tools", lambda: [])
    rar = make_rar(tmp_path / "source.rar", tree)
    line = "UCF101.rar: no program that extracts rar is installed: install one .pip install unrar2-cffi"
    with pytest.raises(UserError, match=line):
        prepare_ucf101.main(["--dataset_url", rar.as_uri(), *SIZE])
    assert os.listdir() == ["source.rar"]
    rar.rename("UCF101.rar")
    prepare_ucf101.main(SIZE)
    assert_complete()


def test_existing_archive_is_not_downloaded(tmp_path, tree, caplog):
    """--rar_path names a file that is there: no download; an unexpected size is told, not hidden."""
    make_zip(tmp_path / "UCF101.rar", tree)
    caplog.set_level("INFO")
    prepare_ucf101.main([*SIZE, "--output_npy_file", "new/folder/out.npy"])
    assert_complete("new/folder/out.npy")
    assert "UCF101.rar exists: download is skipped" in caplog.text and "the published file 6932971618" in caplog.text


def test_existing_folder_is_not_extracted(tmp_path, tree):
    """--extract_path names a folder that is there: neither archive nor network is needed."""
    (tmp_path / "mine").symlink_to(tree.parent)
    prepare_ucf101.main([*SIZE, "--extract_path", "mine"])
    assert_complete()
    assert sorted(os.listdir()) == ["mine", "ucf101_50_frames.json", "ucf101_50_frames.npy"]


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--classes", "handstandpushups"], 3),
        (["--max_videos", "2"], 3),
        (["--split_file", "list.txt"], 4),
        (["--stride", "2"], 2),
    ],
)
def test_selection(tmp_path, tree, flags, count):
    """--classes, --max_videos and --split_file choose videos without regard to case; --stride thins the frames."""
    lines = ("Archery/v_Archery_g01_c01.avi 3\r\n", "HandstandPushups/v_HandStandPushups_g02_c01.avi 37\r\n")
    (tmp_path / "list.txt").write_text("".join(lines), newline="")
    prepare_ucf101.main([*SIZE, "--video_folder", str(tree), *flags])
    array, sidecar = prepared()
    assert len(array) == count
    names = {v["label"] for v in sidecar["videos"]}
    assert names <= {"Archery", "HandstandPushups"} and all(Fraction(v["fps"]) > 12 for v in sidecar["videos"])


def test_groups_and_labels_from_a_flat_folder():
    """The mirror has no class folders: class and group come from the file name, in the official spelling."""
    clip = video_folder.parse_name("v_HandStandPushups_g07_c03.avi")
    assert clip == video_folder.ClipName("HandstandPushups", "v_HandstandPushups_g07")
    assert video_folder.parse_name("holiday.avi") is None
    assert len(video_folder.CLASSES) == 101


def test_official_lists(clips):
    """The three official lists name 9537, 9586 and 9624 videos for training, all of known classes."""
    for number, count in ((1, 9537), (2, 9586), (3, 9624)):
        stems = read_split_file(clips / "ucf101_lists" / f"trainlist0{number}.txt")
        assert len(stems) == count
        assert {video_folder.parse_name(stem).label for stem in stems} == set(video_folder.CLASSES)


def expected_sequences(num_frames: int) -> int:
    job = Job(
        whole_set("official"), Place(Path()), Path("x.npy"), "npy", SequenceSettings(num_frames), (None,)
    )  # fmt: skip
    return job.expected_sequences()


def whole_set(source: str, url: str = ucf101.SOURCES["official"].url, archive: str = "UCF101.rar") -> WholeUcf101:
    return WholeUcf101(source, url, archive, "UCF101")


def test_expected_size_of_the_whole_set():
    """The size that is told before the download is within 2 % of the counted one, 43 659 sequences of 50 frames."""
    assert abs(expected_sequences(50) / 43_659 - 1) < 0.02
    assert abs(expected_sequences(16) / 148_856 - 1) < 0.02


def test_dry_run_changes_nothing(capsys):
    """--dry_run says what would be downloaded and how large the result would be."""
    prepare_ucf101.main(["--dry_run"])
    out = capsys.readouterr().out
    assert "download https://www.crcv.ucf.edu/data/UCF101/UCF101.rar (6.93 GB)" in out
    assert "extract UCF101.rar to UCF101" in out and "50, 240, 320, 3), 497.0 GB" in out
    assert os.listdir() == []


def test_mirror_takes_the_place_of_defaults():
    """--source mirror changes address and file name, but not what the user named himself."""
    mirror = ucf101.SOURCES["mirror"]
    chosen = whole_set("mirror").archive
    assert (chosen.file.url, chosen.name, chosen.file.sha256) == (mirror.url, "UCF101_videos.zip", mirror.sha256)
    own = whole_set("mirror", "https://example.org/x.zip", "x.zip").archive
    assert (own.file.url, own.name, own.file.size) == ("https://example.org/x.zip", "x.zip", None)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--video_folder", "nowhere"], "nowhere: no such folder of videos"),
        (["--classes", "Archerie"], "the nearest is 'Archery'"),
        (["--dataset_url", "ftp://example.org/x"], "only https:// and http://"),
        (["--dataset_url", "file:///nowhere/x.rar"], "there is no file /nowhere/x.rar"),
    ],
)
def test_mistakes_are_one_line(flags, line):
    """What is wrong, in one line."""
    with pytest.raises(UserError, match=line) as raised:
        prepare_ucf101.main(flags)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_exit_status_and_one_line(tmp_path):
    """A user error ends with status 2 and one line on stderr, no traceback."""
    (tmp_path / "UCF101.rar").write_bytes(b"<html>not a rar</html>")
    command = [sys.executable, str(ROOT / "prepare_ucf101.py"), *SIZE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: UCF101.rar: is no zip, tar or rar archive"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["npy", "hdf5", "frames", "videos"])
def test_other_formats(tree, form, monkeypatch, capsys):
    """prepare_data.py folder and shapes write every format, and open_clips reads each of them."""
    from videodata import open_clips

    out = "out.npy" if form == "npy" else "out"
    flags = ["--out", out, "--format", form]
    prepare_data.main(["folder", str(tree), *flags, *SIZE])
    assert len(open_clips(out, frames=4, size=(16, 24))) == (6 if form == "npy" else 3)
    made = "s.npy" if form == "npy" else "s"
    prepare_data.main(
        [
            "shapes",
            "--count",
            "3",
            "--frames",
            "8",
            "--num_frames",
            "4",
            "--size",
            "16",
            "--out",
            made,
            "--format",
            form,
        ]
    )
    dataset = open_clips(made, frames=4, size=16)
    assert len(dataset) == (6 if form == "npy" else 3) and dataset[0].std() > 0.1
