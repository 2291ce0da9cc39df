"""An array that is filled part by part: what a kill leaves, and what is begun again."""

import json

import numpy as np
import pytest

from videodata.errors import UserError
from videodata.growing_array import GrowingArray


def begun(path, made_from, done):
    """An array of four parts, as a killed process leaves it."""
    array = GrowingArray(path, made_from)
    array.open(np.int16, (4, 2))
    for number in range(array.done, done):
        array.values[number] = number + 1
        array.note(number + 1)
    return array


@pytest.mark.parametrize("killed_after", [0, 1, 4])
def test_what_was_noted_stays(tmp_path, killed_after):
    """The next call fills only the rest, and the file has the same values."""
    path = tmp_path / "a.npy"
    begun(path, {"weights": "a"}, killed_after)
    array = GrowingArray(path, {"weights": "a"})
    assert array.done == killed_after and not path.exists()
    array = begun(path, {"weights": "a"}, 4)
    array.publish()
    array.forget()
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(path), np.repeat(np.arange(1, 5), 2).reshape(4, 2))


def test_another_origin_is_begun_again(tmp_path, caplog):
    """Nothing of what was made from other weights remains, and the log says so."""
    path = tmp_path / "a.npy"
    begun(path, {"weights": "a"}, 3)
    with caplog.at_level("INFO"):
        array = begun(path, {"weights": "b"}, 0)
    assert "begun again" in caplog.text
    assert array.done == 0 and not array.values.any() and not array.progress.exists()


def test_a_note_without_its_array_says_nothing(tmp_path):
    """A kill after the array got its name leaves the note; the array is removed, and made again."""
    path = tmp_path / "a.npy"
    begun(path, {}, 4).publish()
    path.unlink()
    assert GrowingArray(path, {}).done == 0


def test_a_note_without_a_count_is_begun_again(tmp_path):
    """As earlier versions wrote them, which counted by other names."""
    array = begun(tmp_path / "a.npy", {}, 2)
    array.progress.write_text(json.dumps({"made_from": {}, "clips": 2}))
    assert GrowingArray(tmp_path / "a.npy", {}).done == 0


def test_a_damaged_array_is_refused(tmp_path):
    """One that the note speaks of, with another shape."""
    path = tmp_path / "a.npy"
    array = begun(path, {}, 2)
    assert json.loads(array.progress.read_text())["done"] == 2
    np.save(array.partial.open("wb"), np.zeros((2, 2), np.int16))
    with pytest.raises(UserError, match=r"a\.npy\.partial: is int16 \(2, 2\), not int16 \(4, 2\); remove it"):
        begun(path, {}, 4)
