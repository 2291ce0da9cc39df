"""Codes on disk: what is written is read back, from both layouts, as the windows that training asks for."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch

from lvt import codes as codes_file
from lvt import config as configuration
from lvt.codes import CodeWindows, open_codes, write_codes
from lvt.datasets import open_code_windows
from lvt.train import shape_of_model
from tests.lvt.test_config import CONFIGS
from videodata.errors import UserError
from videodata.files import write_json


def some_codes(lengths, seed=0):
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 512, (length, 4, 3, 5)) for length in lengths]


def listed(lengths):
    return [(f"Class{i % 2}/video_{i}", f"Class{i % 2}", length) for i, length in enumerate(lengths)]


@pytest.mark.parametrize(("lengths", "shape"), [([6, 6, 6], (3, 6, 4, 3, 5)), ([6, 9], (15, 4, 3, 5))])
def test_one_array_holds_all_videos(tmp_path, lengths, shape):
    """int16, with an axis for videos of equal length, memory-mapped, in the order in which they were written."""
    codes, path = some_codes(lengths), tmp_path / "codes.npy"
    write_codes(path, listed(lengths), codes.__getitem__, 512)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    assert stored.dtype == np.int16 and stored.shape == shape
    source = open_codes(tmp_path)
    for number, values in enumerate(codes):
        assert np.array_equal(source.read(number, 0, len(values)), values)
        assert np.array_equal(source.read(number, 2, 3), values[2:5])
    assert [video.label for video in source.videos][:2] == ["Class0", "Class1"]


def test_a_killed_extraction_is_continued(tmp_path, monkeypatch):
    """Videos that were noted are not encoded again, unless the weights have changed; the result is the same."""
    monkeypatch.setattr(codes_file, "NOTE_EVERY", 2)
    codes, path, asked = some_codes([4, 6, 5, 4, 3]), tmp_path / "codes.npy", []

    def killed(number):
        asked.append(number)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return codes[number]

    for made_from, expected in (("old", [0, 1, 2, 3]), ("new", [0, 1, 2, 3]), ("new", [2, 3, 4])):
        asked.clear()
        with suppress(KeyboardInterrupt):
            write_codes(path, listed([4, 6, 5, 4, 3]), killed, 512, made_from)
        assert asked == expected
        assert path.exists() == (asked[-1] == 4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["codes.json", "codes.npy"]
    source = open_codes(path)
    assert all(np.array_equal(source.read(i, 0, len(values)), values) for i, values in enumerate(codes))


def test_two_kills_at_the_worst_moments(tmp_path, monkeypatch):
    """The first leaves the note of an array that has its name, the second an empty array: it is not complete."""
    codes, path, lengths = some_codes([4, 4, 4]), tmp_path / "codes.npy", [4, 4, 4]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(codes_file, "write_json", lambda place, facts: killed() if place.suffix == ".json" else
                      write_json(place, facts))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            write_codes(path, listed(lengths), codes.__getitem__, 512)
    assert path.exists() and path.with_name("codes.npy.progress").exists()
    with pytest.raises(KeyboardInterrupt):
        write_codes(path, listed(lengths), lambda number: killed() if number else codes[0], 512)
    write_codes(path, listed(lengths), codes.__getitem__, 512)
    assert np.array_equal(np.load(path), np.stack(codes))


def test_the_folders_of_the_original_are_read(tmp_path):
    """One int64 file per frame, in natural order, class from the folder above; the pickled scan is not touched."""
    codes = some_codes([12, 3])
    for number, values in enumerate(codes):
        folder = tmp_path / f"Class{number}" / f"video_{number}"
        folder.mkdir(parents=True)
        for frame, value in enumerate(values):
            np.save(folder / f"{frame}.npy", value)
    np.save(tmp_path / "latent_video_paths.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    source = open_codes(tmp_path)
    assert [(video.id, video.label, video.frames) for video in source.videos] == [
        ("Class0/video_0", "Class0", 12), ("Class1/video_1", "Class1", 3),
    ]  # fmt: skip
    assert np.array_equal(source.read(0, 0, 12), codes[0])


def test_windows_follow_seed_and_position(tmp_path):
    """A training window depends on (seed, position), a test window is the first; short videos are left out."""
    lengths = [30, 3, 30]
    codes = some_codes(lengths)
    write_codes(tmp_path / "codes.npy", listed(lengths), codes.__getitem__, 512)
    source = open_codes(tmp_path)
    first = CodeWindows(source, 8, random=False)
    assert len(first) == 2
    item = first[1]
    assert item["codes"].dtype == torch.int16 and item["class_index"] == 0
    assert np.array_equal(item["codes"].numpy(), codes[2][:8].swapaxes(0, 1))
    random = CodeWindows(source, 8, random=True, seed=3)
    windows = [random[(0, position)]["codes"] for position in range(20)]
    assert torch.equal(windows[5], random[(0, 5)]["codes"])
    starts = {tuple(window.flatten().tolist()) for window in windows}
    assert len(starts) > 8
    with pytest.raises(UserError, match="no video has 31 frames"):
        CodeWindows(source, 31, random=False)


def test_classes_are_numbered_by_the_training_data(tmp_path):
    """Each data set gives a class the same number, whichever others it has; unknown and too many classes are named."""
    for name, labels in (("train", ["b", "a", "c"]), ("val", ["c"]), ("other", ["x"])):
        videos = [(label, label, 4) for label in labels]
        write_codes(tmp_path / name / "codes.npy", videos, some_codes([4] * len(labels)).__getitem__, 512)
    changes = ["MODEL.AUTOREGRESSIVE.VT.CLASS_NUM", "3", "DATASETS.TRAIN", f"('{tmp_path}/train',)"]
    changes += ["INPUT.N_FRAMES_PER_VIDEO_TEST", "4"]
    config = configuration.load_config(CONFIGS / "VT_tiny.yaml", changes)
    assert open_code_windows(config, f"{tmp_path}/val", training=False)[0]["class_index"] == 2
    assert shape_of_model(config)["CLASSES"] == ["a", "b", "c"]
    with pytest.raises(UserError, match="'x' is not among"):
        open_code_windows(config, f"{tmp_path}/other", training=False)
    changes[1] = "2"
    with pytest.raises(UserError, match="has 3 classes"):
        open_code_windows(
            configuration.load_config(CONFIGS / "VT_tiny.yaml", changes), f"{tmp_path}/val", training=False
        )


def test_damage_is_one_clear_line(tmp_path):
    """Missing, foreign and cut-off files name the file and what to do; nothing half-written has the final name."""
    with pytest.raises(UserError, match="CodesExtractor"):
        open_codes(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no codes"):
        open_codes(tmp_path)
    path = tmp_path / "codes.npy"
    with pytest.raises(UserError, match="has 3 frames in place of 4"):
        write_codes(path, [("a", None, 4)], some_codes([3]).__getitem__, 512)
    assert not path.exists() and not path.with_suffix(".json").exists()
    write_codes(path, [("a", None, 3)], some_codes([3]).__getitem__, 512)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="it is truncated.*; encode the videos again"):
        CodeWindows(open_codes(path), 3, random=False)[0]
    path.with_suffix(".json").write_text(json.dumps({"format": "videodata-npy"}))
    with pytest.raises(UserError, match="not a file of codes"):
        open_codes(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("videos", 3), ("videos", []), ("videos", [{"id": 1}]), ("size", None), ("provenance", {"ids": []})],
)
def test_a_damaged_description_is_one_line(tmp_path, key, value):
    """Entries of other types, and videos that are none, are found when the codes are opened."""
    path = tmp_path / "codes.npy"
    write_codes(path, [("a", None, 3)], some_codes([3]).__getitem__, 512)
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, key: value}))
    with pytest.raises(UserError, match="codes") as caught:
        open_codes(path)
    assert "\n" not in str(caught.value)


def test_codes_without_a_place_are_one_line(tmp_path):
    """An array whose description is right, and which has no rows."""
    path = tmp_path / "codes.npy"
    write_codes(path, [("a", None, 3)], some_codes([3]).__getitem__, 512)
    shape = np.load(path).shape
    np.save(path, np.zeros((*shape[:-2], 0, shape[-1]), np.int16))
    with pytest.raises(UserError, match="codes.npy: holds no codes"):
        open_codes(path).read(0, 0, 1)


def test_a_damaged_frame_of_codes_is_one_line(tmp_path):
    """An empty file, and one whose header is cut off inside an expression."""
    (tmp_path / "a" / "v").mkdir(parents=True)
    frame = tmp_path / "a" / "v" / "0.npy"
    np.save(frame, np.zeros((2, 2, 2), np.int64))
    for content in (b"", frame.read_bytes().replace(b"(2, 2, 2)", b"((2, 2, 2")):
        frame.write_bytes(content)
        with pytest.raises(UserError, match="0.npy: is not a readable .npy array"):
            open_codes(tmp_path).read(0, 0, 1)
