"""Sources: folders, frame trees, lists and arrays, what they name their videos and what they refuse."""

import json
import logging
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from videodata import UserError, VideoError, open_clips, video_folder, write_video
from videodata.files import natural_key
from videodata.sources import open_source


def noise(frames: int, height: int = 8, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def write_frames(folder, frames, first: int = 0, suffix: str = ".png") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"{number}{suffix}")


def names(source) -> list[str]:
    return [source.id(index) for index in range(len(source))]


def sidecar(path, **changes) -> None:
    def video(name: str, group: str, fps: str, first: int, sequences: int) -> dict:
        facts = {"id": name, "label": name[0], "group": group, "fps": fps, "frames": 4 * sequences + 1}
        return {**facts, "first_sequence": first, "sequences": sequences}

    content = {"format": "videodata-npy", "version": 1, "color": "RGB", "num_frames": 4, "height": 8, "width": 10}
    content["videos"] = [
        video("A/v_A_g01_c01", "v_A_g01", "25/1", 0, 2),
        video("A/v_A_g01_c02", "v_A_g01", "30000/1001", 2, 1),
        video("B/short", "B/short", "25/1", 3, 0),
    ]
    path.write_text(json.dumps({**content, "resize": "squeeze", "stride": 1, "skipped": [], **changes}))


def test_names_sort_by_their_numbers():
    """2 before 10, folder by folder, with and without zeros in front."""
    unsorted = ["b/1.png", "a10/1.png", "a2/10.png", "a2/2.png", "a2/02.png", "A3/1.png", "frame.png", "1.png"]
    expected = ["1.png", "a2/02.png", "a2/2.png", "a2/10.png", "A3/1.png", "a10/1.png", "b/1.png", "frame.png"]
    assert sorted(unsorted, key=natural_key) == expected


def test_a_folder_of_videos(tmp_path, caplog):
    """Sub-folders, natural order, labels from folders, UCF101 groups, hidden and stray files left out, one warning."""
    for name in ("Bow/v_Bow_g02_c10", "Bow/v_Bow_g02_c2", "Axe/clip 7", "loose"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / f"{name}.mp4", noise(6), "30000/1001")
    (tmp_path / "Bow/._v_Bow_g02_c10.mp4").write_bytes(b"mac")
    (tmp_path / "Bow/notes.txt").write_text("x")
    (tmp_path / "README").write_text("x")
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert names(source) == ["Axe/clip 7", "Bow/v_Bow_g02_c2", "Bow/v_Bow_g02_c10", "loose"]
    assert [source.label(k) for k in range(4)] == ["Axe", "Bow", "Bow", None]
    assert [source.group(k) for k in range(4)] == ["Axe/clip 7", "v_Bow_g02", "v_Bow_g02", "loose"]
    assert {source.fps(k) for k in range(4)} == {Fraction(30000, 1001)}
    assert [source.length(k) for k in range(4)] == [6] * 4
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: 2 files that are not videos are left out (1 .txt, 1 README)"
    ]


def test_links_are_followed_once(tmp_path):
    """A linked folder is read; a link back to the top does not multiply the videos."""
    write_frames(tmp_path / "elsewhere/v", noise(2))
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere/v")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    assert names(open_source(tmp_path / "data")) == ["linked"]


def test_flat_ucf101_names_give_class_and_group(clips):
    """A flat folder as in the zip archive: the class comes from the file name."""
    source = open_source(clips / "tfds_fake/ucf101/videos")
    assert [source.label(k) for k in range(5)] == ["Archery"] * 2 + ["Nunchucks"] * 3
    flat = open_source(clips / "tfds_fake/ucf101/videos/UCF101")
    assert [flat.label(k) for k in range(5)] == ["Archery"] * 2 + ["Nunchucks"] * 3
    assert flat.group(3) == flat.group(4) == "v_Nunchucks_g09"
    assert [flat.length(k) for k in range(5)] == [5] * 5


def test_the_index_is_kept_and_renewed(tmp_path, monkeypatch):
    """A second opening examines nothing; a changed, new or removed file is noticed; the index is JSON."""
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", noise(4 + k), 10)
    examined = []
    real = video_folder._examine
    monkeypatch.setattr(video_folder, "_examine", lambda file: examined.append(file.name) or real(file))
    open_source(tmp_path)
    assert sorted(examined) == ["0.mp4", "1.mp4", "2.mp4"]
    examined.clear()
    open_source(tmp_path)
    assert examined == []
    write_video(tmp_path / "1.mp4", noise(9), 10)
    (tmp_path / "0.mp4").unlink()
    write_video(tmp_path / "3.mp4", noise(3), 10)
    source = open_source(tmp_path)
    assert sorted(examined) == ["1.mp4", "3.mp4"]
    assert [source.length(k) for k in range(3)] == [9, 6, 3]
    assert json.loads((tmp_path / video_folder.INDEX_NAME).read_text())["format"] == "videodata-index"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": "other"}'])
def test_a_foreign_index_is_made_anew(tmp_path, content):
    """Whatever lies under the index's name, frame counts are right."""
    for k in range(2):
        write_video(tmp_path / f"{k}.mp4", noise(4), 10)
    (tmp_path / video_folder.INDEX_NAME).write_text(content)
    assert open_source(tmp_path).length(1) == 4


@pytest.mark.parametrize("marked", [True, False])
def test_the_index_of_a_read_only_folder_goes_to_the_cache(tmp_path, monkeypatch, marked):
    """Nothing is written beside the videos when that fails or should (even for root), and the index is still of use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    for k in range(2):
        write_video(data / f"{k}.mp4", noise(4), 10)
    real = video_folder.write_file

    def refuse_data(place, text):
        if place.parent == data:
            raise PermissionError(13, "read-only", str(place))
        return real(place, text)

    if marked:
        data.chmod(0o555)
    else:
        monkeypatch.setattr(video_folder, "write_file", refuse_data)
    open_source(data)
    data.chmod(0o755)
    assert sorted(os.listdir(data)) == ["0.mp4", "1.mp4"]
    monkeypatch.setattr(video_folder, "_examine", lambda file: pytest.fail("examined again"))
    assert open_source(data).length(0) == 4


def test_a_csv_list(tmp_path):
    """Columns path and text, paths relative to the list, order kept; a missing file is broken, not silently absent."""
    write_video(tmp_path / "films/b.mp4", noise(5), 8)
    write_video(tmp_path / "films/a.mp4", noise(4), 8)
    table = tmp_path / "list.csv"
    table.write_text('path,text\nfilms/b.mp4,"a dog, running"\nfilms/a.mp4,\nfilms/none.mp4,x\n', encoding="utf-8-sig")
    source = open_source(table)
    assert names(source) == ["films/b.mp4", "films/a.mp4"]
    assert [source.label(0), source.label(1)] == ["a dog, running", None]
    assert [str(error) for error in source.broken] == [f"{tmp_path}/films/none.mp4: no such file"]
    with pytest.raises(VideoError, match=r'none.mp4: no such file; remove it.*on_error="skip"'):
        open_clips(table, 4, 8)
    assert len(open_clips(table, 4, 8, on_error="skip")) == 2
    table.write_text("file,text\na.mp4,x\n")
    with pytest.raises(UserError, match=r"has no column named path; found \['file', 'text'\]"):
        open_source(table)


def test_a_tree_of_frames(tmp_path, caplog):
    """Any folder with images is a video; frames in the order of their numbers; `._` files and stray ones left out."""
    first, second = noise(12), noise(3, seed=1)
    write_frames(tmp_path / "jump/clip10", first)
    write_frames(tmp_path / "jump/clip9", second, first=1)
    (tmp_path / "jump/clip9/._1.png").write_bytes(b"mac")
    (tmp_path / "jump/clip9/Thumbs.db").write_bytes(b"windows")
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert names(source) == ["jump/clip9", "jump/clip10"]
    assert source.label(0) == "jump"
    assert source.fps(0) is None
    assert np.array_equal(source.read(0), second)
    assert np.array_equal(source.read(1, 2, 5, 2), first[2:12:2])
    assert source.size(1) == (8, 10)
    assert len(caplog.records) == 1
    one = open_source(tmp_path / "jump/clip10")
    assert (names(one), one.length(0)) == (["clip10"], 12)


def test_real_frames_in_number_order(clips):
    """Five frames of a robot arm: one video of five 64x64 frames."""
    source = open_source(clips / "lvt_bair_priming")
    frames = source.read(0)
    assert frames.shape == (5, 64, 64, 3)
    steps = abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
    assert steps.max() < abs(frames[4].astype(float) - frames[0]).mean() * 2


def test_images_of_all_kinds_become_rgb(tmp_path):
    """Grey, palette, RGBA over black and jpeg; a broken or differently sized one is named."""
    folder = tmp_path / "v"
    folder.mkdir()
    Image.new("L", (4, 4), 90).save(folder / "0.png")
    Image.new("RGB", (4, 4), (200, 0, 0)).quantize(4).save(folder / "1.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 128)).save(folder / "2.png")
    Image.new("RGB", (4, 4), (90, 90, 90)).save(folder / "3.jpg")
    frames = open_source(folder).read(0)
    assert frames[:, 0, 0].tolist() == [[90] * 3, [200, 0, 0], [128] * 3, [90] * 3]
    Image.new("RGB", (5, 4)).save(folder / "4.png")
    source = open_source(folder)
    with pytest.raises(VideoError, match="frames have different sizes"):
        source.read(0)
    (folder / "4.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"4.png: is not a readable image"):
        source.read(0)


def test_an_array_with_its_side_car(tmp_path):
    """Each sequence is an item that knows its video, label, group and exact rate; the array stays on disk."""
    array = np.stack([noise(4, seed=k) for k in range(3)])
    np.save(tmp_path / "a.npy", array)
    sidecar(tmp_path / "a.json")
    source = open_source(tmp_path / "a.npy")
    assert names(source) == ["A/v_A_g01_c01#0", "A/v_A_g01_c01#1", "A/v_A_g01_c02#0"]
    assert [source.group(k) for k in range(3)] == ["v_A_g01"] * 3
    assert (source.label(2), source.fps(2), source.fps(1)) == ("A", Fraction(30000, 1001), Fraction(25))
    assert np.array_equal(source.read(1, 1, 3), array[1, 1:])
    assert isinstance(source._array.get(), np.memmap)


def test_arrays_without_a_side_car(tmp_path):
    """(N, T, H, W, 3) and (T, H, W, 3); BGR on request; one grey channel becomes three."""
    array = np.stack([noise(4, seed=k) for k in range(3)])
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(open_source(tmp_path / "a.npy").read(2), array[2])
    assert np.array_equal(open_source(tmp_path / "a.npy", color="bgr").read(2), array[2, ..., ::-1])
    np.save(tmp_path / "one.npy", array[0])
    one = open_source(tmp_path / "one.npy")
    assert (len(one), one.length(0), names(one)) == (1, 4, ["one#0"])
    assert np.array_equal(one.read(0, 1, 2), array[0, 1:3])
    np.save(tmp_path / "grey.npy", array[..., :1])
    assert np.array_equal(open_source(tmp_path / "grey.npy").read(0), array[0, ..., :1].repeat(3, -1))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 8, 8, 3), np.float32), r"expected uint8 .*, found float32 \(2, 4, 8, 8, 3\)"),
        (np.zeros((2, 4, 3, 8, 8), np.uint8), r"found uint8 \(2, 4, 3, 8, 8\): move the channel axis to the end"),
        (np.zeros((2, 3, 4, 8, 8), np.uint8), "move the channel axis to the end"),
        (np.zeros((8, 8, 3), np.uint8), r"found uint8 \(8, 8, 3\)"),
        (np.zeros((0, 4, 8, 8, 3), np.uint8), "the array is empty"),
        (np.array([{}], dtype=object), "not a readable .npy array"),
    ],
)
def test_arrays_of_the_wrong_kind_say_what_was_expected(tmp_path, array, reason):
    """Type and layout are checked when the file is opened; pickled objects are never loaded."""
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(VideoError, match=reason):
        open_source(tmp_path / "a.npy")


def test_broken_arrays_and_side_cars_are_named(tmp_path):
    """Truncated, no array, missing; a side-car that is damaged or describes another array."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 4, 8, 10, 3), np.uint8))
    for change, reason in (
        ({"num_frames": 5}, "describes sequences of shape"),
        ({"format": "x"}, "does not describe"),
        ({"version": 2}, "has version 2, this program reads 1"),
    ):
        sidecar(tmp_path / "a.json", **change)
        with pytest.raises(VideoError, match=reason):
            open_source(path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(VideoError, match="a.json: is not valid JSON"):
        open_source(path)
    (tmp_path / "a.json").unlink()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VideoError, match="it is truncated.*; prepare it again"):
        open_source(path)
    path.write_bytes(b"hello")
    with pytest.raises(VideoError, match="not a readable .npy"):
        open_source(path)
    with pytest.raises(VideoError, match="no such file"):
        open_source(tmp_path / "none.npy")


def test_paths_that_hold_nothing(tmp_path):
    """An empty folder, a folder of other things, a path that does not exist, and options that do not apply."""
    for path, reason in ((tmp_path, "holds no videos"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(VideoError, match=reason):
            open_source(path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(VideoError, match="holds no videos"):
        open_source(tmp_path)
    with pytest.raises(VideoError, match="not a readable video"):
        open_clips(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="applies to .npy files"):
        open_source(tmp_path, color="bgr")
    for text in ("shapes:", "shapes:x", "shapes:3,speed=2", "shapes:0"):
        with pytest.raises(UserError, match="shapes"):
            open_source(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 4, 8, 8, 3)", b"(9" + b"9" * 40 + b", 3)"),  # OverflowError of NumPy
        (b"'descr': '|u1'", b"'descr': (((('"),  # SyntaxError or TokenError
        (b"NUMPY", b"NUMPZ"),
        (b"\x93NUMPY", b"PK\x03\x04ab"),  # an archive, which np.load opens as well
    ],
)
def test_a_damaged_header_of_an_array_gives_one_line(tmp_path, old, new):
    """Whatever NumPy raises for it."""
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(old, new, 1))
    with pytest.raises(VideoError, match="not a readable .npy array") as caught:
        open_source(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("videos", [None, 3, ["x"], [{}], [{"id": 1, "first_sequence": 0, "sequences": 3}]])
def test_a_side_car_of_other_types_gives_one_line(tmp_path, videos):
    """Its entries are checked when the array is opened, not when they are asked for."""
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 8, 10, 3), np.uint8))
    sidecar(tmp_path / "a.json", videos=videos)
    with pytest.raises(VideoError, match="a.json: is damaged"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("parts", [None, [], [3], ["a.json"], "t-0001-of-0001.npy"])
def test_an_index_of_other_things_than_parts_gives_one_line(tmp_path, parts):
    """An index that lists itself would be read for ever."""
    (tmp_path / "a.json").write_text(json.dumps({"format": "videodata-parts", "version": 1, "parts": parts}))
    with pytest.raises(VideoError, match="a.json: .*parts"):
        open_source(tmp_path / "a.json")
