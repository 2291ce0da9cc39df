"""Real films in real archives go through the data sets that they look like."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.miniatures import make_tar, make_zip
from tests.videodata.test_prepare_ucf101 import make_rar
from tests.videodata.tree_server import tree_server
from videodata import archive, read_video, ucf101
from videodata.datasets import ucf101 as ucf101_parts
from videodata.datasets.clevrer import Clevrer

SMALL = ["--num_frames", "10", "--width", "32", "--height", "24", "--workers", "1", "--keep_going"]


def frames_of(path: Path, count: int, size=(24, 32)) -> np.ndarray:
    return read_video(path, 0, count, size=size, resize="squeeze")[0]


@pytest.mark.parametrize("source", ["official", "mirror"])
def test_films_of_ucf101(clips, tmp_path, monkeypatch, source):
    """Two original films, one with packed B-frames, from a rar with class folders and from a flat zip."""
    if source == "official" and not archive.available_tools():
        pytest.skip("no program that extracts rar is installed")
    names = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", "SoccerJuggling/v_SoccerJuggling_g23_c01")
    tree = tmp_path / "UCF-101"
    for name in names:
        (tree / name).parent.mkdir(parents=True)
        shutil.copyfile(clips / "ucf101" / f"{Path(name).name}.avi", tree / f"{name}.avi")
    data = make_zip({f"UCF101/{path.name}": path.read_bytes() for path in tree.rglob("*.avi")})
    if source == "official":
        data = make_rar(tmp_path / "x.rar", tree, ".avi").read_bytes()
    url = ucf101.SOURCES[source].url
    card = ucf101.Download(url, url.rpartition("/")[2], len(data), None)
    monkeypatch.setattr(ucf101, "SOURCES", {**ucf101.SOURCES, source: card})
    monkeypatch.setattr(ucf101_parts, "COUNTS", {1: (1, 1)})
    with tree_server() as server:
        server.files = {"/" + url.split("/", 3)[3]: data}
        command = ["ucf101", "--source", source, "--root", str(tmp_path), "--url_root", server.url]
        prepare_data.main([*command, "--out", str(tmp_path / "out"), *SMALL])
    for split, name in zip(("test", "train"), names, strict=True):
        made = np.load(tmp_path / "out" / f"{split}.npy")
        assert np.array_equal(made[0], frames_of(tree / f"{name}.avi", 10))
        entry = json.loads((tmp_path / "out" / f"{split}.json").read_text())["videos"][0]
        assert (entry["id"], entry["label"], entry["source"]) == (
            name, name.partition("/")[0], Path(name).name + ".avi"
        )  # fmt: skip


def test_the_flat_tree_of_the_mirror(clips, tmp_path):
    """Film files of 2x4 pixels with the names of the mirror."""
    shutil.copytree(clips / "tfds_fake" / "ucf101" / "videos" / "UCF101", tmp_path / "UCF101", dirs_exist_ok=True)
    prepare_data.main(
        ["ucf101", "--root", str(tmp_path), "--out", str(tmp_path / "all.npy"), *SMALL, "--num_frames", "5"]
    )
    sidecar = json.loads((tmp_path / "all.json").read_text())
    assert sidecar["classes"] == ["Archery", "Nunchucks"] and {v["split"] for v in sidecar["videos"]} == {"train"}


def test_films_of_clevrer_and_kinetics(clips, tmp_path, monkeypatch):
    """H.264 with 128 frames of 480x320, and a clip with sound whose file is in a class archive with spaces."""
    clevrer, kinetics = clips / "synthetic/clevrer_like_480x320_128f.mp4", clips / "kinetics400/WUzgd7C1pWA.mp4"
    monkeypatch.setattr(Clevrer, "counts", {"train": 1, "val": 1, "test": 1})
    lists = {f"k/{part}.csv": b"label,youtube_id,time_start,time_end,split\nmaking tea,WUzgd7C1pWA,8,18,x\n"
             for part in ("train", "validate", "test")}  # fmt: skip
    with tree_server() as server:
        server.files = {
            "/clevrer/videos/test/video_test.zip": make_zip(
                {"video_15000-16000/video_15000.mp4": clevrer.read_bytes()}
            ),
            "/deepmind-media/Datasets/kinetics600.tar.gz": make_tar(lists, "w:gz"),
            "/kinetics/600/val/k600_val_path.txt": b"https://s3.amazonaws.com/kinetics/600/val/making tea.tar.gz\n",
            "/kinetics/600/val/making tea.tar.gz": make_tar(
                {"making tea/WUzgd7C1pWA_000008_000018.mp4": kinetics.read_bytes()}, "w:gz"
            ),
        }
        for name, split, path in (("clevrer", "test", clevrer), ("kinetics600", "val", kinetics)):
            out = tmp_path / name
            flags = ["--root", str(tmp_path), "--url_root", server.url, "--split", split, "--out", str(out)]
            prepare_data.main([name, *flags, *SMALL, "--resize", "squeeze"])
            assert np.array_equal(np.load(out / f"{split}.npy")[0], frames_of(path, 10))
    assert len(np.load(tmp_path / "clevrer" / "test.npy")) == 12
    assert len(np.load(tmp_path / "kinetics600" / "val.npy")) == 1  # one clip per video, as papers do
