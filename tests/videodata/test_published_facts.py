"""What the modules say about the published data sets, against the official lists."""

import csv

import pytest

from scripts import prepare_data
from videodata import video_folder
from videodata.datasets import kth, ucf101
from videodata.datasets.dataset import Place, RemoteFile, Shard, read_split_file
from videodata.datasets.ucf101 import COUNTS, Ucf101
from videodata.datasets.youtube import Clip, parse_file_name, read_clips
from videodata.errors import UserError


def test_groups_give_the_official_lists_of_ucf101(clips):
    """For each fold, the rule by group number names the same videos as trainlist and testlist."""
    with open(clips / "ucf101_lists" / "frame_counts.csv", newline="") as stream:
        names = [next(iter(row.values())) for row in csv.DictReader(stream)]
    groups = {name.rpartition("/")[2].removesuffix(".avi"): video_folder.parse_name(name).group for name in names}
    assert len(groups) == ucf101.VIDEOS
    for fold, counts in COUNTS.items():
        dataset = Ucf101(fold)
        for split, count in zip(("train", "test"), counts, strict=True):
            listed = read_split_file(clips / "ucf101_lists" / f"{split}list0{fold}.txt")
            assert {name.lower() for name, group in groups.items() if dataset.part(group) == split} == {
                name.rpartition("/")[2].removesuffix(".avi") for name in listed
            }
            assert len(listed) == count


def test_numbers_of_frames_that_nothing_has(tmp_path):
    """More digits than Python turns into a number, or than a film has frames."""
    for number in ("9" * 6000, "9" * 10):
        (tmp_path / "00sequences.txt").write_text(f"person01_boxing_d1\tframes\t1-95, 96-{number}\n")
        with pytest.raises(UserError, match=r"00sequences.txt: person01_boxing_d1 has no frames 96-9{10}") as raised:
            kth.read_sequences(tmp_path / "00sequences.txt")
        assert len(str(raised.value)) < len(str(tmp_path)) + 200


def test_sequences_of_kth(clips, tmp_path):
    """2391 sequences of 599 films, divided by persons as published: 1528 and 863 for prediction."""
    listed = kth.read_sequences(clips / "kth" / "00sequences.txt")
    assert (len(listed), len({entry.film for entry in listed})) == (kth.Kth.sequences, kth.Kth.films)
    assert sum(entry.last - entry.first + 1 >= 50 for entry in listed) == 2122
    assert {action: sum(entry.action == action for entry in listed) for action in kth.ACTIONS[:4]} == {
        "boxing": 397, "handclapping": 396, "handwaving": 398, "jogging": 400
    }  # fmt: skip
    for protocol, parts in kth.PROTOCOLS.items():
        for split, persons in parts.items():
            assert sum(entry.person in persons for entry in listed) == kth.Kth.counts[protocol][split]
    (tmp_path / "kth").mkdir()
    (tmp_path / "kth" / "00sequences.txt").write_bytes((clips / "kth" / "00sequences.txt").read_bytes()[:-3000])
    with pytest.raises(UserError, match="the published list 2391 of 599: delete it"):
        kth.Kth().videos(Place(tmp_path), "test", Shard())


def test_a_film_and_its_sequences(clips, tmp_path, monkeypatch):
    """Frames first to last of the list, from 1 and both included; what reaches beyond the film is cut and noted."""
    import json

    import numpy as np

    monkeypatch.setattr(kth.Kth, "sequences", 3)
    monkeypatch.setattr(kth.Kth, "films", 1)
    root = tmp_path / "kth"
    for action in kth.ACTIONS:
        (root / action).mkdir(parents=True)
    film = root / "boxing" / "person25_boxing_d4_uncomp.avi"
    film.symlink_to(clips / "synthetic" / "kth_like_160x120_25fps_100f.avi")
    (root / "00sequences.txt").write_text("person25_boxing_d4 frames 1-10, 51-60, 91-120\n")
    out = tmp_path / "out"
    flags = ["--width", "160", "--height", "120", "--num_frames", "10", "--split", "test", "--out", str(out)]
    prepare_data.main(["kth", "--root", str(tmp_path), *flags])
    array, sidecar = np.load(out / "test.npy"), json.loads((out / "test.json").read_text())
    bits = array[..., 4, 7::13, 0][..., :12] > 127  # each frame carries its number in blocks along the top edge
    numbers = (bits * (1 << np.arange(12))).sum(axis=-1)
    assert numbers.tolist() == [list(range(start, start + 10)) for start in (0, 50, 90)]
    assert sidecar["videos"][2]["note"] == "frames 90 to 119 were asked for, the video has 10 of these"
    assert sidecar["protocol"] == "prediction" and sidecar["persons"]["test"] == list(range(17, 26))


def test_lists_of_kinetics(tmp_path):
    """With and without labels; unknown columns are ignored; what is no id or no time is one line with its number."""
    path = tmp_path / "list.csv"
    path.write_text("label,youtube_id,time_start,time_end,split,is_cc\nmaking a cake,-bcdefghijk,3,13.0,train,0\n")
    assert read_clips(path) == [Clip("making a cake", "-bcdefghijk", 3, 13)]
    assert read_clips(path)[0].stem == "-bcdefghijk_000003_000013"
    path.write_text("youtube_id,time_start,time_end\nabcdefghijk,0,10\n")
    assert read_clips(path)[0].label is None
    for text, line in (
        ("youtube_id,time_start\n", "no column named time_end"),
        ("youtube_id,time_start,time_end\n$(rm -r x),0,10\n", "line 2.*no YouTube id"),
        ("youtube_id,time_start,time_end\nabcdefghijk,ten,10\n", "line 2.*must be seconds"),
        ("youtube_id,time_start,time_end\n", "lists no clips"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=line):
            read_clips(path)
    assert parse_file_name("abc_efghijk_000070_000080") == parse_file_name("abc_efghijk_70_10") == ("abc_efghijk", 70)


def test_addresses_with_spaces():
    """Spaces and brackets of class names are quoted once, on the published host or on a mirror."""
    url = "https://s3.amazonaws.com/kinetics/600/train/tying knot (not on a tie).tar.gz"
    quoted = "/kinetics/600/train/tying%20knot%20%28not%20on%20a%20tie%29.tar.gz"
    assert Place(None).address(url) == "https://s3.amazonaws.com" + quoted
    assert Place(None, "http://mirror:80/").address("https://s3.amazonaws.com" + quoted) == "http://mirror:80" + quoted
    assert RemoteFile(url).name == "tying knot (not on a tie).tar.gz"


def test_shares_cover_everything_once():
    """Every item falls to one share, in order, and the shares differ by one item at most."""
    items = list(range(23))
    shares = [Shard(number, 5).of(items) for number in range(1, 6)]
    assert sum(shares, []) == items and {len(share) for share in shares} == {4, 5}
    for text in ("0/4", "5/4", "x", "1/0", "1"):
        with pytest.raises(UserError, match="--shard"):
            Shard.parse(text)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["kth", "--split", "val"], "kth has train, test"),
        (["bair", "--shard", "3/2"], "--shard 3/2"),
        (["clevrer", "--out", "x.npy", "--format", "hdf5"], "goes with --format npy"),
        (["folder", "nowhere"], "no such folder of videos"),
        (["ucf101", "--classes", "Archerie"], "nearest is 'Archery'"),
        (["kinetics600", "--url_root", "ftp://example.org"], "only https:// and http://"),
        (["moving_mnist", "--split", "train"], "name its file with --mnist"),
        (["moving_mnist", "--mnist", "nowhere", "--split", "train"], "cannot be read"),
        (["digits", "--digits", "4"], "1, 2 or 3 digits"),
        (["merge", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, command, line):
    """What is wrong, in one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    out = [] if command[0] == "merge" or "--out" in command else ["--out", "out"]
    with pytest.raises(UserError, match=line) as raised:
        prepare_data.main([*command, *out])
    assert "\n" not in str(raised.value) and not list(tmp_path.rglob("out*"))


@pytest.mark.parametrize("name", ["ucf101", "bair", "kth", "clevrer", "kinetics600", "moving_mnist"])
def test_dry_run_names_sources_and_sizes(tmp_path, monkeypatch, capsys, name):
    """--dry_run tells what would be fetched, how many videos there are and how large the result is; nothing happens."""
    monkeypatch.chdir(tmp_path)
    prepare_data.main([name, "--out", "out", "--dry_run"])
    out = capsys.readouterr().out
    assert "://" in out and "published videos: t" in out and "GB" in out and not list(tmp_path.iterdir())
