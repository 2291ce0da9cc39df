"""The generated digits: what follows from seed and index, who wrote what, how fast they move, how hard they are."""

import json
import pickle
import time

import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.export_digits import from_scikit_learn
from videodata import UserError, declared_splits, open_clips
from videodata.digits import FILE, FORMS, RADIUS, SPEED, UNIT, Digits, bounce, make_digits, read_handwriting
from videodata.provenance import overlap
from videodata.splits import divide


def test_a_video_follows_from_seed_and_index():
    """The same pixels from any count, length, window and process; other seeds and indices give other videos."""
    frames = Digits(20, frames=32, seed=3).read(7)
    assert frames.shape == (32, 32, 32, 3) and frames.dtype == np.uint8
    assert np.array_equal(Digits(8, frames=16, seed=3).read(7), frames[:16])
    assert np.array_equal(Digits(8, seed=3).read(7, 10, 5, 2), frames[10:20:2])
    assert not np.array_equal(Digits(20, frames=32, seed=4).read(7), frames)
    assert not np.array_equal(Digits(20, frames=32, seed=3).read(17), frames)
    again = pickle.loads(pickle.dumps(open_clips("digits:20,seed=3", 4, 32, windows="first").source))
    assert np.array_equal(again.read(7, 0, 32), frames)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_labels_are_the_digits(count):
    """In ascending order, as many as move; ids are unique and begin with the label."""
    source = Digits(60, digits=count)
    for index in range(60):
        shown = [read_handwriting().labels[digit.image] for digit in make_digits(0, index, count)]
        assert source.label(index) == "".join(sorted(map(str, shown)))
        assert source.id(index).startswith(source.label(index) + "/")
    assert len({source.id(index) for index in range(60)}) == 60
    if count == 1:
        assert {source.label(index) for index in range(60)} == set("0123456789")


def test_writers_of_val_and_test_are_not_those_of_train():
    """Eight, one and one of ten; whatever the seed, no sheet of paper shows up in two parts."""
    assert declared_splits("digits:3") == ("train", "val", "test")
    seen = {}
    for split, forms in FORMS.items():
        assert len(open_clips("digits:200", split=split)) == (160 if split == "train" else 20)
        videos = divide(Digits(200), split)
        images = [digit.image for seed in (0, 1) for video in videos for digit in make_digits(seed, video)]
        seen[split] = set(read_handwriting().forms[images].tolist())
        assert seen[split] == set(forms)
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 14


def test_what_was_trained_on_is_known_again():
    """By index and seed, whatever the count; nothing of train is in test; other speeds or colours are other videos."""

    def clips(path, split=None):
        return open_clips(path, 2, 8, split=split)

    trained = clips("digits:8").provenance()
    assert trained["ids"][0].startswith("seed 0, speed 0.8-2.6/")
    assert overlap(trained, clips("digits:20")) == 8
    assert overlap(clips("digits:100", "train").provenance(), clips("digits:100", "test")) == 0
    others = ("digits:8,seed=1", "digits:8,speed=1", "digits:8,colour=1", "digits:8,digits=1", "shapes:8")
    for other in others:
        assert overlap(trained, clips(other)) == 0 and clips(other).fingerprint() != trained["fingerprint"]


@pytest.mark.parametrize("size", [(32, 32), (24, 72), (90, 45)])
def test_digits_keep_to_their_speed_and_to_the_room(size):
    """At most 2.6 pixels of a 32x32 frame per frame, at least 0.8 away from walls; never beyond a wall."""
    room = UNIT * np.array(size) / min(size)
    for index in range(30):
        for digit in make_digits(0, index, 3, SPEED, aspect=size[1] / size[0]):
            path = bounce(digit.position + digit.velocity * np.arange(500)[:, None], RADIUS, room)
            assert path.min() >= RADIUS - 1e-9 and (path <= room - RADIUS + 1e-9).all()
            steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
            assert steps.max() <= SPEED[1] + 1e-9 and np.median(steps) >= SPEED[0] - 1e-9


def test_pixels_move_as_told():
    """The centre of what is seen of one digit moves by the speed asked for, at fractions of a pixel."""
    y, x = np.mgrid[:64, :64]
    for index in range(8):
        ink = Digits(8, digits=1, speed=(1.5, 1.5), size=64).read(index, 0, 20)[..., 0].astype(float)
        centres = np.stack([(ink * axis).sum((1, 2)) / ink.sum((1, 2)) for axis in (y, x)], axis=1)
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
        assert steps.max() < 3.03 and abs(np.median(steps) - 3) < 0.03  # 1.5 of 32 are 3 of 64
        assert np.ptp(ink.sum((1, 2))) < 0.01 * ink.sum((1, 2)).mean()  # as much ink wherever it is


def test_any_size_shows_the_same_clip():
    """A drawing at 32 pixels is close to the mean of one at 128, and black stays black."""
    small, large = (Digits(4, size=size).read(3, 0, 6).astype(float) for size in (32, 128))
    assert abs(small - large.reshape(6, 32, 4, 32, 4, 3).mean((2, 4))).mean() < 2
    assert small.min() == 0 and small.max() == 255


def test_colours():
    """Without them all is grey; with them the same clip, each digit in a colour of its own, maxima where they cross."""
    grey, coloured = Digits(9, size=40).read(5, 0, 16), Digits(9, size=40, colour=True).read(5, 0, 16)
    assert (grey == grey[..., :1]).all() and np.array_equal(coloured.max(-1), grey[..., 0])
    first, second = make_digits(0, 5, colour=True)
    assert abs(first.color - second.color).max() > 0.4
    alone = coloured[(grey[..., 0] > 250)] / 255
    assert all((abs(alone - digit.color).max(-1) < 0.03).sum() > 100 for digit in (first, second))
    assert np.array_equal(open_clips("digits:9,size=40,colour=1").source.read(5, 0, 16), coloured)


def test_baselines():
    """Four frames given, the last one repeated: 11.8 dB for frames 1-4 and 9.1 dB for frames 5-12."""
    source, scores = Digits(1200), []
    for video in divide(source, "val") + divide(source, "test"):
        frames = source.read(video, 0, 16) / 255
        scores.append(-10 * np.log10(((frames[4:] - frames[3]) ** 2).mean((1, 2, 3))))
    means = np.mean(scores, axis=0)
    assert abs(means[:4].mean() - 11.8) < 0.3 and abs(means[4:].mean() - 9.1) < 0.3


def test_a_clip_takes_at_most_four_milliseconds():
    """16 frames of 32x32, CPU time of the best of five rounds."""
    source, rounds = Digits(20, colour=True), []
    for _ in range(5):
        begin = time.process_time()
        for index in range(20):
            source.read(index, 0, 16)
        rounds.append((time.process_time() - begin) / 20)
    assert min(rounds) < 0.004


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("digits:", "are named"), ("digits:9,frames", "are named"), ("digits:9,mass=2", "are named"),
        ("digits:9,speed=fast", "are named"), ("digits:9,colour=red", "are named"), ("digits:0", "count >= 1"),
        ("digits:9,digits=4", "1, 2 or 3"), ("digits:9,speed=3-2", "slowest <= fastest"),
        ("digits:9,size=5000", "4096"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(text, line):
    with pytest.raises(UserError, match=line) as raised:
        open_clips(text)
    assert "\n" not in str(raised.value)


def test_the_file_and_whose_it_is():
    """Below 100 kB, all images, each label on each sheet, and the attribution beside it."""
    images, labels, forms = read_handwriting()
    assert FILE.stat().st_size < 100_000 and images.shape == (1797, 8, 8) and (images.min(), images.max()) == (0, 1)
    assert len({*zip(labels.tolist(), forms.tolist(), strict=True)}) == 140
    said = FILE.with_name(FILE.name + ".license").read_text()
    assert "Alpaydin" in said and "CC-BY-4.0" in said


def test_the_file_is_what_scikit_learn_ships():
    pytest.importorskip("sklearn")
    made = from_scikit_learn()
    with np.load(FILE) as file:
        assert sorted(file) == sorted(made) and all(np.array_equal(file[name], made[name]) for name in made)


def test_prepared(tmp_path):
    """The three parts in files of their own, or in one that remembers them, with the same frames."""
    flags = ["--count", "10", "--frames", "16", "--colour", "--digits", "1", "--workers", "1"]
    prepare_data.main(["digits", "--out", str(tmp_path / "parts"), *flags])
    prepare_data.main(["digits", "--out", str(tmp_path / "one.npy"), *flags])
    source = Digits(10, digits=1, colour=True)
    for path in (tmp_path / "parts", tmp_path / "one.npy"):
        for split, count in {"train": 8, "val": 1, "test": 1}.items():
            clips = open_clips(path, 16, 32, split=split, dtype="uint8")
            assert len(clips) == count
            expected = source.read(divide(source, split)[0], 0, 16)
            assert np.array_equal(clips[0].numpy(), expected.transpose(3, 0, 1, 2))
            assert clips.describe(0)["label"] == source.label(divide(source, split)[0])
    said = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert "Alpaydin" in said["licence"] and said["published"] == said["found"] == 8


@pytest.mark.parametrize("size", [32, 64, (32, 48)])
def test_the_source_says_what_moves_where(size):
    """The ink of a single digit lies around the centre that is told, always on the same side of it, and the digit is
    that of the label; of two coloured ones each has its colour.
    """
    source, short = Digits(40, size=size, digits=1), size if isinstance(size, int) else min(size)
    for video in range(12):
        frames, found = source.read(video, 3, 10), source.objects(video, range(3, 13))
        assert str(found.kinds[0]) == source.label(video) and found.centres.shape == (1, 10, 2)
        ink = frames[..., 0] / frames[..., 0].sum(axis=(1, 2), keepdims=True)
        y, x = ((np.arange(length) + 0.5) / short for length in ink.shape[1:])
        middle = np.stack([ink.sum(2) @ y, ink.sum(1) @ x], axis=1)
        off = middle - found.centres[0]
        assert abs(off).max() < 2 / UNIT and np.ptp(off, axis=0).max() < 0.5 / UNIT
    source = Digits(40, digits=2, colour=True)
    found = source.objects(4, [0, 5])
    assert "".join(map(str, sorted(found.kinds))) == source.label(4)
    assert found.colors.shape == (2, 3) and abs(found.colors[0] - found.colors[1]).max() > 0.3


def test_clips_say_what_moves_in_them():
    """At the frames of the window, a stride apart, mirrored with them; and only of generated videos."""
    clips = open_clips("digits:60,frames=40", 6, 32, stride=3, seed=2, flip=True)
    mirrored = 0
    for index in range(8):
        told, found = clips.describe(index), clips.objects(index)
        video = int(told["id"][-5:]) - 1
        paths = clips.source.objects(video, range(told["start"], told["start"] + 16, 3)).centres
        if told["flip"]:
            paths[..., 1], mirrored = 1 - paths[..., 1], mirrored + 1
        assert np.allclose(found.centres, paths)
    assert 0 < mirrored < 8
