"""Tar shards against the same videos as files, on this disk and behind a server with ranges; and ten million entries.

    python benchmarks/tars.py                    # samples/s of a loader with 4 workers, ratios first
    python benchmarks/tars.py --entries 10000000   # opening an index of so many, in a process of its own

Four loaders take turns in each round: files, tars on this disk, tars behind a loopback HTTP server (a process of its
own) with one range for each sample, and the same with a cache that holds all shards since the round before. Times are
those of the clock for the same clips in the same order, after one round that does not count; medians of the ratios.
"""

from __future__ import annotations

import argparse
import hashlib
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.data import PositionSampler, batches, blocks_of  # noqa: E402
from training.settings import TrainSettings  # noqa: E402
from videodata import open_clips, write_video  # noqa: E402
from videodata.clips import ClipDataset  # noqa: E402
from videodata.shapes import Shapes  # noqa: E402
from videodata.shard_cache import FOLDER  # noqa: E402
from videodata.tar_index import COLUMNS, INDEX_NAME, Shard, write_columns  # noqa: E402
from videodata.tar_scan import index_shards  # noqa: E402

FRAMES, SIDE, CLIP, SIZE = 96, 192, 16, 64
WORKERS, BATCH = 4, 8


def make_data(folder: Path, shards: int, videos: int) -> None:
    """The same films as files and in tars: H.264, 192x192, four seconds of moving shapes."""
    source = Shapes(16, FRAMES, SIDE)
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
    index_shards(folder / "tars")


def seconds(clips: ClipDataset, folder: Path, samples: int, workers: int) -> float:
    """How long a loader takes for so many samples, from its start to the last batch."""
    import torch

    settings = TrainSettings(run_dir=folder, workers=workers, batch_size=BATCH, device="cpu")
    sampler = PositionSampler(len(clips), BATCH, 0, 0, samples // BATCH, 0, blocks=blocks_of(clips))
    begin = time.perf_counter()
    with batches(clips, sampler, settings, torch.device("cpu")) as feed:
        for _ in feed:
            pass
    return time.perf_counter() - begin


def compare(folder: Path, rounds: int, shards: int, videos: int, workers: int) -> None:
    """Print the ratios and what they are made of."""
    make_data(folder, shards, videos)
    command = [sys.executable, "-m", "tests.videodata.range_server", str(folder / "tars")]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = f"{server.stdout.readline().strip()}/x-{{000..{shards - 1:03d}}}.tar"
        places = {"files": folder / "files", "local": folder / "tars", "ranges": address, "cache": address}
        taken: dict[str, list[float]] = {name: [] for name in places}
        for turn in range(rounds + 1):
            for name, place in places.items():
                os.environ.pop(FOLDER, None)
                if name == "cache":
                    os.environ[FOLDER] = str(folder / "cache")
                clips = open_clips(place, CLIP, SIZE, dtype="uint8")
                spent = seconds(clips, folder, shards * videos // BATCH * BATCH, workers)
                if turn:
                    taken[name].append(spent)
        os.environ.pop(FOLDER, None)
    finally:
        server.kill()
        server.wait()

    def ratio(name: str, to: str) -> float:
        return statistics.median(b / a for a, b in zip(taken[name], taken[to], strict=True))

    kept = len(list((folder / "cache").glob("*.tar")))
    print(f"local tars / files: {ratio('local', 'files'):.2f}")
    print(f"tars over http, one range a sample / local tars: {ratio('ranges', 'local'):.2f}")
    print(f"tars over http, cache warm ({kept} of {shards} shards) / local tars: {ratio('cache', 'local'):.2f}")
    for name, spent in taken.items():
        print(f"  {name}: {shards * videos // BATCH * BATCH / statistics.median(spent):.0f} samples/s")


def make_index(path: Path, entries: int, per_shard: int = 1000) -> None:
    """An index as that of `entries` videos, made without them."""
    shards = -(-entries // per_shard)
    rows = np.arange(entries)
    keys = np.char.zfill(rows.astype("S8"), 8)
    columns = {name: np.zeros(entries if length == "n" else 0, kind) for name, (kind, length) in COLUMNS.items()}
    columns |= {
        "first": np.arange(0, entries, per_shard, dtype="<i8"), "offset": rows % per_shard * 512 + 512,
        "bytes": np.full(entries, 300), "key_end": (rows + 1) * 8, "keys": np.frombuffer(keys.tobytes(), "|u1"),
        "frames": np.full(entries, 96, "<i4"), "height": np.full(entries, 192, "<i4"),
        "width": np.full(entries, 192, "<i4"), "group": np.full(entries, -1, "<i4"),
        "split": np.full(entries, -1, "<i4"),
        "label": (rows % 100).astype("<i4"), "rates": np.array([[24, 1]]),
        "hash": np.random.default_rng(0).permutation(entries).astype("<u8") * np.uint64(1 << 40),
    }  # fmt: skip
    texts = [f"class{number:02d}".encode() for number in range(100)] + [b".mp4"]
    columns["kind"] = np.full(entries, 100, "<i4")
    columns["texts"] = np.frombuffer(b"".join(texts), "|u1")
    columns["text_end"] = np.cumsum([len(text) for text in texts], dtype="<i8")
    names = [Shard(f"x-{number:06d}.tar", per_shard * 2048, hashlib.sha256(b"%d" % number).hexdigest(), 1)
             for number in range(shards)]  # fmt: skip
    typed = {name: np.ascontiguousarray(columns[name], COLUMNS[name][0]) for name in COLUMNS}
    write_columns(path, names, typed, None, "key")


def open_made(path: Path, split: str | None) -> None:
    """Open an index in this process, and print what that takes, as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    clips = open_clips(path, CLIP, SIZE, split=split)
    opened = time.perf_counter() - begin, time.process_time() - cpu
    clips.fingerprint()
    known = time.process_time() - cpu
    begin, cpu = time.perf_counter(), time.process_time()
    sampler = PositionSampler(len(clips), BATCH, 0, 0, 1000, 0, blocks=blocks_of(clips))
    sampler.keys(0, 0)
    clips.describe(sampler.index(5))
    first = time.perf_counter() - begin, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    facts = {"clips": len(clips), "open": opened, "with_fingerprint": known, "first": first, "peak": peak}
    print(json.dumps(facts))


def measure_entries(folder: Path, entries: int) -> None:
    """Print what opening costs, all of it and one split."""
    make_index(folder / INDEX_NAME, entries)
    for split in ("", "train"):
        command = [sys.executable, __file__, "--open", str(folder / INDEX_NAME), "--split", split]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{entries} entries, {split or 'all'}: open {facts['open'][1]:.2f} s of CPU ({facts['open'][0]:.2f} s), "
              f"with the fingerprint {facts['with_fingerprint']:.2f} s, order and place of the first sample "
              f"{facts['first'][1]:.2f} s, {facts['peak'] / 1e6:.0f} MB more at its peak, pages of the index counted"
        )  # fmt: skip


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
