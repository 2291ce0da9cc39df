"""Speed of preparing videos against a plain OpenCV loop and against decoding alone, on clips like those of UCF101.

The loop reads, resizes, appends to a list, makes one array and saves it, as the original preparation does. Decoding
alone makes no RGB and keeps nothing: no preparation can be faster. Each side runs in a process of its own, one after
the other, several times; printed are the ratios of the medians, then the rates. Per second of the processor, which is
what a machine with other programs on it can be asked. 320x240: no resizing, 64x64: antialiased by area on both sides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
NUM_FRAMES = 50
CLIP_FRAMES = 186  # the mean of UCF101
VIDEOS = {(320, 240): 32, (64, 64): 96}  # enough that starting the processes does not decide


def make_videos(folder: Path, count: int, frames: int = CLIP_FRAMES) -> None:
    """MPEG-4 avi files, 320x240, a moving texture with noise; four different ones under `count` names."""
    folder.mkdir()
    for index in range(count):
        path = folder / f"v_Benchmark_g01_c{index:03d}.avi"
        if index >= 4:
            path.symlink_to(folder / f"v_Benchmark_g01_c{index % 4:03d}.avi")
            continue
        rng = np.random.default_rng(index)
        texture = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25, width=320, height=240, pix_fmt="yuv420p", bit_rate=600_000)
            for time_step in range(frames):
                window = texture[time_step : time_step + 240, time_step : time_step + 320]
                noisy = np.clip(window.astype(int) // 2 + 64 + rng.integers(-4, 5, window.shape), 0, 255)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")))
            container.mux(stream.encode())


def opencv_loop(folder: Path, out: Path, width: int, height: int) -> int:
    """The loop to compare with; returns the number of frames."""
    import cv2

    rule = cv2.INTER_LINEAR if (width, height) == (320, 240) else cv2.INTER_AREA
    sequences, count = [], 0
    for path in sorted(folder.iterdir()):
        capture, frames = cv2.VideoCapture(str(path)), []
        while True:
            good, frame = capture.read()
            if not good:
                break
            frames.append(cv2.resize(frame, (width, height), interpolation=rule))
        for start in range(0, len(frames) - NUM_FRAMES + 1, NUM_FRAMES):
            sequences.append(np.array(frames[start : start + NUM_FRAMES]))
        count += len(frames)
    np.save(out, np.array(sequences))
    return count


def this_project(folder: Path, out: Path, width: int, height: int, workers: int) -> int:
    """The same with prepare_videos; returns the number of frames."""
    from videodata.prepare import SequenceSettings, prepare_videos
    from videodata.video_folder import list_videos

    settings = SequenceSettings(NUM_FRAMES, height, width)
    return prepare_videos(list_videos(folder), out, settings, workers=workers).frames


def decoded(path: Path) -> int:
    """Decode one video to the pictures of its codec; returns the number of frames."""
    from videodata.container import open_video

    with open_video(path) as video:
        return sum(1 for _ in video.frames())


def measured_side(side: str, folder: Path, out: Path, width: int, height: int, workers: int) -> dict:
    """Frames per second of wall clock and of processor time of one side, in this process."""
    begin = time.perf_counter()
    if side == "opencv":
        frames = opencv_loop(folder, out, width, height)
    elif side == "decode":
        with ProcessPoolExecutor(workers) as pool:
            frames = sum(pool.map(decoded, sorted(folder.iterdir())))
    else:
        frames = this_project(folder, out, width, height, workers)
    seconds = time.perf_counter() - begin
    return {"rate": frames / seconds, "cpu": frames / sum(os.times()[:4])}


def run_side(side: str, folder: Path, out: Path, size: tuple[int, int], workers: int) -> dict:
    """The same in a new process."""
    command = [sys.executable, __file__, "--side", side, str(folder), str(out), *map(str, (*size, workers))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for made in out.parent.glob(out.stem + ".*"):
        made.unlink()
    return json.loads(done.stdout)


def compare(folder: Path, out: Path, size: tuple[int, int], workers: int, rounds: int) -> None:
    """Print the ratios of the medians, the target, and the rates of all sides."""
    sides = [("project", workers), ("project", 1), ("opencv", 1), ("decode", workers)]
    results: dict[tuple[str, int], list[dict]] = {side: [] for side in sides}
    for _ in range(rounds):
        for (side, used), measured in results.items():
            measured.append(run_side(side, folder, out, size, used))
    rate, cpu = (
        {side: statistics.median(result[key] for result in measured) for side, measured in results.items()}
        for key in ("rate", "cpu")
    )
    ours, single, opencv, decode = sides
    width, height = size
    target = 1.5 if size == (320, 240) else 1.0
    print(
        f"ratio {rate[ours] / rate[opencv]:.2f} (target {target}) to the OpenCV loop at {width}x{height}, "
        f"per CPU second {cpu[ours] / cpu[opencv]:.2f}; {rate[ours] / rate[decode]:.2f} of decoding alone, "
        f"per CPU second {cpu[ours] / cpu[decode]:.2f}; {workers} workers {rate[ours] / rate[single]:.2f} times one\n"
        f"frames/s: {rate[ours]:.0f} with {workers} workers, {rate[single]:.0f} with one, {rate[opencv]:.0f} with the "
        f"OpenCV loop, {rate[decode]:.0f} decoding alone in {workers} processes; per CPU second {cpu[ours]:.0f}, "
        f"{cpu[single]:.0f}, {cpu[opencv]:.0f} and {cpu[decode]:.0f}; medians of {rounds}",
        flush=True,
    )


def main() -> None:
    """Compare at both sizes, or at one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[f"{width}x{height}" for width, height in VIDEOS], help="one of the sizes")
    parser.add_argument("--side", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, folder, out, *numbers = args.side
        print(json.dumps(measured_side(side, Path(folder), Path(out), *map(int, numbers))))
        return
    with tempfile.TemporaryDirectory() as name:
        for size, videos in VIDEOS.items():
            if args.only not in (None, f"{size[0]}x{size[1]}"):
                continue
            folder = Path(name, f"{videos} videos")
            make_videos(folder, videos)
            compare(folder, Path(name, "out.npy"), size, args.workers, args.rounds)


if __name__ == "__main__":
    main()
