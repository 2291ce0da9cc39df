"""Tar shards as a source: their index, how they are named, and what is wrong with some."""

import io
import json
import os
import pickle
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from scripts import prepare_data
from tests.videodata.tars import FPS, FRAMES, SIDE, SOURCE, add, array, make_shards
from videodata import UserError, VideoError, open_clips, read_video
from videodata.provenance import overlap
from videodata.sources import open_source
from videodata.splits import divide, hashed_split
from videodata.tars import scan as tar_scan
from videodata.tars.index import INDEX_NAME, Sample, Shard, TarIndex, write_index
from videodata.tars.names import ShardList, expand_braces
from videodata.tars.scan import index_shards
from videodata.tars.source import TarSource


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three shards of four videos, with their index."""
    folder = make_shards(tmp_path_factory.mktemp("data") / "tars")
    prepare_data.main(["index", str(folder), "--workers", "1"])
    return folder


def test_what_is_in_them(shards):
    """Keys, labels, groups, rates and sizes by the members of each key; frames as in the files."""
    source = open_source(shards)
    assert [source.id(video) for video in range(12)] == [f"set/v{number:03d}" for number in range(12)]
    assert [source.label(video) for video in range(4)] == ["0", "video 1", "caption 2", "video 3"]
    assert [source.group(video) for video in range(4)] == ["set/v000", "g0", "set/v002", "g1"]
    assert [source.fps(video) for video in range(3)] == [Fraction(FPS), Fraction(30000, 1001), None]
    assert {source.length(video) for video in range(12)} == {FRAMES} and source.size(5) == (SIDE, SIDE)
    for video in (1, 6, 11):
        assert np.array_equal(source.read(video), SOURCE.read(video))
        assert np.array_equal(source.read(video, 3, 4, 2), SOURCE.read(video)[3:10:2])
    with tarfile.open(shards / "x-001.tar") as tar:
        (shards / "alone.mp4").write_bytes(tar.extractfile("set/v004.mp4").read())
    whole, _ = read_video(shards / "alone.mp4")
    (shards / "alone.mp4").unlink()
    assert np.array_equal(source.read(4), whole)
    assert np.array_equal(source.read(4, 5, 3, 2), whole[5:10:2])
    small = source.read_clip(4, 2, 3, 1, (16, 16))
    assert small.shape == (3, 16, 16, 3) and abs(small.astype(float).mean() - whole[2:5].mean()) < 2
    with pytest.raises(VideoError, match="frame 12 was asked for"):
        source.read(1, 10, 3)


def test_clips_of_them(shards):
    """open_clips, describe and labels work as with any source; spawned workers get a path, not the index."""
    clips = open_clips(shards, 8, SIDE, flip=True)
    assert clips[3].shape == (3, 8, SIDE, SIDE) and len(clips) == 12
    assert clips.describe(1)["id"] == "set/v001" and clips.label(4) == "0"
    assert clips.labels()[:3] == ["0", "caption 10", "caption 2"]
    assert clips.rates() == {Fraction(FPS), Fraction(30000, 1001), None} and clips.stored_sizes() == {(SIDE, SIDE)}
    assert clips.blocks().tolist() == [0, 4, 8]
    assert open_clips(shards, 6, SIDE, windows="consecutive").blocks().tolist() == [0, 8, 16]
    copy = pickle.loads(pickle.dumps(clips))
    assert (copy[(2, 77)] == clips[(2, 77)]).all() and copy.fingerprint() == clips.fingerprint()
    assert len(pickle.dumps(clips)) < 2000
    with pytest.raises(VideoError, match="the longest has 12"):
        open_clips(shards, 13, SIDE)


@pytest.mark.parametrize(
    ("name", "videos"),
    [
        ("", 12),
        ("x-{000..002}.tar", 12),
        ("x-{000,002}.tar", 8),
        ("x-001.tar", 4),
        ("shards.index", 12),
        ("two.json", 8),
    ],
)
def test_how_they_are_named(shards, name, videos):
    """A folder, braces, one tar, the index, and WebDataset's list of shards."""
    listed = [{"url": f"x-00{number}.tar", "nsamples": 4} for number in (1, 2)]
    wids = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "two", "shardlist": listed}
    (shards / "two.json").write_text(json.dumps(wids))
    source = open_source(shards / name if name else shards)
    (shards / "two.json").unlink()
    assert len(source) == videos
    for video in (0, videos - 1):  # the same by number among some of the shards
        number = int(source.id(video)[-3:])
        assert source.label(video) == open_source(shards).label(number) and source.length(video) == FRAMES
    assert len(source.blocks()) * 4 == videos


def test_lists_that_do_not_fit(shards, tmp_path):
    """A list of wids that counts otherwise or names what is not indexed, and braces that mean nothing, are one line."""
    wids = {"__kind__": "wids-shard-index-v1", "base_path": str(shards)}
    for entry, line in (
        ({"url": "x-000.tar", "nsamples": 5}, "says that x-000.tar has 5 samples, its index has 4"),
        ({"url": "y.tar", "nsamples": 5}, "y.tar is not in .*; python scripts/prepare_data.py index"),
        ({"url": 7, "nsamples": 5}, "no list of shards"),
    ):
        (tmp_path / "list.json").write_text(json.dumps({**wids, "shardlist": [entry]}))
        with pytest.raises(UserError, match=line):
            open_source(tmp_path / "list.json")
    assert expand_braces("a{8..10}-{x,y}") == ["a8-x", "a8-y", "a9-x", "a9-y", "a10-x", "a10-y"]
    with pytest.raises(UserError, match="not for hosts and buckets"):
        ShardList.parse("s3://{a,b}/x.tar")
    assert ShardList.parse("s3://b//a/{x,y}/z.tar").base == "s3://b//a" and ShardList.parse("./a//x.tar").base == "a"
    for pattern in ("x-{3..1}.tar", "x-{a}.tar", "x-{0..9.tar", "{0..999}{0..9999}.tar"):
        with pytest.raises(UserError, match="smaller number first|neither a range|not closed|more than"):
            expand_braces(pattern)


def test_they_are_divided_as_by_their_names(shards):
    """The column of hashes gives the same parts as hashing the name of each group, also of some of the shards."""

    class Named(TarSource):
        def group_hashes(self, videos):
            return None

    for path in (shards, shards / "x-{001..002}.tar"):
        for held_out in (0.1, 0.3):
            for split in ("train", "val", "test"):
                fast, slow = (hashed_split(kind(path), split, held_out) for kind in (TarSource, Named))
                assert list(fast) == list(slow)
    clips = [open_clips(shards, 8, SIDE, split=split) for split in ("train", "val")]
    assert clips[0].fingerprint() != clips[1].fingerprint() != open_clips(shards, 8, SIDE).fingerprint()
    assert overlap(clips[0].provenance(), clips[1]) == 0 and overlap(clips[0].provenance(), clips[0]) == len(clips[0])


def test_very_many_are_remembered_by_a_bit_each(shards, monkeypatch):
    """The ids of a large source are packed; what was trained on is known again among them."""
    named = [open_clips(shards, 6, SIDE, split=split, windows="consecutive") for split in ("train", None)]
    expected = [overlap(named[0].provenance(), clips) for clips in named]
    monkeypatch.setattr("videodata.clips.MOST_NAMED", 5)
    trained_on = json.loads(json.dumps(named[0].provenance()))
    assert trained_on["ids"]["videos"] == 12
    assert [overlap(trained_on, clips) for clips in named] == expected
    assert named[0].provenance(every_id=True)["ids"][0].endswith("/set/v000")
    assert overlap(trained_on, open_clips("shapes:4", 6, SIDE)) is None


def test_declared_parts(tmp_path):
    """`split` of a .json divides; so do folders that have the names of parts."""
    for folder in ("all", "divided/train", "divided/test"):
        (tmp_path / folder).mkdir(parents=True)
        with tarfile.open(tmp_path / folder / "x.tar", "w") as tar:
            for number, split in enumerate(("train", "test", "train", "test")):
                add(tar, f"v{number}.npy", array(SOURCE.read(number)))
                add(tar, f"v{number}.json", json.dumps({"split": split} if folder == "all" else {}).encode())
        index_shards(tmp_path / folder, workers=1)
    source = open_source(tmp_path / "all")
    assert list(divide(source, "test")) == [1, 3] and set(divide(source, "train")) < {0, 2}
    assert len(open_clips(tmp_path / "divided", 4, SIDE, split="test")) == 4


def test_keys_that_come_again(tmp_path):
    """Shards that use the same keys: the shard is a part of the id, and no two videos are one group."""
    make_shards(tmp_path, 1, 3, films=False)
    (tmp_path / "y.tar").write_bytes((tmp_path / "x-000.tar").read_bytes())
    index_shards(tmp_path, workers=1)
    source = open_source(tmp_path)
    assert source.id(0) == "x-000/set/v000" and source.id(3) == "y/set/v000"
    assert len({int(value) for value in source.group_hashes(range(6))}) == 5  # v001 of both names its group


def bad_tars(folder: Path) -> dict[str, str]:
    """Tars that cannot be used, and what is said about each."""
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        add(tar, "v.npy", array(SOURCE.read(0)))
    cases = {
        "cut": (good.getvalue()[:9000], "is no whole tar"),
        "empty": (b"", "is no whole tar"),
        "text": (b"no tar" * 500, "is no whole tar"),
    }
    for name, members, line in (
        ("up", ["../v.npy"], "outside its folder"),
        ("root", ["/v.npy"], "outside its folder"),
        ("twice", ["v.npy", "v.NPY"], "two members are called"),
    ):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for member in members:
                add(tar, member, array(SOURCE.read(0)))
        cases[name] = (file.getvalue(), line)
    squeezed = io.BytesIO()
    with tarfile.open(fileobj=squeezed, mode="w:gz") as tar:
        add(tar, "v.npy", array(SOURCE.read(0)))
    cases["gz"] = (squeezed.getvalue(), "is compressed")
    for name, (data, _) in cases.items():
        (folder / f"{name}.tar").write_bytes(data)
    return {name: line for name, (_, line) in cases.items()}


def test_tars_that_cannot_be_used(tmp_path):
    """Each is one line that names it, and no index is written."""
    for name, line in bad_tars(tmp_path).items():
        with pytest.raises(UserError, match=f"{name}.tar: .*{line}"):
            index_shards(tmp_path / f"{name}.tar", workers=1)
    assert not (tmp_path / INDEX_NAME).exists()
    with pytest.raises(UserError, match=r"7 of 7 shards cannot be indexed\); what is indexed so far is kept"):
        index_shards(tmp_path, workers=1)
    with pytest.raises(UserError, match=r"x.tar: has no index, .*; python scripts/prepare_data.py index"):
        open_source(tmp_path / "x.tar")


def test_tars_without_videos(tmp_path):
    """They are refused, and leave no index that would say that there are none."""
    tarfile.open(tmp_path / "x.tar", mode="w").close()
    with pytest.raises(UserError, match=r"hold no videos, as \.mp4"):
        index_shards(tmp_path, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]


def test_members_that_are_left_out(tmp_path, capsys):
    """Links and devices are not followed; samples without a readable video are counted and named."""
    secret = tmp_path / "secret.npy"
    secret.write_bytes(array(SOURCE.read(0)))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "./good.npy", array(SOURCE.read(0)))
        add(tar, "good.mask.json", b"{")  # another suffix than .json
        add(tar, "link.npy", b"", type=tarfile.SYMTYPE, linkname=str(secret))
        add(tar, "hard.npy", b"", type=tarfile.LNKTYPE, linkname="good.npy")
        add(tar, "device.npy", b"", type=tarfile.CHRTYPE)
        add(tar, "._good.npy", b"of a file system")
        add(tar, "torn.mp4", b"\0" * 600)
        add(tar, "floats.npy", array(np.zeros((3, 8, 8, 3), np.float32)))
        add(tar, "pickle.npy", array(np.array([{}], object)))
        add(tar, "text.txt", b"no video")
        add(tar, "two.mp4", b"1")
        add(tar, "two.avi", b"2")
        add(tar, "grey.npy", array(SOURCE.read(1)[..., :1]))
        add(tar, "grey.json", b'{"label": 7, "fps": -1, "group": ["no text"]}')
        add(tar, "json.npy", array(SOURCE.read(1)))
        add(tar, "json.json", b"{")
        add(tar, "rate.npy", array(SOURCE.read(1)))
        add(tar, "rate.json", b'{"fps": "1e999999999"}')  # a number with as many digits would be computed
        add(tar, "digits.npy", array(SOURCE.read(1)))
        add(tar, "digits.json", b'{"fps": "1/30000000000000000000"}')
        for key, sides in (("below", (-1, -1, 1, 3)), ("true", (True, 1, 1, 3))):
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {sides}}}"
            add(tar, f"{key}.npy", b"\x93NUMPY\x01\x00v\x00" + header.encode().ljust(117) + b"\n\0\0\0")
    with pytest.raises(UserError, match=r"complete, but 10 of 12 videos could not be read"):
        prepare_data.main(["index", str(tmp_path), "--workers", "1"])
    prepare_data.main(["index", str(tmp_path), "--workers", "1", "--max_bad_fraction", "1", "--restart"])
    out = capsys.readouterr().out
    assert "1 shards (1 read now), 2 videos, 10 unreadable" in out
    for key in ("torn", "floats", "pickle", "text", "two", "json", "rate", "digits", "below", "true"):
        assert f"skipped {tmp_path}/x.tar#{key}: " in out
    source = open_source(tmp_path)
    assert [source.id(video) for video in range(2)] == ["good", "grey"] and source.label(1) == "7"
    assert np.array_equal(source.read(1), np.repeat(SOURCE.read(1)[..., :1], 3, -1))


def test_an_index_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    """Shards that are indexed are not read again, after a kill and when others come or change."""
    folder, read = make_shards(tmp_path / "tars", films=False), []
    scan = tar_scan.scan_shard

    def killed(storage, name, scratch):
        read.append(name)
        if len(read) == 2:
            raise KeyboardInterrupt
        return scan(storage, name, scratch)

    monkeypatch.setattr(tar_scan, "scan_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        index_shards(folder, workers=1)
    assert not (folder / INDEX_NAME).exists()
    assert index_shards(folder, workers=1).read == 2 and read == [f"x-00{n}.tar" for n in (0, 1, 1, 2)]
    assert [path.name for path in folder.glob("*index*")] == [INDEX_NAME]
    first = (folder / INDEX_NAME).read_bytes()
    assert index_shards(folder, workers=1).read == 0 and (folder / INDEX_NAME).read_bytes() == first
    os.utime(folder / "x-001.tar")  # the same content with another date: hashed, not decoded
    assert index_shards(folder, workers=1).read == 0
    (folder / "y.tar").write_bytes((folder / "x-001.tar").read_bytes())
    (folder / "x-001.tar").unlink()
    assert index_shards(folder, workers=1).read == 1
    assert [shard.name for shard in open_source(folder).index.shards] == ["x-000.tar", "x-002.tar", "y.tar"]


@pytest.mark.slow
def test_several_processes_write_the_same_index(tmp_path):
    """One and two workers."""
    folder = make_shards(tmp_path)
    index_shards(folder, workers=1)
    alone = (folder / INDEX_NAME).read_bytes()
    assert index_shards(folder, workers=2, restart=True).read == 3
    assert (folder / INDEX_NAME).read_bytes() == alone


def test_a_shard_that_changed(tmp_path, monkeypatch):
    """Another size or content since it was indexed is one line; a copy with another date is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_shards(tmp_path / "tars", 1, 2, films=False)
    index_shards(folder, workers=1)
    shard = folder / "x-000.tar"
    data = shard.read_bytes()
    os.utime(shard)
    assert np.array_equal(open_source(folder).read(0), SOURCE.read(0))
    shard.write_bytes(data.replace(b"caption", b"CAPTION").replace(b"\x00\x01", b"\x01\x00"))
    with pytest.raises(UserError, match=r"x-000.tar: changed since it was indexed \(its SHA-256 is another one\)"):
        open_source(folder).read(0)
    shard.write_bytes(data[:-512])
    with pytest.raises(UserError, match=r"changed since it was indexed \(\d+ bytes, now \d+\)"):
        open_source(folder).read(0)
    shard.unlink()
    with pytest.raises(UserError, match="no such file, but it is in the index"):
        open_source(folder).read(0)


def test_an_index_that_is_damaged(shards, tmp_path):
    """Whatever is wrong with the file is one line, also what shows only when a sample is asked for."""
    data = (shards / INDEX_NAME).read_bytes()
    path = tmp_path / INDEX_NAME
    for broken in (
        b"",
        data[:5],
        data[:-1],
        data[:200],
        b"\xff" * 100,
        data.replace(b"videodata-tars", b"something-else"),
    ):
        path.write_bytes(broken)
        with pytest.raises(VideoError, match="is no readable index of tar shards"):
            TarIndex.open(path)
    for name, value in (("offset", 1 << 40), ("bytes", -1), ("label", 999), ("rate", 99)):
        opened = TarIndex.open(shards / INDEX_NAME)
        columns = {key: column.copy() for key, column in opened.columns.items()}
        columns[name][1] = value
        broken = open_source(shards)
        broken.index = TarIndex(opened.path, opened.shards, columns)
        with pytest.raises(VideoError, match="is damaged"):
            broken.label(1), broken.fps(1), broken.read(1)


def test_the_remedy_of_a_damaged_index(tmp_path):
    """What the line says works; without its flag nothing is made of an index that cannot be read."""
    folder = make_shards(tmp_path / "tars", 1, 2, films=False)
    index_shards(folder, workers=1)
    data = (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).write_bytes(data[:-9])
    with pytest.raises(UserError, match=r"is no readable index .*; scripts/prepare_data.py index --restart makes it"):
        index_shards(folder, workers=1)
    assert index_shards(folder, workers=1, restart=True).read == 1 and (folder / INDEX_NAME).read_bytes() == data


def test_an_index_is_written_without_a_tar(tmp_path):
    """What a program that writes shards knows is enough; parts join in natural order, whoever made them."""
    parts = [
        TarIndex.of(
            Shard(f"x-{number}.tar", 9000, "0" * 64), [Sample(f"k{number}", ".mp4", 512, 99, 7, 8, 9, Fraction(5))]
        )
        for number in (10, 9)
    ]
    joined = write_index(tmp_path / INDEX_NAME, parts)
    assert [joined.id(row) for row in range(2)] == ["k9", "k10"] and joined.fps(1) == 5
    again = write_index(tmp_path / "again.index", [joined.of_shard(1), joined.of_shard(0)])
    assert (tmp_path / "again.index").read_bytes() == (tmp_path / INDEX_NAME).read_bytes() and again.ids == "key"
    with pytest.raises(UserError, match="one name"):
        write_index(tmp_path / INDEX_NAME, [parts[0], parts[0]])
    with pytest.raises(UserError, match="one key"):
        TarIndex.of(parts[0].shards[0], [Sample("k", ".mp4", number, 1, 1, 1, 1) for number in (0, 5)])


def test_a_folder_with_an_archive_beside_videos_is_as_before(tmp_path):
    """A tar that nobody indexed does not make a folder of videos one of shards; tars alone need an index."""
    make_shards(tmp_path, 1, 1)
    with pytest.raises(VideoError, match="has no index"):
        open_source(tmp_path)
    with tarfile.open(tmp_path / "x-000.tar") as tar:
        (tmp_path / "v.mp4").write_bytes(tar.extractfile("set/v000.mp4").read())
    assert len(open_source(tmp_path)) == 1 and open_source(tmp_path).id(0) == "v"
