"""One bad item, wherever it stands, costs itself alone: every preparing command, and opening with on_error="skip"."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_ucf101
from scripts import convert_bair, convert_kinetics, convert_to_h5, prepare_data
from tests.videodata.odd_folders import FRAMES, PLACES, SIDE, lock_folders, odd_frames, odd_records, odd_videos
from videodata import open_clips
from videodata.errors import UserError, VideoError
from videodata.files import portable_name

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are made")
SMALL = ["--num_frames", str(FRAMES), "--width", str(SIDE), "--height", str(SIDE), "--workers", "1"]


@pytest.fixture(params=PLACES)
def prefix(request, tmp_path, monkeypatch) -> str:
    """What the names of the bad items begin with."""
    lock_folders(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return PLACES[request.param]


def levels(clips) -> dict[str, int]:
    """Mean of the pixels by id, without the number of the sequence."""
    ids = [clips.describe(index)["id"].removesuffix("#0") for index in range(len(clips))]
    return {id: float(clips[index].float().mean()) for index, id in enumerate(ids)}


def assert_right(found: dict[str, float], good: dict[str, int], tolerance: float = 2) -> None:
    assert found.keys() == good.keys()
    assert all(abs(found[id] - good[id]) <= tolerance for id in good)


def assert_reported(sidecar: Path, bad: set[str], printed: str) -> None:
    """In the side-car and in the summary, each with its reason."""
    skipped = json.loads(sidecar.read_text(encoding="utf-8"))["skipped"]
    assert {entry["id"] for entry in skipped} == bad
    assert all(entry["status"] == "bad" and f"skipped {entry['id']}: {entry['reason']}" in printed for entry in skipped)
    reasons = {entry["id"].rpartition("/")[2][1:]: entry["reason"] for entry in skipped}
    assert reasons["gone"] == reasons["unmounted"] == "is a link to nothing"
    assert reasons["pipe"] == "is no plain file" and reasons["locked"] == "cannot be opened (Permission denied)"


def test_prepare_ucf101(prefix, capsys):
    """The array has all good videos, the side-car names the bad ones, the status is that of success; again: no work."""
    good, bad = odd_videos(Path("in"), prefix)
    for _ in range(2):
        prepare_ucf101.main(["--video_folder", "in", "--output_npy_file", "out.npy", *SMALL])
        assert_right(levels(open_clips("out.npy", FRAMES, SIDE, dtype="uint8")), good)
        assert_reported(Path("out.json"), bad, capsys.readouterr().out)
    with pytest.raises(UserError, match=r"complete, but 7 of 20 videos could not be read.*in b.json"):
        prepare_ucf101.main(["--video_folder", "in", "--output_npy_file", "b.npy", *SMALL, "--max_bad_fraction", "0.1"])


@pytest.mark.parametrize("form", ["hdf5", "river", "frames", "videos"])
def test_prepare_data(prefix, form, capsys):
    """In every format; a name that is too long for what is written from it is one more left-out video."""
    good, bad = odd_videos(Path("in"), prefix)
    (Path("in") / "class" / ("l" * 252 + ".ts")).write_bytes((Path("in") / "class" / "a.mp4").read_bytes())
    prepare_data.main(["folder", "in", "--out", "out", "--format", form, *SMALL])
    if form == "videos":
        bad |= {f"class/{'l' * 252}"}
    else:
        good[f"class/{'l' * 252}"] = good["class/a"]
    found = levels(open_clips("out", FRAMES, SIDE, dtype="uint8"))
    if form == "river":
        assert sorted(map(round, found.values())) == pytest.approx(sorted(good.values()), abs=2)
    else:
        in_folder = portable_name if form in ("frames", "videos") else str  # a backslash ends no name everywhere
        assert_right(found, {in_folder(id): level for id, level in good.items()})
    assert_reported(Path("out.json"), bad, capsys.readouterr().out)


@pytest.mark.parametrize("split", [None, "train"])
def test_open_clips(prefix, split, caplog):
    """Skipped with one warning that counts and names; by default the first is an error. Splits take any name."""
    good, bad = odd_videos(Path("in"), prefix)
    found = levels(open_clips("in", FRAMES, SIDE, dtype="uint8", split=split, on_error="skip"))
    assert_right(found, good if split is None else {id: good[id] for id in found})
    assert len(found) >= 0.7 * len(good)
    assert f"in: {len(bad)} videos cannot be read and are left out, first: " in caplog.text
    with pytest.raises(VideoError, match=rf"{len(bad) - 1} more cannot be read either"):
        open_clips("in", FRAMES, SIDE, split=split)


def test_open_clips_of_frames(prefix, caplog):
    """Trees of images: what is a frame by name but no file makes its video unreadable, not shorter."""
    good, _ = odd_frames(Path("in"), prefix)
    clips = open_clips("in", FRAMES, SIDE, dtype="uint8", on_error="skip")
    ids = [clips.describe(index)["id"] for index in range(len(clips))]
    assert set(ids) == {*good, f"{prefix}text"}  # pictures are not opened before they are asked for
    for index, id in enumerate(ids):
        if id in good:
            assert abs(float(clips[index].float().mean()) - good[id]) <= 2
    assert "in: 4 videos cannot be read and are left out" in caplog.text


def test_convert_kinetics(prefix, capsys, caplog):
    """The frames of all good videos, a line for each bad one, status 2; again: the same. Any system takes the names."""
    good, bad = odd_videos(Path("in"), prefix)
    Path("in/class/12:30 aux?.mp4").symlink_to("a.mp4")
    good["class/12:30 aux?"] = good["class/a"]
    for _ in range(2):
        caplog.clear()
        with pytest.raises(UserError, match=rf"{len(bad)} videos were left out, the first: .*the others are written"):
            convert_kinetics.main(["--video_dir", "in", "--output_dir", "out", "--img_size", str(SIDE)])
        assert f"out: {len(good)} of {len(good) + len(bad)} videos" in capsys.readouterr().out
        assert all(f"/{id.rpartition('/')[2]}" in caplog.text for id in bad)
    written = {path.relative_to("out").as_posix(): path for path in Path("out").glob("*/*")}
    assert written.keys() == {portable_name(id) for id in good} and "class/12%3A30 aux%3F" in written
    for id, level in good.items():
        folder = written[portable_name(id)]
        assert sorted(os.listdir(folder)) == [f"{number}.png" for number in range(1, FRAMES + 1)]
        assert abs(np.asarray(Image.open(folder / "1.png")).mean() - level) <= 2


@pytest.mark.parametrize("layout", ["river", "chunked"])
def test_convert_to_h5(prefix, layout, capsys, caplog):
    """The same for trees of frames, at any depth."""
    good, bad = odd_frames(Path("in/train"), prefix)
    with pytest.raises(UserError, match=rf"{len(bad)} videos were left out"):
        convert_to_h5.main(["--data_dir", "in", "--out_dir", "out", "--image_size", str(SIDE), "--layout", layout])
    assert f"out/train: {len(good)} videos" in capsys.readouterr().out
    assert all(f"/{name}" in caplog.text for name in bad)
    clips = open_clips("out/train", FRAMES, SIDE, dtype="uint8")
    found = levels(clips)
    if layout == "chunked":
        assert_right(found, good)
        assert clips.labels() == [f"{prefix}class"]
    else:
        assert sorted(map(round, found.values())) == sorted(good.values())


def test_convert_bair(prefix, capsys, caplog):
    """The same for records: a file that is empty, torn, a pipe or a link to nothing stands for one record."""
    folder = Path("bair/softmotion30_44k")
    good, bad = odd_records(folder / "train", prefix)
    odd_records(folder / "test", prefix)
    with pytest.raises(UserError, match=rf"{2 * len(bad)} records were left out"):
        convert_bair.main(["--data_dir", "bair"])
    assert f"train: {len(good)} of {len(good) + len(bad)} records" in capsys.readouterr().out
    assert all(f"/{name}.tfrecords" in caplog.text for name in bad)
    for part in ("train", "test"):
        assert np.load(f"bair/processed_data/{part}.actions.npz")["id"].tolist() == list(good)
        for id, level in good.items():
            picture = np.asarray(Image.open(f"bair/processed_data/{part}/{id.replace('/0', '/1')}/0.png"))
            assert (picture == level).all()
