"""Videos to .npy: which frames, in which order, whatever the workers, the damage or the interruptions."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from videodata import open_clips, read_video, write_video
from videodata.color import to_rgb
from videodata.decode import DecodePool, End, decode
from videodata.errors import UserError
from videodata.prepare import SequenceSettings, expected_sequences, prepare_videos
from videodata.video_folder import list_videos

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
SMALL = SequenceSettings(num_frames=4, height=16, width=24)


def make_video(path: Path, frames: int, level: int = 0, size: tuple[int, int] = (16, 24)) -> Path:
    """A clip whose frame i is grey of level + 8 i."""
    shades = (level + 8 * np.arange(frames)) % 256
    pixels = np.broadcast_to(shades[:, None, None, None], (frames, *size, 3)).astype(np.uint8)
    return write_video(path, pixels, Fraction(25))


def make_folder(root: Path, lengths: list[int]) -> Path:
    for index, length in enumerate(lengths):
        make_video(root / f"v{index}.mp4", length, level=20 * index)
    return root


def content(path: Path) -> bytes:
    return path.read_bytes() + path.with_suffix(".json").read_bytes()


def test_windows(tmp_path):
    """49, 50 and 149 frames give 0, 1 and 2 sequences of 50; the remainder is dropped and the short one is listed."""
    folder = make_folder(tmp_path / "in", [49, 50, 149])
    summary = prepare_videos(list_videos(folder), tmp_path / "out.npy", SequenceSettings(50, 16, 24), workers=1)
    assert np.load(tmp_path / "out.npy").shape == (3, 50, 16, 24, 3)
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert [(v["id"], v["frames"], v["first_sequence"], v["sequences"]) for v in sidecar["videos"]] == [
        ("v1", 50, 0, 1),
        ("v2", 149, 1, 2),
    ]
    assert sidecar["skipped"] == [{"id": "v0", "reason": "49 frames, fewer than num_frames 50", "status": "short"}]
    assert summary.frames == 248 and summary.bad == 0 and summary.seconds > 0


def test_frames_are_those_of_the_decoder(tmp_path, clips):
    """Every sequence equals the same frames of read_video, resized by squeezing; a stride keeps every third frame."""
    settings = SequenceSettings(num_frames=30, height=48, width=40, stride=3)
    prepare_videos(list_videos(clips / "ucf101"), tmp_path / "out.npy", settings, workers=2)
    array, sidecar = np.load(tmp_path / "out.npy"), json.loads((tmp_path / "out.json").read_text())
    assert sidecar["stride"] == 3 and sidecar["resize"] == "squeeze" and sidecar["color"] == "RGB"
    for video in sidecar["videos"]:
        path = clips / "ucf101" / (Path(video["id"]).name + ".avi")
        frames, fps = read_video(path, step=3, size=(48, 40), resize="squeeze")
        assert Fraction(video["fps"]) == fps / 3
        count = len(frames) // 30
        mine = array[video["first_sequence"] : video["first_sequence"] + video["sequences"]]
        np.testing.assert_array_equal(mine, frames[: count * 30].reshape(count, 30, 48, 40, 3))
    assert [(v["label"], v["group"]) for v in sidecar["videos"]] == [
        ("ApplyEyeMakeup", "v_ApplyEyeMakeup_g01"),
        ("SoccerJuggling", "v_SoccerJuggling_g23"),
    ]


def test_red_stays_red(tmp_path):
    """The channel order is RGB: a pure red video has its light in channel 0."""
    red = np.zeros((8, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    write_video(tmp_path / "in" / "red.mp4", red, 25)
    prepare_videos(list_videos(tmp_path / "in"), tmp_path / "out.npy", SequenceSettings(4, 16, 16), workers=1)
    mean = np.load(tmp_path / "out.npy").mean(axis=(0, 1, 2, 3))
    assert mean[0] > 250 and mean[1] < 5 and mean[2] < 5


def test_natural_recursive_order(tmp_path):
    """Folders and files come in natural order, v2 before v10, whatever order the file system has."""
    for name in ("b/v10.mp4", "b/v2.mp4", "a/v1.mp4", "v3.MP4"):
        make_video(tmp_path / name.lower(), 4).rename(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no video")
    assert [video.id for video in list_videos(tmp_path)] == ["a/v1", "b/v2", "b/v10", "v3"]
    assert [video.label for video in list_videos(tmp_path)] == ["a", "b", "b", None]


def test_result_opens_as_clips(tmp_path):
    """The array and its side-car are what open_clips reads: one item per sequence with label and frame rate."""
    folder = make_folder(tmp_path / "in" / "walk", [9, 4])
    prepare_videos(list_videos(folder.parent), tmp_path / "out.npy", SMALL, workers=1)
    dataset = open_clips(tmp_path / "out.npy", frames=4, size=(16, 24))
    assert len(dataset) == 3 and tuple(dataset[0].shape) == (3, 4, 16, 24)
    assert dataset.describe(0)["label"] == "walk" and Fraction(dataset.describe(0)["fps"]) == 25


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_workers(tmp_path, clips, monkeypatch):
    """1, 2 and 4 workers give the same bytes, also with rings so small that every worker has to wait for its turn."""
    monkeypatch.setattr("videodata.decode.RING_BYTES", 1)
    monkeypatch.setattr("videodata.decode.SLOT_BYTES", 20_000)
    settings, videos = SequenceSettings(7, 32, 32, keep_damaged=True), list_videos(clips / "synthetic")
    results = []
    for workers in (1, 2, 4):
        path = tmp_path / str(workers) / "out.npy"
        prepare_videos(videos, path, settings, workers=workers)
        results.append(content(path))
    assert results[0] == results[1] == results[2]


def test_only_frames_that_are_kept_are_converted(tmp_path, monkeypatch):
    """A conversion costs more than the decoding of a frame: a stride and the frames before a stretch save it."""
    film, converted = make_video(tmp_path / "film.mp4", 30), []
    monkeypatch.setattr("videodata.video.to_rgb", lambda *args: converted.append(args) or to_rgb(*args))
    whole, _ = read_video(film)
    for stride, start, stop in ((1, 0, None), (4, 0, None), (3, 5, 21), (7, 29, None)):
        converted.clear()
        ring = Kept()
        decode(str(film), ring, (16, 24), "squeeze", stride, start, stop)
        right = whole[start:stop:stride]
        assert len(converted) == len(right) + (start > 0)  # the first settles the size of all
        assert (np.stack(ring.frames) == right).all()
        assert ring.outcome["frames"] == len(whole[start:stop]) and ring.outcome["error"] is None


class Kept:
    """What a worker hands over, in a list."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []

    def put(self, frame: np.ndarray) -> None:
        self.frames.append(frame)

    def end(self, **outcome: object) -> None:
        self.outcome = outcome


def test_the_size_is_estimated_from_headers_alone(tmp_path, monkeypatch):
    """It is told before the workers start, so that what it costs is not shared between them: it decodes nothing."""
    videos = list_videos(make_folder(tmp_path / "in", [9, 12]))
    monkeypatch.setattr("videodata.container.Video.frames", lambda video: pytest.fail("decodes"))
    assert expected_sequences(videos, SMALL) == 5


def test_odd_and_broken_files(tmp_path, clips):
    """Empty, damaged and text files are listed with a reason, odd ones are read; --keep_damaged keeps what decodes."""
    folder = tmp_path / "in"
    folder.mkdir()
    for source in ("decord/corrupted.mp4", "moviepy/result.webm", "moviepy/bitmap.mp4", "imageio/newtonscradle.gif"):
        (folder / Path(source).name).symlink_to(clips / source)
    (folder / "text.avi").write_text("this is no video")
    summary = prepare_videos(list_videos(folder), tmp_path / "a.npy", SMALL, workers=2, max_bad_fraction=0.7)
    assert {entry["id"]: entry["reason"].split(";")[0].split("(")[0].strip() for entry in summary.skipped} == {
        "corrupted": "damaged: 1 packet",
        "result": "the file is empty",
        "text": "is not a readable video",
    }
    kept = SequenceSettings(4, 16, 24, keep_damaged=True)
    prepare_videos(list_videos(folder), tmp_path / "b.npy", kept, workers=1)
    entry = next(v for v in json.loads((tmp_path / "b.json").read_text())["videos"] if v["id"] == "corrupted")
    assert entry["sequences"] == 12 and entry["frames"] == 49 and "damaged" in entry["damaged"]


def test_too_many_bad_videos(tmp_path):
    """The file is written without them, but the run is an error that says so."""
    folder = make_folder(tmp_path / "in", [8])
    for index in range(3):
        (folder / f"bad{index}.avi").write_bytes(b"x")
    with pytest.raises(UserError, match="complete, but 3 of 4 videos could not be read.*--max_bad_fraction 0.5"):
        prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1)
    assert np.load(tmp_path / "out.npy").shape[0] == 2


def test_nothing_to_write(tmp_path):
    """Only short videos: one line, and no empty file."""
    folder = make_folder(tmp_path / "in", [3, 2])
    with pytest.raises(UserError, match="nothing to write.*the first is v0: 3 frames"):
        prepare_videos(list_videos(folder), tmp_path / "out" / "out.npy", SMALL, workers=1)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("change", "match"),
    [(lambda f: f.rename(f.with_name("gone")), "no such folder"), (lambda f: (f / "v0.mp4").unlink(), "no video file")],
)
def test_missing_input(tmp_path, change, match):
    """A folder that is not there or holds no video is one line."""
    folder = make_folder(tmp_path / "in", [4])
    change(folder)
    with pytest.raises(UserError, match=match):
        list_videos(folder)


def test_disk_too_small_is_told_before(tmp_path, monkeypatch):
    """The expected size is compared with the free space before anything is decoded."""
    folder = make_folder(tmp_path / "in", [400])
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 100_000, 100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs about 460.9 kB more, but 100.0 kB are free"):
        prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1)
    assert os.listdir(tmp_path) == ["in"]


def test_changed_videos_are_noticed(tmp_path):
    """A finished or partial array is not taken for the result of other input files."""
    folder = make_folder(tmp_path / "in", [8, 8])
    prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1)
    first = content(tmp_path / "out.npy")
    prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1)
    make_video(folder / "v2.mp4", 8)
    with pytest.raises(UserError, match="videos 2, now 3.*--restart"):
        prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1)
    assert content(tmp_path / "out.npy") == first
    prepare_videos(list_videos(folder), tmp_path / "out.npy", SMALL, workers=1, restart=True)
    assert np.load(tmp_path / "out.npy").shape[0] == 6


def test_dead_worker_is_named(tmp_path):
    """A worker that is killed ends the run with the file it was reading; what is done so far is kept."""
    folder = make_folder(tmp_path / "in", [40] * 3)
    paths = [video.path for video in list_videos(folder)]
    with (
        DecodePool(paths, (400, 400), workers=1) as pool,
        pytest.raises(UserError, match=r"v1.mp4: .*died \(signal 9\)"),
    ):
        for item in pool:
            if isinstance(item, End):
                pool._workers[0].process.kill()


PREPARE = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from videodata.decode import DecodePool
from videodata.prepare import SequenceSettings, prepare_videos
from videodata.video_folder import list_videos
peaks = []
def peak(process):
    status = Path(f"/proc/{process}/status")
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) if status.exists() else 0)
stop = DecodePool.__exit__
def measured_stop(pool, *exception):
    for worker in pool._workers:
        peak(worker.process.pid)
    stop(pool, *exception)
DecodePool.__exit__ = measured_stop
settings = SequenceSettings(num_frames=4, height=96, width=128)
prepare_videos(list_videos(sys.argv[2]), sys.argv[3], settings, workers=2)
peak("self")
print(*peaks)
"""


def run_prepare(folder: Path, out: Path) -> list[int]:
    """Prepare in a process of its own; the peak memory in kB of its workers and, last, of itself."""
    command = [sys.executable, "-c", PREPARE, str(ROOT), str(folder), str(out)]
    return list(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))


@linux
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    """Peak memory with 20 and with 200 videos differs by less than a tenth."""
    video = make_video(tmp_path / "video.mp4", 40, size=(96, 128))
    peaks = []
    for count in (20, 200):
        folder = tmp_path / str(count)
        folder.mkdir()
        for index in range(count):
            (folder / f"v{index}.mp4").symlink_to(video)
        peaks.append(run_prepare(folder, tmp_path / f"{count}.npy"))
    assert sum(peaks[1]) < 1.1 * sum(peaks[0]), peaks


@linux
@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """A video of six times the length needs no more memory."""
    peaks = []
    for frames in (500, 3000):
        make_video(tmp_path / str(frames) / "v.mp4", frames, size=(96, 128))
        peaks.append(run_prepare(tmp_path / str(frames), tmp_path / f"{frames}.npy"))
    assert (tmp_path / "3000.npy").stat().st_size > 110e6
    assert sum(peaks[1]) < 1.1 * sum(peaks[0]), peaks


@pytest.mark.slow
def test_killed_runs_leave_the_same_bytes(tmp_path, clips):
    """kill -9 at several moments: the last run ends with the bytes, also of the side-car, of an undisturbed one."""
    command = [sys.executable, "-c", PREPARE, str(ROOT), str(clips / "synthetic"), str(tmp_path / "out.npy")]
    run_prepare(clips / "synthetic", tmp_path / "whole.npy")
    killed = 0
    for delay in (0.3, 0.6, 0.8, 1.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    run_prepare(clips / "synthetic", tmp_path / "out.npy")
    assert killed and content(tmp_path / "out.npy") == content(tmp_path / "whole.npy")
