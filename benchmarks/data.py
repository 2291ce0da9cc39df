"""Preparing with two workers against one, the memory it takes, and reading prepared clips against reading H.264.

Preparing: 200 generated clips of 240x320 to sequences of 64x64, each run in a process of its own. Reading: random
stretches of 16 frames of 64x64, from ten-second films as cameras and sites make them (a key frame every 250), and from
the .npy and the .hdf5 that were prepared from them, all in the page cache. Cached latents: batches of 64 clips as a
training of flow_pred draws them, mapped and through HDF5. Printed are ratios of medians, then figures.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DISTINCT = 8  # films that are encoded; the others are links to them
CLIPS, CLIP_FRAMES = 200, 186  # the mean of UCF101
FILM_FRAMES = 300
SIZE, WINDOW = 64, 16
BATCH = 64  # clips of cached latents


def make_films(folder: Path, count: int, frames: int) -> Path:
    """H.264 files, 320x240 at 30 frames per second: a moving texture with noise."""
    folder.mkdir()
    for index in range(count):
        path = folder / f"film{index:03d}.mp4"
        if index >= DISTINCT:
            path.symlink_to(folder / f"film{index % DISTINCT:03d}.mp4")
            continue
        rng = np.random.default_rng(index)
        texture = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30, width=320, height=240, pix_fmt="yuv420p")
            for step in range(frames):
                window = texture[step : step + 240, step : step + 320].astype(int) // 2 + 64
                noisy = np.clip(window + rng.integers(-4, 5, window.shape), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
            container.mux(stream.encode())
    return folder


def prepare(folder: Path, out: Path, form: str, workers: int, num_frames: int = WINDOW) -> None:
    """Prepare all films of a folder."""
    from videodata.prepare import SequenceSettings, prepare_videos
    from videodata.video_folder import list_videos

    prepare_videos(list_videos(folder), out, SequenceSettings(num_frames, SIZE, SIZE), form, workers=workers)


def measured(folder: Path, out: Path, workers: int) -> dict:
    """Seconds of one preparation in this process, by the clock and on free cores, and the most memory at one time.

    On free cores it takes as long as the busiest process computes, or as all compute together on two cores: this says
    what can be reached, however busy the machine is.
    """
    peak, done, computed = 0, threading.Event(), {}

    def watch() -> None:
        nonlocal peak
        process = psutil.Process()
        while not done.wait(0.2):  # looking costs time too
            used = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    used += member.memory_full_info().pss
                    if member is not process:
                        computed[member.pid] = sum(member.cpu_times()[:2])
                except psutil.Error:  # it ended
                    continue
            peak = max(peak, used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    importlib.import_module("videodata.prepare")  # takes as long as a hundred clips, whatever the workers
    begin, computing = time.perf_counter(), time.thread_time()
    prepare(folder, out, "npy", workers)
    seconds, own = time.perf_counter() - begin, time.thread_time() - computing
    done.set()
    watcher.join()
    free = max(own, *computed.values(), (own + sum(computed.values())) / 2)
    return {"seconds": seconds, "free": free, "peak": peak}


def run_side(folder: Path, out: Path, workers: int) -> dict:
    """The same in a new process."""
    command = [sys.executable, __file__, "--side", str(folder), str(out), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for made in out.parent.glob(out.stem + ".*"):
        made.unlink()
    return json.loads(done.stdout)


def compare_workers(work: Path, rounds: int) -> None:
    """Two workers against one, and 200 clips against 50."""
    films, few = make_films(work / "clips", CLIPS, CLIP_FRAMES), work / "few"
    few.mkdir()
    for path in sorted(films.iterdir())[: CLIPS // 4]:
        (few / path.name).symlink_to(path)
    results: dict[str, list[dict]] = {"one": [], "two": [], "few": []}
    for _ in range(rounds):
        results["one"].append(run_side(films, work / "out.npy", 1))
        results["two"].append(run_side(films, work / "out.npy", 2))
        results["few"].append(run_side(few, work / "out.npy", 2))
    seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in results.items()}
    free = {side: statistics.median(run["free"] for run in runs) for side, runs in results.items()}
    peak = {side: statistics.median(run["peak"] for run in runs) / 1e6 for side, runs in results.items()}
    print(
        f"ratio {seconds['one'] / seconds['two']:.2f} (target 1.6): {CLIPS} clips in {seconds['two']:.1f} s with 2 "
        f"workers, {seconds['one']:.1f} s with 1; medians of {rounds}",
        f"ratio {free['one'] / free['two']:.2f} on two free cores, from the processor time of the processes: "
        f"{free['two']:.1f} s with 2 workers, {free['one']:.1f} s with 1",
        f"ratio {peak['two'] / peak['few']:.2f} (target: at most 1.1): {peak['two']:.0f} MB at most for {CLIPS} clips, "
        f"{peak['few']:.0f} MB for {CLIPS // 4}",
        sep="\n",
        flush=True,
    )


def time_reads(read, lengths: list[int], reads: int) -> float:
    """Milliseconds of one random read, median."""
    rng, spent = np.random.default_rng(0), []
    for _ in range(reads):
        item = int(rng.integers(len(lengths)))
        start = int(rng.integers(lengths[item] - WINDOW + 1))
        begin = time.perf_counter()
        frames = read(item, start)
        spent.append(1000 * (time.perf_counter() - begin))
        assert frames.shape == (WINDOW, SIZE, SIZE, 3)
    return statistics.median(spent)


def compare_reads(work: Path, rounds: int) -> None:
    """Random clips from films, arrays and shards."""
    from videodata.sources import open_source

    films = make_films(work / "films", DISTINCT, FILM_FRAMES)
    prepare(films, work / "films.npy", "npy", 2, FILM_FRAMES)
    prepare(films, work / "shards", "hdf5", 2)
    video, array, shards = (open_source(path) for path in (films, work / "films.npy", work / "shards"))
    sides = {
        "H.264": (lambda item, start: video.read_clip(item, start, WINDOW, 1, (SIZE, SIZE)), video, 40),
        ".npy": (lambda item, start: array.read(item, start, WINDOW), array, 2000),
        ".hdf5": (lambda item, start: shards.read(item, start, WINDOW), shards, 500),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (read, source, reads) in sides.items():
            spent[name].append(time_reads(read, [source.length(index) for index in range(len(source))], reads))
    median = {name: statistics.median(values) for name, values in spent.items()}
    for name, target in ((".npy", 500), (".hdf5", 50)):
        print(
            f"ratio {median['H.264'] / median[name]:.0f} (target {target}): {WINDOW} random frames of {SIZE}x{SIZE} in "
            f"{median[name]:.3f} ms from {name}, {median['H.264']:.1f} ms from H.264; medians of {rounds}",
            flush=True,
        )


def compare_latents(work: Path, rounds: int) -> None:
    """A batch of cached latents from the mapped file and through HDF5, in milliseconds of the processor."""
    import torch

    from flow_pred import latents
    from flow_pred.autoencoder import build_autoencoder
    from videodata.hdf5 import open_hdf5

    identity = build_autoencoder({"type": "identity"})
    latents.encode_latents(identity, "shapes:100,frames=40,size=16", "train", work / "latents", size=16)
    mapped, through = (latents.LatentClips(work / "latents", "train", 20) for _ in range(2))
    file = open_hdf5(mapped.path)
    through._latents.get = lambda: file["latents"]  # as it is read where it does not lie in one piece
    spent: dict[str, list[float]] = {"mapped": [], "HDF5": []}
    for batch in range(10 * rounds):
        for name, clips in (("mapped", mapped), ("HDF5", through)):
            begin = time.process_time()
            read = [clips[(item % len(clips), batch * BATCH + item)]["latents"] for item in range(BATCH)]
            spent[name].append(1000 * (time.process_time() - begin))
            assert torch.stack(read).shape[:2] == (BATCH, 20)
    median = {name: statistics.median(values) for name, values in spent.items()}
    print(
        f"ratio {median['HDF5'] / median['mapped']:.1f}: a batch of {BATCH} clips of 20 cached latents in "
        f"{median['mapped']:.1f} ms mapped, {median['HDF5']:.1f} ms through HDF5; medians of {10 * rounds}",
        flush=True,
    )


def main() -> None:
    """All comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("reads", "workers", "latents"), help="one of the comparisons")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        folder, out, workers = args.side
        print(json.dumps(measured(Path(folder), Path(out), int(workers))))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as name:
        for kind, compare in (("reads", compare_reads), ("latents", compare_latents), ("workers", compare_workers)):
            if args.only in (None, kind):
                compare(Path(name), args.rounds)


if __name__ == "__main__":
    main()
