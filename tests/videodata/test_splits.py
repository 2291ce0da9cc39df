"""One system of splits: what data declares wins, nothing that is declared val or test can be trained on."""

import json

import numpy as np
import pytest

from videodata import UserError, declared_splits, open_clips, write_video
from videodata.hdf5 import Hdf5Writer
from videodata.shapes import Shapes
from videodata.source import ClipSource
from videodata.splits import divide, evaluation_split, open_split, sidecars

PIXELS = np.zeros((2, 8, 8, 3), np.uint8)
COUNTS = {"train": 12, "val": 3, "test": 4}


def in_folders(root, names):
    for name in names:
        for k in range(COUNTS[name]):
            write_video(root / name / f"{k}.mp4", PIXELS, 25)
    return root


def in_arrays(root, names):
    for name in names:
        np.save(root / f"{name}.npy", np.zeros((COUNTS[name], 2, 8, 8, 3), np.uint8))
    return root


def in_a_list(root, names):
    rows = []
    for name in names:
        for k in range(COUNTS[name]):
            write_video(root / f"{name}{k}.mp4", PIXELS, 25)
            rows.append(f"{name}{k}.mp4,{name}")
    (root / "list.csv").write_text("\n".join(["path,split", *rows]))
    return root / "list.csv"


def in_shards(root, names):
    for name in names:
        with Hdf5Writer(root / name) as writer:
            for k in range(COUNTS[name]):
                writer.add(PIXELS, f"{name}{k}")
    return root


def in_one_array(root, names):
    """As prepare_data.py writes all parts of a data set into one .npy."""
    total = sum(COUNTS[name] for name in names)
    np.save(root / "all.npy", np.zeros((total, 2, 8, 8, 3), np.uint8))
    videos = [
        {"id": f"{name}{k}", "split": name, "sequences": 1} for name in names for k in range(COUNTS[name])
    ]  # fmt: skip
    for first, video in enumerate(videos):
        video["first_sequence"] = first
    content = {"format": "videodata-npy", "version": 1, "num_frames": 2, "height": 8, "width": 8, "videos": videos}
    (root / "all.json").write_text(json.dumps(content))
    return root / "all.npy"


def ids(path, split):
    data = open_clips(path, 2, 8, split=split)
    return set(data.provenance()["ids"])


@pytest.mark.parametrize("make", [in_folders, in_arrays, in_a_list, in_shards, in_one_array])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "test"), ("train", "val")])
def test_declared_parts_win(tmp_path, make, names):
    """Each part is what is declared; val comes out of train where none is declared; test comes out of nothing else."""
    path = make(tmp_path, names)
    assert declared_splits(path) == names
    assert evaluation_split(path) == ("test" if "test" in names else "val")
    parts = {split: ids(path, split) for split in {"train", "val", *names}}
    for one in parts:
        for other in parts:
            assert one == other or not parts[one] & parts[other]
    assert all(len(parts[name]) == COUNTS[name] for name in names if name != "train")
    assert len(parts["train"]) == (COUNTS["train"] if "val" in names else COUNTS["train"] - 1)
    if "test" in names:
        assert all("test" in name for name in parts["test"]) or make is in_arrays
        assert not any("test" in name for name in parts["train"] | parts["val"])
    else:
        with pytest.raises(UserError, match="has no split 'test': it has train, val"):
            open_split(path, "test")


@pytest.mark.parametrize("make", [in_folders, in_arrays, in_shards])
def test_train_alone_is_divided_like_any_data(tmp_path, make):
    """Only train is declared: val and test come out of it by the same rule as without any declaration."""
    path = make(tmp_path, ("train",))
    assert declared_splits(path) == ("train",) and evaluation_split(path) == "val"
    parts = [ids(path, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [10, 1, 1] and len(set.union(*parts)) == 12


@pytest.mark.parametrize("make", [in_folders, in_arrays, in_shards])
def test_a_test_part_is_no_training_data(tmp_path, make):
    """The folder or array of a declared part, named itself, is that part whatever is asked for."""
    root = make(tmp_path, ("train", "val", "test"))
    part = root / ("test.npy" if make is in_arrays else "test")
    assert declared_splits(part) == ("test",) and len(ids(part, "test")) == COUNTS["test"]
    for split in ("train", "val"):
        with pytest.raises(UserError, match=f"no split '{split}': it has test"):
            open_split(part, split)
    assert len(ids(part, None)) == COUNTS["test"]


def test_a_test_folder_without_training_data(tmp_path):
    """Where only test is declared, nothing beside it is taken for training."""
    in_folders(tmp_path, ("test",))
    write_video(tmp_path / "other" / "a.mp4", PIXELS, 25)
    assert declared_splits(tmp_path) == ("test",)
    with pytest.raises(UserError, match="no split 'train': it has test"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(("held_out", "expected"), [(0.1, (80, 10, 10)), (0.25, (50, 25, 25)), (0.0, (100, 0, 0))])
def test_the_project_s_own_division(held_out, expected):
    """Without a declaration: shares of the groups, the same in every process, whole, without a common group."""
    parts = []
    for split, count in zip(("train", "val", "test"), expected, strict=True):
        if not count:
            with pytest.raises(UserError, match="too few"):
                open_split("shapes:400", split, held_out=held_out)
            continue
        source, videos = open_split("shapes:400", split, held_out=held_out)
        parts.append({source.group(video) for video in videos})
        assert len(videos) == 4 * count
    assert declared_splits("shapes:400") == () and evaluation_split("shapes:400") == "val"
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400


def test_few_groups():
    """One group trains; of two one validates; of three each split has one, however large the share."""
    for count, expected in ((1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1))):
        for split, number in zip(("train", "val", "test"), expected, strict=True):
            if number:
                assert len(divide(Shapes(count), split, 0.4)) == number
            else:
                with pytest.raises(UserError, match="too few"):
                    divide(Shapes(count), split, 0.4)
    with pytest.raises(UserError, match="held_out must be"):
        divide(Shapes(4), "train", 0.5)


class Divided(ClipSource):
    """Ten videos in five groups; the first four are declared to be for testing, in the words of another project."""

    path = "divided"

    def __len__(self) -> int:
        return 10

    def id(self, index: int) -> str:
        return str(index)

    def group(self, index: int) -> str:
        return f"group {index // 2}"

    def length(self, index: int) -> int:
        return 4

    def size(self, index: int) -> tuple[int, int]:
        return 8, 8

    def read(self, index, start=0, count=None, step=1):
        raise NotImplementedError

    def splits(self) -> dict[str, list[int]]:
        return {"test": [0, 1, 2, 3], "train": [4, 5, 6, 7, 8, 9], "extra": []}


def test_an_open_source_is_divided_by_the_same_rules():
    """`divide` asks the source; groups that val takes out of train are whole."""
    source = Divided()
    train, val, test = (divide(source, split) for split in ("train", "val", "test"))
    assert test == [0, 1, 2, 3] and len(val) == 2 and sorted(train + val) == [4, 5, 6, 7, 8, 9]
    assert {source.group(video) for video in val}.isdisjoint({source.group(video) for video in train})


def test_what_lies_beside_the_parts(tmp_path):
    """Of the part that a split is taken from, or of all; nothing beside files that nobody prepared."""
    assert sidecars(in_arrays(tmp_path, ("train", "test"))) == [{}, {}]
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": name}))
    assert sidecars(tmp_path, "test") == sidecars(tmp_path / "test.npy") == [{"dataset": "test"}]
    assert sidecars(tmp_path, "val") == [{"dataset": "train"}]
    assert sidecars(tmp_path, "all") == [{"dataset": "train"}, {"dataset": "test"}]
    (tmp_path / "films").mkdir()
    (tmp_path / "films.json").write_text('{"dataset": "mine"}')
    assert sidecars(tmp_path / "films", "all") == [{"dataset": "mine"}]
    index = {"format": "videodata-parts", "dataset": "shared", "parts": ["all-0001-of-0001.npy"]}
    (tmp_path / "shared.json").write_text(json.dumps(index))
    assert sidecars(tmp_path / "shared.json") == [index]
    assert sidecars("shapes:9", "test") == [{"dataset": "generated videos"}]
