"""What a data set says of itself, and how many of its clips a run was trained on."""

import json

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, Subset

from videodata import open_clips, write_video
from videodata.provenance import overlap, provenance_of


@pytest.fixture
def folder(tmp_path):
    """Two parts with equal names inside, one of them with the names of UCF101."""
    for part, count in (("train", 6), ("test", 3)):
        for k in range(count):
            write_video(tmp_path / "data" / part / f"{k}.mp4", np.full((6, 8, 8, 3), k, np.uint8), 25)
            name = f"v_YoYo_g{k + 1:02d}_c01.mp4"
            write_video(tmp_path / "data" / part / "YoYo" / name, np.zeros((6, 8, 8, 3), np.uint8), 25)
    return tmp_path / "data"


def clips(path, split=None, **options):
    return open_clips(path, 2, 8, split=split, **options)


def test_facts(folder, monkeypatch):
    """Source, split, fingerprint and ids are plain values, whatever the windows are and from wherever it is opened."""
    said = clips(folder, "test").provenance()
    assert said["split"] == "test" and said["source"] == str(folder)
    assert said["ids"][:3] == ["test/0.mp4", "test/1.mp4", "test/2.mp4"] and len(said["ids"]) == 6
    assert json.loads(json.dumps(said)) == said
    monkeypatch.chdir(folder.parent)
    assert open_clips("data", 2, 8, split="test", windows="consecutive", seed=3).provenance() == said
    assert clips("shapes:1").provenance()["ids"] == ["seed 0/Circles/v_Circles_g01_c01"]
    assert clips("shapes:8").provenance()["source"] == "shapes:8"


def test_the_parts_of_one_source(folder):
    """Declared parts have nothing in common, though the files in them have the same names."""
    trained = clips(folder, "train").provenance()
    assert overlap(trained, clips(folder, "test")) == 0
    assert overlap(trained, clips(folder, "val")) == 0
    assert overlap(trained, clips(folder, "train")) == len(clips(folder, "train"))
    assert overlap(trained, clips(folder)) == len(clips(folder, "train"))  # of 18, the 10 or 11 that were trained on
    assert overlap(clips(folder).provenance(), clips(folder, "test")) == 6


def test_another_way_to_the_same_files(folder, tmp_path):
    """A part named by itself, a folder above, a list, a link, one file, and a moved folder are known again."""
    trained = clips(folder / "train").provenance()
    assert overlap(trained, clips(folder / "test")) == 0
    whole = clips(folder).provenance()
    assert overlap(whole, clips(folder / "test")) == 6 and overlap(trained, clips(folder)) == 12
    (folder / "list.csv").write_text("path,text\ntest/0.mp4,a\ntest/YoYo/v_YoYo_g01_c01.mp4,b\n")
    assert overlap(whole, clips(folder / "list.csv")) == 2
    assert overlap(trained, clips(folder / "list.csv")) == 0
    assert overlap(trained, clips(folder / "train" / "0.mp4")) == 1
    (tmp_path / "link").symlink_to(folder)
    assert overlap(trained, clips(tmp_path / "link")) == 12
    folder.rename(tmp_path / "moved")
    assert overlap(trained, clips(tmp_path / "moved" / "train")) == 12
    assert overlap(trained, clips(tmp_path / "moved" / "test")) is None
    assert overlap(None, clips(tmp_path / "moved")) is None


def test_items_are_counted_not_videos(folder):
    """Each window of a video that was trained on counts."""
    trained = clips(folder, "test").provenance()
    assert overlap(trained, clips(folder, windows="consecutive")) == 6 * 3


def test_generated_videos():
    """shapes:8 are the first eight of shapes:20; another seed gives other videos."""
    trained = clips("shapes:8").provenance()
    assert overlap(trained, clips("shapes:20")) == 8
    assert overlap(trained, clips("shapes:20,seed=1")) == 0
    assert overlap(clips("shapes:400", "train").provenance(), clips("shapes:400", "test")) == 0


def test_arrays(tmp_path):
    """Sequences of one array, and of an array in the folder that was trained on."""
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", np.zeros((5, 4, 8, 8, 3), np.uint8))
    trained = clips(tmp_path, "train").provenance()
    assert len(trained["ids"]) == 4 and overlap(trained, clips(tmp_path / "train.npy")) == 4
    assert overlap(trained, clips(tmp_path / "test.npy")) == 0
    assert overlap(trained, clips("shapes:4")) is None


def test_arrays_of_one_name_and_shape(tmp_path):
    """A copy elsewhere is known again; an array that only looks like it, but for one pixel in the middle, is not."""
    pixels = np.zeros((5, 4, 8, 8, 3), np.uint8)
    for name in ("one", "copy", "other"):
        pixels[2, 1, 0, 0] = 255 * (name == "other")
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "clips.npy", pixels)
    trained = clips(tmp_path / "one" / "clips.npy").provenance()
    assert overlap(trained, clips(tmp_path / "copy" / "clips.npy")) == 5
    assert overlap(trained, clips(tmp_path / "other" / "clips.npy")) is None


def test_several_data_sets_and_parts_of_them(folder):
    """A run on two data sets remembers both; a Subset stands for all that it was taken from."""
    both = ConcatDataset([clips(folder, "train"), clips("shapes:8")])
    trained = provenance_of(both)
    assert trained["source"] == f"{folder} + shapes:8" and len(trained["parts"]) == 2
    assert overlap(trained, clips("shapes:20")) == 8
    assert overlap(trained, clips(folder, "test")) is None  # shapes and files cannot be compared
    assert provenance_of(Subset(clips("shapes:8"), [0]))["ids"] == clips("shapes:8").provenance()["ids"]
    assert provenance_of([1, 2]) is None
