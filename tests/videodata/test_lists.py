"""Lists from any editor: no entry is lost, and what cannot be read is one line with file and position."""

import codecs
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import prepare_ucf101
from scripts import convert_kinetics, prepare_data
from videodata import UserError, write_video
from videodata.datasets.dataset import find_listed, read_split_file
from videodata.datasets.kinetics600 import convert_to_frames
from videodata.datasets.youtube import Clip, read_clips
from videodata.lists import read_lines, read_table
from videodata.sources import open_source
from videodata.video_folder import list_videos

SMALL = ["--num_frames", "2", "--width", "16", "--height", "16", "--workers", "1"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_videos(*names: str) -> None:
    for name in names:
        write_video(Path("in", f"{name}.mp4"), np.zeros((3, 16, 16, 3), np.uint8), Fraction(25))


def ids(videos) -> list[str]:
    return [video.id for video in videos]


def test_headers_and_fields_with_spaces_keep_their_captions():
    """`path, text`, any case, a mark before UTF-8, quoted texts after a space, empty rows of spreadsheets."""
    make_videos("a", "b c", "d")
    text = '\n Path, TEXT ,\r\na.mp4, a dog\n,,\n"b c.mp4" , "running, fast" ,\nd.mp4\n'
    Path("in/list.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    source = open_source("in/list.csv")
    assert [(source.id(k), source.label(k)) for k in range(3)] == [
        ("a.mp4", "a dog"), ("b c.mp4", "running, fast"), ("d.mp4", None)
    ]  # fmt: skip


def test_a_list_of_kinetics_with_spaces_in_its_header():
    """All times and labels are found."""
    Path("list.csv").write_text("label, YouTube_ID ,time_start, time_end\nplaying guitar, abcdefghijk, 3 ,13.0\n")
    assert read_clips("list.csv") == [Clip("playing guitar", "abcdefghijk", 3, 13)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            "path,text\na.mp4,x\nb.mp4,caf\xe9\n".encode("latin-1"),
            r"line 3: is no UTF-8 \(byte 27 is 0xe9\); save it as",
        ),
        ("path,text\na.mp4,x\n".encode("utf-16"), r"line 1: is UTF-16, or no text .*; save it as UTF-8"),
        ("path,text\na.mp4,x\n".encode("utf-16-be"), r"line 1: is UTF-16, or no text .*; save it as UTF-8"),
        (b"path,text\na.mp4," + b"x" * 131_073, "line 2: a field is longer than 131072 characters; .*save it as UTF-8"),
        (b'path,text\na.mp4,"x\nb.mp4,y\n', "line 2: a text begins with a quotation mark and none ends it"),
        (b"path,text\na.mp4,a dog, running\n", "line 2: has 3 fields, the header 2; put a text with commas"),
        (b"path,text\n,a dog\n", "line 2: names no video"),
        (b"path,text,Path\na.mp4,x,b.mp4\n", "has two columns named path"),
        (b"file,text\na.mp4,x\n", r"has no column named path; found \['file', 'text'\]"),
        (b"", r"has no column named path; found \[\]"),
    ],
)
def test_tables_that_cannot_be_read(data, reason):
    """Latin-1, UTF-16, a quotation mark that swallows the rest, a comma that cuts a caption off."""
    Path("list.csv").write_bytes(data)
    with pytest.raises(UserError, match=f"^list.csv.*{reason}") as raised:
        open_source("list.csv")
    assert "\n" not in str(raised.value)


def test_lines():
    """Any line end, a mark before UTF-8, spaces around; characters at which Python splits lines belong to names."""
    Path("list.txt").write_bytes(codecs.BOM_UTF8 + "first\r\n\r\n second \rthi\x0brd\u2028\n".encode())
    assert read_lines("list.txt") == ["first", "second", "thi\x0brd"]
    with pytest.raises(UserError, match="none.txt: cannot be read as a list .No such file"):
        read_lines("none.txt")
    assert read_table("list.txt", []) == [(3, {"first": "second"}), (4, {"first": "thi\x0brd"})]


def test_labels_with_a_mark_before_them(caplog):
    """The first class of the list counts too; classes of it that are not there are named."""
    make_videos("playing guitar/a", "archery/b", "yoga/c")
    Path("labels.txt").write_bytes(codecs.BOM_UTF8 + b"playing guitar\nyoga\ntennis\n")
    convert_kinetics.main(["--video_dir", "in", "--output_dir", "out", "--labels", "labels.txt", "--img_size", "8"])
    assert sorted(path.name for path in Path("out").iterdir()) == ["playing guitar", "yoga"]
    assert "labels.txt: 1 of 3 classes have no video, first: tennis" in caplog.text
    Path("labels.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="labels.txt, line 1: is no UTF-8"):
        list(convert_to_frames(Path("in"), Path("out"), Path("labels.txt")))


def test_split_files_with_spaces_in_names():
    """The last field is the number, where there is one; class and name both count; another suffix will do."""
    make_videos("playing guitar/b", "playing guitar/clip 7", "archery/b", "archery/x", "loose")
    lines = ["\ufeffPlaying Guitar/b.avi 1", "playing guitar/clip 7.mp4 12", "x.mp4\t3", "drums/loose.avi, 4", "gone"]
    Path("list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    videos = list_videos("in")
    found = find_listed(read_split_file("list.txt"), videos)
    assert [[videos[number].id for number in numbers] for numbers in found.values()] == [
        ["playing guitar/b"], ["playing guitar/clip 7"], ["archery/x"], ["loose"], []
    ]  # fmt: skip


def test_a_listed_suffix_chooses_between_twins():
    """Where two files differ by their suffix alone, the list's own is taken."""
    make_videos("c/a")
    Path("in/c/a.mkv").write_bytes(Path("in/c/a.mp4").read_bytes())
    videos = list_videos("in")
    assert ids(videos) == ["c/a.mkv", "c/a.mp4"]
    assert list(find_listed(["c/a.mp4", "c/a.mkv", "c/a.avi"], videos).values()) == [[1], [0], [0, 1]]


@pytest.mark.parametrize("keep_going", [False, True])
def test_listed_videos_that_are_not_there(capsys, keep_going):
    """What is there is written; the others are counted and an error, unless that is allowed."""
    make_videos("a/one", "a/two")
    Path("list.txt").write_text("a/two.mp4 1\na/three.mp4 1\nb/four.mp4 2\n")
    command = ["--video_folder", "in", "--output_npy_file", "out.npy", "--split_file", "list.txt", *SMALL]
    line = "list.txt: 2 of 3 listed videos are not in the folder: first a/three.mp4"
    if keep_going:
        prepare_ucf101.main([*command, "--keep_going"])
    else:
        with pytest.raises(UserError, match=f"^{line}; what is there was written"):
            prepare_ucf101.main(command)
    assert line in capsys.readouterr().out and len(np.load("out.npy")) == 1


@pytest.mark.parametrize("flags", [[], ["--classes", "a"], ["--max_videos", "1"]])
def test_what_other_flags_leave_out_is_no_loss(capsys, flags):
    """A list whose videos are all there is complete, whatever else chooses among them."""
    make_videos("a/one", "b/two")
    Path("list.txt").write_text("a/one 1\nb/two 2\n")
    prepare_data.main(["folder", "in", "--out", "out", "--split_file", "list.txt", *SMALL, *flags])
    assert "listed videos" not in capsys.readouterr().out and len(np.load("out/clips.npy")) == 2 - bool(flags)
