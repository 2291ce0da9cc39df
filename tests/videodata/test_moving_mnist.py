"""Moving MNIST: what the published file holds, and training clips from a local file of MNIST."""

import gzip
import json
import struct

import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.miniatures import miniature
from videodata import UserError, open_clips
from videodata.datasets import moving_mnist
from videodata.datasets.moving_mnist import PublishedClips, TrainingClips, read_idx_images


def idx_file(path, count=30, compress=False):
    """Images of one brightness each, 100 + number."""
    pixels = np.repeat(np.arange(100, 100 + count, dtype=np.uint8), 28 * 28).tobytes()
    data = struct.pack(">4I", 0x803, count, 28, 28) + pixels
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


def test_published_file():
    """Size of the file: a header of 96 bytes (an old one, of numpy 1) and 10,000 clips of 20 frames of 64x64."""
    assert moving_mnist.TEST_SET.size == 96 + 20 * 10_000 * 64 * 64
    assert len(moving_mnist.TEST_SET.sha256) == 64


def test_time_comes_first_in_the_published_file(tmp_path):
    """Frame t of clip i is [t, i]; an array of another shape is refused."""
    array = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "clips.npy", array)
    clips = PublishedClips(tmp_path / "clips.npy")
    assert len(clips) == 3 and np.array_equal(clips.read(2, 4, 5, 3), np.repeat(array[4:17:3, 2, ..., None], 3, -1))
    for other in (array.swapaxes(0, 1), array[:, :0], array[..., :0], array[0], np.uint8(3)):
        np.save(tmp_path / "other.npy", other)
        with pytest.raises(UserError, match="expected uint8|other.npy"):
            PublishedClips(tmp_path / "other.npy")


def test_training_clips(tmp_path):
    """Two squares that move a tenth of 36 pixels a frame, turn at the walls, and hide each other by the maximum."""
    clips = TrainingClips(idx_file(tmp_path / "images"), 40)
    for index in range(40):
        frames = clips.read(index)
        assert frames.shape == (20, 64, 64, 3) and np.array_equal(frames, clips.read(index))
        levels = np.unique(frames)
        assert levels[0] == 0 and 2 <= len(levels) <= 3
        seen = frames[..., 0] == levels[-1]
        rows, columns = (seen.any(axis).argmax(1) for axis in (2, 1))
        assert seen.sum((1, 2)).min() >= 28 * 28  # the brighter digit is always whole
        if len(levels) == 3:
            steps = np.hypot(np.diff(rows), np.diff(columns))
            assert steps.max() <= 3.6 + np.sqrt(2) and np.median(steps) > 2.2  # whole pixels
            assert max(rows.max(), columns.max()) <= 36
    assert np.array_equal(clips.read(3, 5, 4, 2), clips.read(3)[5:12:2])
    assert not np.array_equal(TrainingClips(tmp_path / "images", 40, seed=1).read(0), clips.read(0))


def test_files_of_mnist(tmp_path):
    """Plain or packed; MNIST's test digits, labels, and files that were cut off are refused."""
    plain = read_idx_images(idx_file(tmp_path / "a"))
    assert plain.shape == (30, 28, 28) and np.array_equal(plain, read_idx_images(idx_file(tmp_path / "b.gz", 30, True)))
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-1])
    (tmp_path / "cut.gz").write_bytes((tmp_path / "b.gz").read_bytes()[:-20])
    (tmp_path / "labels").write_bytes(struct.pack(">2I", 0x801, 5) + bytes(5))
    for name in ("cut", "cut.gz", "labels", "nothing"):
        with pytest.raises(UserError, match="no whole file|cannot be read"):
            read_idx_images(tmp_path / name)
    (tmp_path / "test").write_bytes(struct.pack(">4I", 0x803, 10_000, 28, 28) + bytes(10_000 * 28 * 28))
    with pytest.raises(UserError, match="test digits"):
        TrainingClips(tmp_path / "test", 1)


def test_both_parts(tmp_path, monkeypatch):
    """With --mnist, train and test lie side by side; val is a tenth of train, never of the test set."""
    made = miniature("moving_mnist")
    for target, name, value in made.patches:
        monkeypatch.setattr(target, name, value)
    served = tmp_path / "mirror" / made.archive.lstrip("/")
    served.parent.mkdir(parents=True)
    served.write_bytes(made.files[made.archive])
    out, mnist = tmp_path / "out", idx_file(tmp_path / "train-images-idx3-ubyte")
    mirror = ["--url_root", (tmp_path / "mirror").as_uri(), "--root", str(tmp_path)]
    made_of = ["--mnist", str(mnist), "--train_clips", "20"]
    prepare_data.main(["moving_mnist", "--out", str(out), "--mnist", str(mnist), *mirror, *made_of, "--workers", "1"])
    assert [len(open_clips(out, 20, 64, split=split)) for split in ("train", "val", "test")] == [18, 2, 3]
    assert np.load(out / "test.npy").shape == (3, 20, 64, 64, 3)
    assert json.loads((out / "train.json").read_text())["published"] == 20
