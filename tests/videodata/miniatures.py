"""The data sets in miniature: the real names, archives, lists and records, with a few small videos in them.

`prepare` serves one and runs the project's own command on it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import shutil
import struct
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from google_crc32c import value as crc32c

from scripts import prepare_data
from tests.videodata.tree_server import tree_server
from videodata.datasets import bair, clevrer, kth, moving_mnist, ucf101
from videodata.datasets.bair import masked

FRAMES = 12


@dataclass
class Miniature:
    """files: what the server has, by path. split: a part whose archive is `archive`. ids: of the videos of the part."""

    name: str
    files: dict[str, bytes]
    split: str
    archive: str
    ids: list[str]
    flags: list[str] = field(default_factory=list)
    patches: list[tuple[object, str, object]] = field(default_factory=list)

    def unsafe(self) -> bytes:
        """The archive with a member that would land outside."""
        return _with_member(self.files[self.archive], "../escaped.mp4", b"x" * 100)


@functools.cache
def video(number: int, suffix: str = ".avi", frames: int = FRAMES) -> bytes:
    """A video file whose brightness is 16 * number + 4 * frame."""
    codec, options = ("mpeg4", {}) if suffix == ".avi" else ("libx264", {"preset": "ultrafast"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"v{suffix}")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, width=32, height=24, pix_fmt="yuv420p", options=options)
            for index in range(frames):
                grey = np.full((24, 32, 3), (16 * number + 4 * index) % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def make_zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return stream.getvalue()


def make_tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _with_member(archive: bytes, name: str, data: bytes) -> bytes:
    if archive.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return make_zip({info.filename: opened.read(info) for info in opened.infolist()} | {name: data})
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        members = {info.name: opened.extractfile(info).read() for info in opened}
    return make_tar(members | {name: data}, "w:gz" if archive.startswith(b"\x1f\x8b") else "w")


def bair_record(number: int, frames: int = 30) -> bytes:
    """One record: image_main is 10 + number, image_aux1 is number + frame, action[0] is number + frame / 100."""
    entries = b""
    for frame in range(frames):
        for name, level in (("image_main", 10 + number), ("image_aux1", number + frame)):
            entries += _entry(f"{frame}/{name}/encoded", _field(1, _field(1, bytes([level]) * 12_288)))
        action = np.array([number + frame / 100, 1, 2, 3], "<f4").tobytes()
        entries += _entry(f"{frame}/action", _field(2, _field(1, action)))
        entries += _entry(f"{frame}/endeffector_pos", _field(2, _field(1, np.full(3, number, "<f4").tobytes())))
    data = _field(1, entries)
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked(crc32c(part))) for part in (length, data)]
    return length + crcs[0] + data + crcs[1]


def _entry(name: str, feature: bytes) -> bytes:
    return _field(1, _field(1, name.encode()) + _field(2, feature))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def make_ucf101(frames: int = FRAMES) -> Miniature:
    names = ["v_Archery_g01_c01", "v_Archery_g08_c04", "v_HandStandPushups_g02_c01", "v_YoYo_g25_c02"]
    data = make_zip({f"UCF101/{name}.avi": video(index, frames=frames) for index, name in enumerate(names)})
    url = ucf101.SOURCES["mirror"].url
    card = ucf101.Download(url, "UCF101_videos.zip", len(data), hashlib.sha256(data).hexdigest())
    return Miniature(
        "ucf101", {"/thumos14_files/UCF101_videos.zip": data}, "test", "/thumos14_files/UCF101_videos.zip",
        ["Archery/v_Archery_g01_c01", "HandstandPushups/v_HandStandPushups_g02_c01"],
        patches=[(ucf101, "SOURCES", {**ucf101.SOURCES, "mirror": card}), (ucf101, "COUNTS", {1: (2, 2)})],
    )  # fmt: skip


def make_bair(test: int = 2) -> Miniature:
    """test: records of that part."""
    folder = "softmotion30_44k"
    data = make_tar(
        {
            f"{folder}/train/traj_0_to_255.tfrecords": bair_record(0) + bair_record(1),
            f"{folder}/train/traj_10000_to_10255.tfrecords": bair_record(3),
            f"{folder}/train/traj_256_to_511.tfrecords": bair_record(2),
            f"{folder}/test/traj_0_to_255.tfrecords": b"".join(bair_record(5 + number) for number in range(test)),
        }
    )
    path = "/datasets/bair_robot_pushing_dataset_v0.tar"
    file = bair.RemoteFile(bair.ARCHIVE.url, len(data), hashlib.sha256(data).hexdigest())
    return Miniature(
        "bair", {path: data}, "test", path, [f"traj_0_to_255/{number}" for number in range(test)],
        patches=[(bair.Bair, "archive", file), (bair.Bair, "counts", {"train": 4, "test": test})],
    )  # fmt: skip


def make_kth(length: int = FRAMES // 2) -> Miniature:
    """length: frames of a sequence; two are cut from each film, and the list has one go beyond the end."""
    films = {
        action: [f"person{person:02d}_{action}_d1" for person in (1, 16, 17, 25)] for action in kth.ACTIONS
    }  # fmt: skip

    def last(film: str) -> int:
        return 2 * length + (8 if film == "person17_boxing_d1" else 0)

    listing = "Training: person11\r\n" + "".join(
        f"{film}\t\tframes\t1-{length}, {length + 1}-{last(film)}\r\n" for names in films.values() for film in names
    )
    files = {
        f"/cvap/actions/{action}.zip": make_zip(
            {f"{film}_uncomp.avi": video(index, frames=2 * length) for index, film in enumerate(names)}
        )
        for action, names in films.items()
    }
    ids = [
        f"{action}/{film}_{span}"
        for action, names in films.items()
        for film in names[2:]
        for span in (f"0001-{length:04d}", f"{length + 1:04d}-{last(film):04d}")
    ]
    return Miniature(
        "kth", {**files, "/cvap/actions/00sequences.txt": listing.encode()}, "test", "/cvap/actions/boxing.zip", ids,
        patches=[(kth.Kth, "sequences", 48), (kth.Kth, "films", 24)],
    )  # fmt: skip


def make_clevrer(frames: int = FRAMES) -> Miniature:
    first = {"train": 0, "validation": 10_000, "test": 15_000}
    files = {
        f"/clevrer/videos/{part}/video_{part}.zip": make_zip(
            {
                f"video_{number // 1000 * 1000:05d}-{number // 1000 * 1000 + 1000:05d}/video_{number:05d}.mp4": video(
                    number % 1000, ".mp4", frames
                )
                for number in range(start, start + 2)
            }
        )
        for part, start in first.items()
    }
    return Miniature(
        "clevrer", files, "val", "/clevrer/videos/validation/video_validation.zip", ["video_10000", "video_10001"],
        patches=[(clevrer.Clevrer, "counts", {"train": 2, "val": 2, "test": 2})],
    )  # fmt: skip


def make_kinetics600(frames: int = FRAMES) -> Miniature:
    head = "label,youtube_id,time_start,time_end,split\n"
    rows = {
        "train": ["playing chess,aaaaaaaaaaa,5,15,train", "tying knot (not on a tie),b_-bbbbbbbb,0,10,train"],
        "validate": ["playing chess,ccccccccccc,70,80,val", "playing chess,ddddddddddd,1,11,val"],
    }
    lists = {f"kinetics600/{part}.csv": (head + "\n".join(lines)).encode() for part, lines in rows.items()}
    lists["kinetics600/test.csv"] = b"youtube_id,time_start,time_end,split\neeeeeeeeeee,3,13,test\n"
    mirror, archives = "https://s3.amazonaws.com/kinetics/600", "/kinetics/600"
    knot = {"tying knot (not on a tie)": "b_-bbbbbbbb_000000_000010"}
    clips = {
        "train": {"playing chess": "aaaaaaaaaaa_000005_000015", **knot},
        "val": {"playing chess": "ccccccccccc_000070_000080"},
        "test": {"part_0": "eeeeeeeeeee_000003_000013"},
    }  # fmt: skip
    files = {"/deepmind-media/Datasets/kinetics600.tar.gz": make_tar(lists, "w:gz")}
    for split, members in clips.items():
        lines = [f"{mirror}/{split}/{label}.tar.gz" for label in members]
        files[f"{archives}/{split}/k600_{split}_path.txt"] = "\n".join(lines).encode()
        for label, stem in members.items():
            files[f"{archives}/{split}/{label}.tar.gz"] = make_tar({f"{stem}.mp4": video(1, ".mp4", frames)}, "w:gz")
    return Miniature(
        "kinetics600", files, "val", f"{archives}/val/playing chess.tar.gz",
        ["playing chess/ccccccccccc_000070_000080"],
    )  # fmt: skip


def make_moving_mnist() -> Miniature:
    levels = np.arange(20)[:, None] + 16 * np.arange(3)  # of time and clip
    stream = io.BytesIO()
    np.save(stream, np.broadcast_to(levels[..., None, None], (20, 3, 64, 64)).astype(np.uint8))
    data, path = stream.getvalue(), "/~nitish/unsupervised_video/mnist_test_seq.npy"
    file = moving_mnist.RemoteFile(moving_mnist.TEST_SET.url, len(data), hashlib.sha256(data).hexdigest())
    return Miniature(
        "moving_mnist", {path: data}, "test", path, ["test_00000", "test_00001", "test_00002"],
        patches=[(moving_mnist.MovingMnist, "file", file), (moving_mnist.MovingMnist, "counts", {"test": 3})],
    )  # fmt: skip


MAKERS = {
    "ucf101": make_ucf101,
    "bair": make_bair,
    "kth": make_kth,
    "clevrer": make_clevrer,
    "kinetics600": make_kinetics600,
    "moving_mnist": make_moving_mnist,
}


@functools.cache
def miniature(name: str, **sizes: int) -> Miniature:
    """The miniature of a data set; its files must be copied before they are changed. sizes: what its maker takes."""
    return MAKERS[name](**sizes)


def prepare(command: list[str], root: Path, **sizes: int) -> None:
    """What the flags of prepare_data.py say, of the miniature of that data set, whose archives come to `root`."""
    made = miniature(command[0], **sizes)
    with tree_server() as server, pytest.MonkeyPatch.context() as patch:
        server.files = dict(made.files)
        for target, name, value in made.patches:
            patch.setattr(target, name, value)
        ample = shutil._ntuple_diskusage(10**15, 0, 10**15)  # the published sizes are compared with the free space
        patch.setattr(shutil, "disk_usage", lambda path: ample)
        prepare_data.main([*command, "--root", str(root), "--url_root", server.url, "--workers", "1"])
