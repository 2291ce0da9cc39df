"""Names that people give their files: none is overwritten, none is lost to another, all can be written down."""

import json
import os
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest

import prepare_ucf101
from scripts import convert_bair, convert_kinetics, convert_to_h5, prepare_data
from tests.videodata.miniatures import bair_record
from videodata import UserError, VideoError, write_video
from videodata.datasets.bair import write_motions
from videodata.download import download
from videodata.errors import one_line
from videodata.files import lock_file
from videodata.hdf5 import Hdf5Source, Hdf5Writer, open_hdf5
from videodata.journal import sidecar_path
from videodata.sources import merge_parts, open_source
from videodata.splits import hashed_split
from videodata.video_folder import list_videos, unique_names

SMALL = ["--num_frames", "2", "--width", "16", "--height", "16", "--workers", "1"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_video(name: str, level: int = 0) -> Path:
    return write_video(Path("in", f"{name}.mp4"), np.full((3, 16, 16, 3), level, np.uint8), Fraction(25))


def content(folder: str = ".") -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_one_line():
    """Bytes that are no text, control characters and line separators are written out; all else stays as it is."""
    assert one_line("a\udcff\n\x07\u2028\ud83d b\\") == "a\\xff\\n\\x07\\u2028\\ud83d b\\"
    assert one_line("Ärger \U0001f600 e\u0301 \u200d") == "Ärger \U0001f600 e\u0301 \u200d"
    assert str(VideoError("a\n\udce9.mp4", "is\nbroken")) == "a\\n\\xe9.mp4: is\\nbroken"


@pytest.mark.parametrize("name", ["mine.json", "mine.npy.partial", "mine.npy.journal.jsonl", "mine.npy.lock"])
@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_files_of_the_user_are_not_overwritten_by_an_array(name, flags):
    """Whatever the array's companions are called, a file of that name that is not ours stops the run before a frame."""
    make_video("a")
    Path(name).write_text('{"my": "notes"}\n')
    before = content()
    with pytest.raises(UserError, match=f"^{name}: (was not made by this command|is a file of yours).*move it away"):
        prepare_ucf101.main(["--video_folder", "in", "--output_npy_file", "mine.npy", *SMALL, *flags])
    assert content() == before


@pytest.mark.parametrize("name", ["mine.json", "mine.partial/x", "mine.journal.jsonl", "mine.lock"])
@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_files_of_the_user_are_not_overwritten_by_a_folder(name, flags):
    """The same for other formats: `--out poetry` leaves poetry.lock alone."""
    make_video("a")
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    before = content()
    with pytest.raises(UserError, match="^mine.*(was not made by this command|is a file of yours).*move it away"):
        prepare_data.main(["folder", "in", "--out", "mine", "--format", "hdf5", *SMALL, *flags])
    assert content() == before


def test_what_a_killed_run_left_is_ours():
    """An empty journal, the torn beginning of one, an unfinished array beside a journal: taken up or begun again."""
    make_video("a")
    command = ["--video_folder", "in", "--output_npy_file", "o.npy", *SMALL]
    for left in (b"", b'{"format": "videodata-npy-'):
        Path("o.npy.journal.jsonl").write_bytes(left)
        Path("o.npy.partial").write_bytes(b"\x93NUMPY")
        prepare_ucf101.main(command)
        assert sorted(os.listdir()) == ["in", "o.json", "o.npy"]
        Path("o.npy").unlink()
    Path("o.npy.partial").touch()
    prepare_ucf101.main(command)
    assert np.load("o.npy").shape == (1, 2, 16, 16, 3)


def test_the_side_car_of_another_output_stays():
    """train.json describes train.npy: a folder `train` beside it would take its name, and a merge would too."""
    make_video("a")
    prepare_data.main(["folder", "in", "--out", "train.npy", *SMALL])
    before = content()
    with pytest.raises(UserError, match="^train.json: was not made by this command"):
        prepare_data.main(["folder", "in", "--out", "train", "--format", "frames", *SMALL, "--restart"])
    for number in (1, 2):
        part = f"train-000{number}-of-0002.npy"
        Path(part).write_bytes(Path("train.npy").read_bytes())
        sidecar_path(Path(part)).write_bytes(Path("train.json").read_bytes())
    with pytest.raises(UserError, match="^train.json: is no index of parts"):
        merge_parts(Path())
    assert before.items() <= content().items()


def test_hidden_parts_do_not_count():
    """`._train-0001-of-0002.npy` of a Macintosh is no part of anything."""
    make_video("a")
    make_video("b")
    for share in ("1/2", "2/2"):
        prepare_data.main(["folder", "in", "--out", "out", "--shard", share, *SMALL])
    for path in list(Path("out").iterdir()):
        Path("out", f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert [path.name for path, _ in merge_parts(Path("out"))] == ["clips.json"]
    assert len(open_source("out")) == 2


def test_what_files_say_is_quoted_in_one_line():
    """A setting that stands in a side-car may hold anything, and the message that names it is one line all the same."""
    make_video("a")
    make_video("b")
    for share in ("1/2", "2/2"):
        prepare_data.main(["folder", "in", "--out", "out", "--shard", share, *SMALL])
    second = next(Path("out").glob("*-0002-of-0002.json"))
    second.write_text(json.dumps(json.loads(second.read_text()) | {"num_frames": "ü\x00\n"}))
    with pytest.raises(UserError, match=r"made with other settings .*now ü\\x00\\n\)$"):
        merge_parts(Path("out"))


def test_actions_of_the_user_are_not_overwritten():
    """Beside an array and beside the frames of the converter: refused before anything is read."""
    for part in ("train", "test"):
        folder = Path("bair/softmotion30_44k", part)
        folder.mkdir(parents=True)
        (folder / "traj.tfrecords").write_bytes(bair_record(1))
    flags = ["--out", "out", "--root", ".", "--keep_going", *SMALL]
    Path("out").mkdir()
    for name, command in (
        ("out/test.actions.npz", lambda: prepare_data.main(["bair", *flags])),
        ("bair/processed_data/test.actions.npz", lambda: convert_bair.main(["--data_dir", "bair"])),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        np.savez(name, mine=np.arange(3))
        before = content()
        with pytest.raises(UserError, match=f"^{name}: is a file of yours"):
            command()
        assert content() == before
        Path(name).write_text("no archive")
        with pytest.raises(UserError, match=f"^{name}: is a file of yours"):
            write_motions(None, [], Path(name))
        Path(name).unlink()
        command()
        assert np.load(name)["id"].tolist() == ["traj/0"]


@pytest.mark.parametrize("name", ["data.bin.part", "data.bin.part.json", "data.bin.lock"])
def test_a_download_leaves_files_of_the_user(name):
    """A browser calls its unfinished files `.part` as well."""
    Path("source.bin").write_bytes(b"new")
    Path(name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}.* move it away"):
        download(Path("source.bin").absolute().as_uri(), "data.bin", allow_file=True)
    assert Path(name).read_text() == "mine" and not Path("data.bin").exists()


def test_a_lock_is_no_file_of_the_user():
    """One that holds something is neither locked nor removed."""
    Path("uv.lock").write_text("version = 1")
    with pytest.raises(UserError, match=r"^uv.lock: is a file of yours"), lock_file("uv", "writing"):
        pass
    assert Path("uv.lock").read_text() == "version = 1"


def test_names_are_unique_whatever_they_are():
    """The short name only where no other file or folder needs it; never by who comes first."""
    full = ["a.mp4", "a.webm", "b.mp4", "b/1.mp4", "x.mp4", "x.avi", "x.mp4.avi", "c.mp4"]
    short = ["a", "a", "b", "b/1", "x", "x", "x.mp4", "c"]
    names = ["a.mp4", "a.webm", "b.mp4", "b/1", "x.mp4", "x.avi", "x.mp4.avi", "c"]
    assert unique_names(short, full) == names
    assert unique_names(short[::-1], full[::-1]) == names[::-1]


def test_a_video_and_a_folder_of_one_name():
    """walk.mp4 beside walk/: the frames of both are written, whichever is done first."""
    for number, name in enumerate(("walk", "walk/1", "walk/2")):
        make_video(name, 40 * number)
    prepare_data.main(["folder", "in", "--out", "out", "--format", "frames", *SMALL])
    source = open_source("out")
    assert {source.id(k): round(source.read(k).mean() / 40) for k in range(3)} == {
        "walk.mp4": 0, "walk/1": 1, "walk/2": 2
    }  # fmt: skip


def test_twins_in_the_frames_of_kinetics():
    """a.mp4 and a.webm of one class are two folders, in each run, also when one comes later."""
    make_video("c/a", 50)
    convert = ["--video_dir", "in", "--output_dir", "out", "--img_size", "16"]
    convert_kinetics.main(convert)
    make_video("c/b", 200).rename("in/c/a.webm")
    for _ in range(2):
        convert_kinetics.main(convert)
    source = open_source("out")
    assert {source.id(k): round(source.read(k).mean() / 50) for k in range(len(source))} == {
        "c/a": 1, "c/a.mp4": 1, "c/a.webm": 4
    }  # fmt: skip
    assert not [path for path in Path("out").rglob(".*")]


@pytest.mark.parametrize("layout", ["river", "chunked"])
def test_prepared_frames_become_shards(layout):
    """convert_to_h5.py finds the videos below the folders of labels that prepare_data.py writes."""
    for number, name in enumerate(("jump/a", "jump/b", "run/a")):
        make_video(name, 60 * number)
    for part in ("train", "test"):
        prepare_data.main(["folder", "in", "--out", f"frames/{part}", "--format", "frames", *SMALL])
    convert_to_h5.main(["--data_dir", "frames", "--out_dir", "h5", "--image_size", "16", "--layout", layout])
    source = open_source("h5/train")
    assert [round(source.read(k).mean() / 60) for k in range(3)] == [0, 1, 2] and len(open_source("h5/test")) == 3
    if layout == "chunked":
        assert [(source.id(k), source.label(k)) for k in range(3)] == [
            ("jump/a", "jump"), ("jump/b", "jump"), ("run/a", "run")
        ]  # fmt: skip


def test_a_suffix_in_any_case():
    """OUT.NPY is an array with OUT.json beside it; SHARD.HDF5 is a shard; folders called like files are folders."""
    make_video("a")
    prepare_ucf101.main(["--video_folder", "in", "--output_npy_file", "OUT.NPY", *SMALL])
    assert sorted(os.listdir()) == ["OUT.NPY", "OUT.json", "in"]
    assert open_source("OUT.NPY").id(0) == "a#0"
    with Hdf5Writer("h") as writer:
        writer.add(np.zeros((3, 16, 16, 3), np.uint8), "v")
    Path("h/shard_00001.hdf5").rename("h/SHARD.HDF5")
    assert open_source("h").id(0) == open_source("h/SHARD.HDF5").id(0) == "v"
    Path("in").rename("in.h5")
    assert open_source("in.h5").id(0) == "a"


@pytest.mark.parametrize("name", ["stray.npy", "stray.h5", "STRAY.HDF5"])
def test_a_mixed_folder_says_so(name):
    """An array beside videos does not decide what the folder is; a hidden one does not count."""
    make_video("c/a")
    Path("in", f"._{name}").write_bytes(b"\0\5\x16\7")
    assert open_source("in").id(0) == "c/a"
    Path("in", name).write_bytes(b"x")
    with pytest.raises(
        VideoError, match=r"in: holds (HDF5 shards|.npy arrays) and videos: name one file, or give each"
    ):
        open_source("in")


@pytest.mark.parametrize("suffix", [".npy", ".hdf5"])
def test_one_bad_array_among_good_ones(suffix):
    """It is broken, not the folder; a folder of nothing else says why."""
    Path("in").mkdir()
    for name in ("0", "m", "z"):
        Path("in", f"{name}bad{suffix}").write_bytes(b"no array")
        Path("in", f"{name}gone{suffix}").symlink_to("nowhere")
    with pytest.raises(VideoError, match=f"in/0gone{suffix}: is a link to nothing"):
        open_source("in")
    if suffix == ".npy":
        np.save("in/good.npy", np.zeros((1, 2, 8, 8, 3), np.uint8))
    else:
        with Hdf5Writer("made") as writer:
            writer.add(np.zeros((2, 8, 8, 3), np.uint8))
        Path("made/shard_00001.hdf5").rename("in/good.hdf5")
    source = open_source("in")
    assert len(source) == 1 and source.read(0).shape == (2, 8, 8, 3)
    assert sorted(Path(error.path).name for error in source.broken) == sorted(
        f"{name}{kind}{suffix}" for name in "0mz" for kind in ("bad", "gone")
    )


def test_ids_can_be_hashed_and_stored():
    """A name that is no text: the same id in the list, in the split and in the side-car."""
    names = [os.fsdecode(f"caf\xe9{number}".encode("latin-1")) for number in range(3)]
    try:
        for name in names:
            make_video(f"cl\n{name}/{name}")
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        pytest.skip("this file system takes text alone")
    source = open_source("in")
    expected = [f"cl\\ncaf\\xe9{number}/caf\\xe9{number}" for number in range(3)]
    assert [source.id(k) for k in range(3)] == expected and source.label(0) == "cl\\ncaf\\xe90"
    assert len(hashed_split(source, "train")) == 1
    prepare_ucf101.main(["--video_folder", "in", "--output_npy_file", "out.npy", *SMALL])
    assert [video["id"] for video in json.loads(Path("out.json").read_text())["videos"]] == expected


def test_a_folder_where_nothing_can_be_opened():
    """Links to nothing alone: each command says what they are."""
    Path("in").mkdir()
    Path("in/a.mp4").symlink_to("nowhere.mp4")
    Path("in/folder").symlink_to("nowhere")
    assert [video.error for video in list_videos("in")] == ["is a link to nothing"] * 2
    with pytest.raises(UserError, match=r"nothing to write, 2 of 2 videos cannot be read.*a: is a link to nothing"):
        prepare_ucf101.main(["--video_folder", "in", *SMALL])
    for form in ("hdf5", "frames", "videos"):
        with pytest.raises(UserError, match=r"nothing to write, 2 of 2 videos cannot be read"):
            prepare_data.main(["folder", "in", "--out", "out", "--format", form, *SMALL])
    assert os.listdir() == ["in"]
    Path("in/a.mp4").unlink()
    with pytest.raises(VideoError, match="in/folder: is a link to nothing"):
        open_source("in")


def test_facts_of_other_programs():
    """Integer ids and labels are read as texts; ids with a newline become one line; too few are no HDF5 of videos."""
    with Hdf5Writer("h") as writer:
        for name in ("a\nb", "c"):
            writer.add(np.zeros((2, 8, 8, 3), np.uint8), name, "say\nit")
    assert Hdf5Source("h").id(0) == "a\\nb" and Hdf5Source("h").label(0) == "say\nit"
    with h5py.File("h/shard_00001.hdf5", "r+") as file:
        for name, values in (("id", [7, 8]), ("label", [1, 2]), ("fps", [29.97, 25.0]), ("group", [b"\xff", b"g"])):
            del file[name]
            file[name] = np.array(values)
    source = Hdf5Source("h")
    assert [source.id(0), source.label(1), source.fps(0), source.group(0)] == ["7", "2", Fraction("29.97"), "\\xff"]
    with h5py.File("h/shard_00001.hdf5", "r+") as file:
        del file["id"]
        file["id"] = np.array([7])
    with pytest.raises(VideoError, match="cannot be read .*/id has 1 entries for 2 videos"):
        Hdf5Source("h")


@pytest.mark.posix
def test_a_locked_shard_says_so(monkeypatch):
    """It need not be prepared again."""
    import fcntl  # where there is such a lock

    with Hdf5Writer("h") as writer:
        writer.add(np.zeros((2, 8, 8, 3), np.uint8))
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    with open("h/shard_00001.hdf5", "rb") as writer:  # a program that has it open for writing holds this lock
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(VideoError) as raised:
            open_hdf5("h/shard_00001.hdf5")
    assert "is locked: wait for the program that writes" in str(raised.value)
    assert "HDF5_USE_FILE_LOCKING=FALSE" in str(raised.value) and "prepare it again" not in str(raised.value)
