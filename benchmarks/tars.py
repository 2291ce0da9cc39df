"""Tar shards against the same videos as files, on this disk and behind a server with ranges; and ten million entries.

    python benchmarks/tars.py                    # samples/s of a loader with 4 workers, ratios first
    python benchmarks/tars.py --entries 10000000   # opening an index of so many, in a process of its own

Four loaders take turns in each round: files, tars on this disk, tars behind a loopback HTTP server (a process of its
own) with one range for each sample, and the same with a cache that holds all shards since the round before. Measured
are the time by the clock, and that of the processors (the loader and its workers, not the server), after one round that
does not count; printed are medians of the ratios of a round.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.data import PositionSampler, batches, blocks_of  # noqa: E402
from training.settings import TrainSettings  # noqa: E402
from videodata import open_clips, write_video  # noqa: E402
from videodata.clips import ClipDataset  # noqa: E402
from videodata.shapes import Shapes  # noqa: E402
from videodata.tars.cache import FOLDER  # noqa: E402
from videodata.tars.index import COLUMNS, INDEX_NAME, TarIndex, write_columns  # noqa: E402
from videodata.tars.scan import index_shards  # noqa: E402
from videodata.video import _make_table  # noqa: E402

FRAMES, SIDE, CLIP, SIZE = 64, 192, 16, 64
WORKERS, BATCH = 4, 8


def make_data(folder: Path, shards: int, videos: int) -> None:
    """The same films as files and in tars: H.264, 192x192, 64 frames of moving shapes."""
    source = Shapes(8, FRAMES, SIDE)
    (folder / "files").mkdir()
    (folder / "tars").mkdir()
    films = []
    for number in range(len(source)):
        write_video(folder / "film.mp4", source.read(number), 24)
        films.append((folder / "film.mp4").read_bytes())
    for shard in range(shards):
        with tarfile.open(folder / "tars" / f"x-{shard:03d}.tar", "w") as tar:
            for number in range(shard * videos, (shard + 1) * videos):
                info = tarfile.TarInfo(f"v{number:05d}.mp4")
                info.size = len(films[number % len(films)])
                tar.addfile(info, io.BytesIO(films[number % len(films)]))
                (folder / "files" / info.name).write_bytes(films[number % len(films)])
    index_shards(folder / "tars", workers=1)


def processors() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(clips: ClipDataset, folder: Path, samples: int, workers: int) -> tuple[float, float]:
    """What a loader takes for so many samples, once it runs: by the clock, and of the processors.

    The clock begins when every worker has given a batch, because what the start of a loader takes (a second more where
    it imports what talks to a server) is of an epoch, however long that is; the processors count all of it.
    """
    import torch

    settings = TrainSettings(run_dir=folder, steps=1, workers=workers, batch_size=BATCH, device="cpu")
    sampler = PositionSampler(len(clips), BATCH, 0, 0, samples // BATCH, 0, blocks=blocks_of(clips))
    begin, used = time.perf_counter(), processors()
    with batches(clips, sampler, settings, torch.device("cpu")) as feed:
        for number, _ in enumerate(feed, 1):
            begin = time.perf_counter() if number == workers else begin
    share = 1 - workers * BATCH / samples  # of the batches, that came by the clock
    return (time.perf_counter() - begin) / share, processors() - used


def compare(folder: Path, rounds: int, shards: int, videos: int, workers: int) -> None:
    """Print the ratios and what they are made of."""
    make_data(folder, shards, videos)
    command = [sys.executable, "-m", "tests.videodata.range_server", str(folder / "tars")]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = f"{server.stdout.readline().strip()}/x-{{000..{shards - 1:03d}}}.tar"
        places = {"files": folder / "files", "local": folder / "tars", "ranges": address, "cache": address}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
        for turn in range(rounds + 1):
            for name, place in [*places.items()][turn % 4 :] + [*places.items()][: turn % 4]:  # each comes first once
                os.environ.pop(FOLDER, None)
                if name == "cache":
                    os.environ[FOLDER] = str(folder / "cache")
                clips = open_clips(place, CLIP, SIZE, dtype="uint8")
                _make_table.cache_clear()  # opening a folder of few files for the first time fills it; more do not fit
                spent = seconds(clips, folder, shards * videos // BATCH * BATCH, workers)
                if turn:
                    taken[name].append(spent)
        os.environ.pop(FOLDER, None)
    finally:
        server.kill()
        server.wait()

    kept, count = len(list((folder / "cache").glob("*.tar"))), shards * videos // BATCH * BATCH

    def show(what: str, name: str, to: str) -> None:
        clock, cpu = (
            statistics.median(b[kind] / a[kind] for a, b in zip(taken[name], taken[to], strict=True)) for kind in (0, 1)
        )
        print(f"{what}: {clock:.2f} by the clock, {cpu:.2f} of the processors")

    show("local tars / files", "local", "files")
    show("tars over http, one range a sample / local tars", "ranges", "local")
    show(f"tars over http, cache warm ({kept} of {shards} shards) / local tars", "cache", "local")
    for name, spent in taken.items():
        clock, cpu = (count / statistics.median(each[kind] for each in spent) for kind in (0, 1))
        print(f"  {name}: {clock:.0f} samples/s, {cpu:.0f} for each second of a processor")


def make_index(folder: Path, entries: int, per_shard: int = 1000) -> None:
    """An index of `entries` videos in shards that are links to one tar, made without reading them again."""
    folder.mkdir()
    with tarfile.open(folder / "x-000000.tar", "w") as tar:
        for number in range(per_shard):
            pixels = io.BytesIO()
            np.save(pixels, np.full((CLIP, 8, 8, 3), number % 256, np.uint8))
            info = tarfile.TarInfo(f"v{number:04d}.npy")
            info.size = len(pixels.getvalue())
            tar.addfile(info, io.BytesIO(pixels.getvalue()))
    index_shards(folder, workers=1)
    one = TarIndex.open(folder / INDEX_NAME)
    count = -(-entries // per_shard)
    rows = np.arange(entries)
    tiled = {
        name: np.tile(one.columns[name], count)[:entries] for name, (_, length) in COLUMNS.items() if length == "n"
    }
    shards = [replace(one.shards[0], name=f"x-{number:06d}.tar") for number in range(count)]
    for shard in shards[1:]:
        os.link(folder / "x-000000.tar", folder / shard.name)
    columns = one.columns | tiled | {
        "first": np.arange(0, entries, per_shard),
        "key_end": (rows + 1) * 8,
        "keys": np.frombuffer(np.char.zfill(rows.astype("S8"), 8).tobytes(), np.uint8),
        "hash": np.random.default_rng(0).permutation(entries).astype(np.uint64) << np.uint64(40),
    }  # fmt: skip
    typed = {name: np.ascontiguousarray(columns[name], kind) for name, (kind, _) in COLUMNS.items()}
    write_columns(folder / INDEX_NAME, shards, typed, None, "key")


def memory(name: str) -> int:
    """VmRSS or VmHWM (the highest so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def open_made(path: Path, split: str | None) -> None:
    """Open an index in this process, and print what that takes, as JSON."""
    before, begin, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    clips = open_clips(path, CLIP, 8, split=split)
    opened = time.perf_counter() - begin, time.process_time() - cpu
    clips.fingerprint()
    known = time.process_time() - cpu
    begin, cpu = time.perf_counter(), time.process_time()
    sampler = PositionSampler(len(clips), BATCH, 0, 0, 1000, 0, blocks=blocks_of(clips))
    clips[sampler.keys(0, 0)[0]]
    first = time.perf_counter() - begin, time.process_time() - cpu
    facts = {"clips": len(clips), "open": opened, "fingerprint": known, "first": first}
    print(json.dumps({**facts, "peak": memory("VmHWM") - before, "now": memory("VmRSS") - before}))


def measure_entries(folder: Path, entries: int) -> None:
    """Print what opening costs, all of it and one split; CPU seconds, and those of the clock in brackets."""
    make_index(folder / "made", entries)
    for split in ("", "train"):
        command = [sys.executable, __file__, "--open", str(folder / "made"), "--split", split]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        (opened, waited), (first, until) = facts["open"], facts["first"]
        print(f"{entries} entries, {facts['clips']} clips ({split or 'all'}):")
        print(f"  open {waited:.2f} s ({opened:.2f} s), with the fingerprint {facts['fingerprint']:.2f} s, "
              f"first sample {until:.2f} s more ({first:.2f} s)")  # fmt: skip
        print(f"  memory {facts['peak'] / 1e6:.0f} MB more at the peak, {facts['now'] / 1e6:.0f} MB after it, with "
              "the pages of the index that it has seen")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--videos", type=int, default=32, help="in each shard")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--entries", type=int, default=0)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--split", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        open_made(Path(args.open), args.split or None)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.entries:
            measure_entries(Path(folder), args.entries)
        else:
            compare(Path(folder), args.rounds, args.shards, args.videos, args.workers)


if __name__ == "__main__":
    main()
