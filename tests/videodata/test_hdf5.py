"""HDF5 shards: parity with the reader of RIVER and Neural SDE, the three layouts, writing, loader workers."""

import json
from collections.abc import Callable
from fractions import Fraction

import h5py
import numpy as np
import pytest
from safetensors import safe_open

from videodata import UserError, VideoError, open_clips
from videodata.hdf5 import Hdf5Source, Hdf5Writer


def videos(count: int = 5, size: tuple[int, int] = (6, 8)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5 + index, *size, 3), dtype=np.uint8) for index in range(count)]


def write_videogpt(path, clips: list[np.ndarray], train: int) -> None:
    with h5py.File(path, "w") as file:
        for split, part in (("train", clips[:train]), ("test", clips[train:])):
            file[f"{split}_data"] = np.concatenate(part)
            file[f"{split}_idx"] = np.cumsum([0] + [len(clip) for clip in part[:-1]])


@pytest.fixture(scope="module")
def expected(fixtures):
    """The clips that the reference reader returns, by tag, and the list of cases."""
    with safe_open(fixtures / "flow_pred/h5_clips.safetensors", "pt") as file:
        cases = {case["tag"]: case for case in json.loads(file.metadata()["cases"])}
        return {name: file.get_tensor(name) for name in file.keys()}, cases, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("tag", "tolerance"), [("native_tv", 0), ("crop_tv", 0), ("native_alb", 0), ("resize_tv", 8e-3)]
)
def test_clips_equal_those_of_the_reference_reader(fixtures, expected, tag, tolerance):
    """Stored size and centre crop are exact; resizing agrees within one grey level."""
    tensors, cases, _ = expected
    case = cases[tag]
    dataset = open_clips(
        fixtures / "flow_pred/h5_example",
        case["frames_per_sample"],
        case["crop_size"],
        case["skip_frames"] + 1,
        short_side=case["input_size"],
    )
    clip = dataset.read(case["index"], case["time_idx"])  # (3, T, H, W)
    assert clip.transpose(0, 1).shape == tensors[f"out.{tag}"].shape
    assert (clip.transpose(0, 1) - tensors[f"out.{tag}"]).abs().max() <= tolerance


def test_videos_are_numbered_through_the_shards(fixtures, expected):
    """Lengths, (shard, local) and the map of total_videos are those of the reference; frames are exact."""
    tensors, _, metadata = expected
    source = Hdf5Source(fixtures / "flow_pred/h5_example")
    assert [source.length(index) for index in range(len(source))] == json.loads(metadata["lengths"])
    located = [[shard, str(local)] for shard, local in map(source.locate, range(len(source)))]
    assert located == json.loads(metadata["locate"])
    for index in range(len(source)):
        assert np.array_equal(source.read(index), tensors[f"in.video{index}"].numpy())
    few = open_clips(fixtures / "flow_pred/h5_example", 3, None, total_videos=3)
    names = [few.describe(index)["id"] for index in range(len(few))]
    assert names == [source.id(index) for index in json.loads(metadata["index_map_total_videos_3"])]
    assert len(open_clips(fixtures / "flow_pred/h5_example", 3, None, total_videos=1)) == 1


@pytest.mark.parametrize("layout", ["chunked", "river"])
def test_what_is_written_is_read_back(tmp_path, layout):
    """Every frame of every video, over shard borders, in any window; facts where the layout has room for them."""
    clips = videos()
    with Hdf5Writer(tmp_path, layout, videos_per_shard=2) as writer:
        for index, clip in enumerate(clips):
            writer.add(iter(clip), f"c/v{index}", "c", Fraction(30000, 1001))
    source = Hdf5Source(tmp_path)
    assert len(source) == 5
    for index, clip in enumerate(clips):
        assert source.size(index) == (6, 8)
        assert np.array_equal(source.read(index), clip)
        assert np.array_equal(source.read(index, 1, 2, 2), clip[1:4:2])
    if layout == "chunked":
        assert (source.id(3), source.label(3), source.group(3)) == ("c/v3", "c", "c/v3")
        assert source.fps(3) == Fraction(30000, 1001)
    with pytest.raises(VideoError, match=r"video 1: has 6 frames, but frame 7"):
        source.read(1, 3, 5)


def test_the_river_layout_is_the_documented_one(tmp_path):
    """Names from 1 with four digits; len/<i>, <i>/<t> with lzf and one chunk per frame, and an empty group videos."""
    with Hdf5Writer(tmp_path, "river", videos_per_shard=2) as writer:
        for clip in videos(3):
            writer.add(clip)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard_0001.hdf5", "shard_0002.hdf5"]
    with h5py.File(tmp_path / "shard_0001.hdf5") as file:
        assert set(file) == {"len", "videos", "0", "1"}
        assert len(file["videos"]) == 0
        assert (file["len/1"][()], file["len/1"].dtype) == (6, np.int64)
        frame = file["1/5"]
        assert (frame.shape, frame.chunks, frame.compression, frame.dtype) == ((6, 8, 3), (6, 8, 3), "lzf", np.uint8)


def test_an_empty_last_shard_and_foreign_groups_are_accepted(tmp_path):
    """A writer that fills its last shard leaves an empty one behind; MCVD adds groups of its own."""
    with Hdf5Writer(tmp_path, "river", videos_per_shard=2) as writer:
        for clip in videos(2):
            writer.add(clip)
    with h5py.File(tmp_path / "shard_0002.hdf5", "w") as file:
        file.create_group("len")
        file.create_group("videos")
    with h5py.File(tmp_path / "shard_0001.hdf5", "a") as file:
        file["person/0"] = 3
        file["target/0"] = 1
    assert [Hdf5Source(tmp_path).length(index) for index in range(2)] == [5, 6]


def test_videogpt_files_are_read_with_their_own_split(tmp_path):
    """train_data/train_idx and test_data/test_idx become the splits train and test; val comes out of train."""
    clips = videos()
    write_videogpt(tmp_path / "bair.h5", clips, train=3)
    source = Hdf5Source(tmp_path / "bair.h5")
    for index, clip in enumerate(clips):
        assert np.array_equal(source.read(index), clip)
    test = open_clips(tmp_path / "bair.h5", 5, None, split="test", windows="first", dtype="uint8")
    assert len(test) == 2
    assert np.array_equal(test[1].permute(1, 2, 3, 0), clips[4][:5])
    train, val = (open_clips(tmp_path / "bair.h5", 5, None, split=split) for split in ("train", "val"))
    ids = [part.describe(index)["id"] for part in (train, val) for index in range(len(part))]
    assert len(val) == 1 and sorted(ids) == ["bair/0", "bair/1", "bair/2"]


def test_a_writer_that_fails_leaves_only_complete_shards(tmp_path):
    """What was not finished has no final name; a folder that holds shards is refused."""
    clips = videos()
    with pytest.raises(RuntimeError), Hdf5Writer(tmp_path, videos_per_shard=2) as writer:
        for clip in clips[:3]:
            writer.add(clip)
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["shard_00001.hdf5"]
    with pytest.raises(UserError, match="holds 1 shards already"):
        Hdf5Writer(tmp_path)
    source = Hdf5Source(tmp_path)
    assert len(source) == 2 and all(np.array_equal(source.read(index), clips[index]) for index in range(2))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "has no frames"),
        (np.zeros((2, 6, 8), np.uint8), r"found uint8 \(6, 8\)"),
        (np.zeros((2, 6, 8, 3), np.float32), "found float32"),
        (np.zeros((2, 6, 9, 3), np.uint8), "must have one size"),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path, frames, reason):
    """No silent cast, no video without frames, one frame size per shard."""
    with pytest.raises(UserError, match=reason), Hdf5Writer(tmp_path) as writer:
        writer.add(videos(1)[0])
        writer.add(frames)
    assert not list(tmp_path.iterdir())


def test_broken_files_give_one_line(tmp_path):
    """Truncated, no HDF5 at all, and HDF5 of something else each name the file and the reason."""
    with Hdf5Writer(tmp_path / "good") as writer:
        writer.add(videos(1)[0])
    good = (tmp_path / "good/shard_00001.hdf5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    reasons = {
        "cut.h5": "truncated",
        "text.h5": "not a readable HDF5",
        "other.h5": "found .'weights'",
        "no.h5": "no such",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=f"{name}: .*{reason}") as caught:
            Hdf5Source(tmp_path / name)
        assert "\n" not in str(caught.value)


def damaged(name: str, value: object = None) -> Callable[[h5py.File], None]:
    """Puts another data set, or a group, in the place of one."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_group(name) if value is None else file.create_dataset(name, data=value)

    return change


@pytest.mark.parametrize(
    ("layout", "change", "reason"),
    [
        ("chunked", damaged("id"), "cannot be read"),  # h5py: AttributeError
        ("chunked", damaged("label", ["a"]), "label has 1 entries for 2 videos"),
        ("chunked", damaged("fps", ["1/0", "25"]), "cannot be read"),
        ("chunked", damaged("offset", 3), "first frames of its videos are damaged"),
        ("chunked", damaged("offset", [0, 5, 10**12]), "do not lie in order among the"),
        ("chunked", damaged("offset", [0, 9, 3]), "do not lie in order among the"),
        ("chunked", damaged("frames", 1.0), "cannot be read"),  # TypeError
        ("river", damaged("len"), "holds no videos"),
        ("river", damaged("len/0", np.full(1000, 4)), "cannot be read"),
        ("river", damaged("len/0", 10**12), "numbers of frames in `len` are damaged"),
        ("river", damaged("len/0", -1), "numbers of frames in `len` are damaged"),
    ],
)
def test_what_is_damaged_inside_gives_one_line(tmp_path, layout, change, reason):
    """Data sets of another kind, length or order than the layout says; one of too many numbers is never read."""
    with Hdf5Writer(tmp_path, layout) as writer:
        for frames in videos(2):
            writer.add(frames, "x", "y", Fraction(25))
    (shard,) = tmp_path.glob("*.hdf5")
    with h5py.File(shard, "r+") as file:
        change(file)
    with pytest.raises(VideoError, match=reason) as caught:
        Hdf5Source(shard)
    assert "\n" not in str(caught.value)


def test_a_heap_that_is_damaged_gives_one_line(tmp_path):
    """h5py reports broken structures of the file as a RuntimeError."""
    with Hdf5Writer(tmp_path) as writer:
        writer.add(videos(1)[0])
    (shard,) = tmp_path.glob("*.hdf5")
    shard.write_bytes(shard.read_bytes().replace(b"HEAP", b"HEAQ"))
    with pytest.raises(VideoError, match="cannot be read"):
        Hdf5Source(shard)
