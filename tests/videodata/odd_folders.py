"""Folders as people have them: good videos, and at any place among them everything that can be wrong with a file."""

from __future__ import annotations

import errno
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from tests.videodata.miniatures import bair_record
from videodata import write_video
from videodata.errors import one_line

FRAMES, SIDE = 4, 16
PLACES = {"first": "0", "middle": "m", "last": "z"}  # good ones are called a, b, x, y
PLAIN = ("a", "b", "x", "y")


def grey(level: int, frames: int = FRAMES) -> np.ndarray:
    return np.full((frames, SIDE, SIDE, 3), level, np.uint8)


def odd_names(prefix: str) -> list[str]:
    """Names of good videos that are hard to store: a byte that is no text, a newline, an emoji, great length, ..."""
    return [
        *(f"{prefix}{name}" for name in ("\udcff", "line\nbreak", "\U0001f600", "back\\slash", "50%{x}[1]*?", "UPPER")),
        prefix + "n" * (251 - len(prefix)),  # with .mp4 as long as a name can be
    ]


def odd_videos(root: Path, prefix: str) -> tuple[dict[str, int], set[str]]:
    """Below `root/class`: good videos as {id: grey level}, and the ids of what cannot be read.

    The folder `<prefix>locked` must be locked by the test.
    """
    folder, good = root / "class", {}
    folder.mkdir(parents=True)
    files = [f"{name}.mp4" for name in (*PLAIN, *odd_names(prefix))] + [f"{prefix}twin.mp4", f"{prefix}twin.mkv"]
    for number, name in enumerate(name.replace("UPPER.mp4", "UPPER.MP4") for name in files):
        made = write_video(root / "made.mp4", grey(16 * number), Fraction(25))
        try:
            made.rename(folder / name)
        except OSError as error:  # a file system that takes text alone
            assert error.errno in (errno.EILSEQ, errno.EINVAL)
            made.unlink()
            continue
        stem = name if "twin" in name else name[:-4]
        good[f"class/{one_line(stem)}"] = 16 * number
    (folder / f"{prefix}gone.mp4").symlink_to("nowhere.mp4")
    (folder / f"{prefix}unmounted").symlink_to("/nowhere/films")
    (folder / f"{prefix}loop.mp4").symlink_to(f"{prefix}loop.mp4")
    os.mkfifo(folder / f"{prefix}pipe.mp4")
    (folder / f"{prefix}empty.avi").touch()
    (folder / f"{prefix}text.mp4").write_text("no video")
    (folder / f"{prefix}locked").mkdir()
    shutil.copyfile(folder / "a.mp4", folder / f"{prefix}locked" / "inside.mp4")
    for hidden in ("._a.mp4", "._a.h5", "._a.npy", ".DS_Store"):  # of a Macintosh
        (folder / hidden).write_bytes(b"\0\5\x16\7")
        (root / hidden).write_bytes(b"\0\5\x16\7")
    names = ("gone", "unmounted", "loop", "pipe", "empty", "text", "locked")
    return good, {f"class/{prefix}{name}" for name in names}


def odd_frames(root: Path, prefix: str) -> tuple[dict[str, int], set[str]]:
    """The same as folders of PNG images below `root`; the names of what cannot be read are parts of the messages."""
    good = {}
    for number, name in enumerate((*PLAIN, *odd_names(prefix), f"{prefix}class/deep", f"{prefix}class/deeper")):
        try:
            (root / name).mkdir(parents=True)
        except OSError as error:
            assert error.errno in (errno.EILSEQ, errno.EINVAL)
            continue
        for frame in range(FRAMES):
            Image.fromarray(grey(16 * number)[0]).save(root / name / f"{frame}.png")
        (root / name / "._0.png").write_bytes(b"\0\5\x16\7")
        good[one_line(name)] = 16 * number
    for name in ("gone", "pipe", "text", "locked"):
        shutil.copytree(root / "a", root / f"{prefix}{name}")
        (root / f"{prefix}{name}" / "1.png").unlink()
    (root / f"{prefix}gone" / "1.png").symlink_to("nowhere.png")
    os.mkfifo(root / f"{prefix}pipe" / "1.png")
    (root / f"{prefix}text" / "1.png").write_text("no picture")
    (root / f"{prefix}empty").mkdir()
    (root / f"{prefix}unmounted").symlink_to("/nowhere/frames")
    return good, {f"{prefix}{name}" for name in ("gone", "pipe", "text", "locked", "empty", "unmounted")}


def odd_records(folder: Path, prefix: str) -> tuple[dict[str, int], set[str]]:
    """The same as files of the BAIR data set: ids of good records and the value of their pixels in frame 0."""
    folder.mkdir(parents=True)
    for number, name in enumerate(PLAIN):
        (folder / f"{name}.tfrecords").write_bytes(bair_record(number))
    (folder / "._a.tfrecords").write_bytes(b"\0\5\x16\7")
    (folder / f"{prefix}empty.tfrecords").touch()
    (folder / f"{prefix}torn.tfrecords").write_bytes(bair_record(9)[:-5])
    (folder / f"{prefix}gone.tfrecords").symlink_to("nowhere.tfrecords")
    os.mkfifo(folder / f"{prefix}pipe.tfrecords")
    return {f"{name}/0": number for number, name in enumerate(PLAIN)}, {
        f"{prefix}{name}" for name in ("empty", "torn", "gone", "pipe")
    }


def lock_folders(monkeypatch) -> None:
    """Nobody may look into folders that end in `locked`, root neither."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
