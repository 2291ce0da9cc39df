"""A training loader that is killed and resumed goes on with the same clips, on one process and on two."""

import hashlib
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
import torch

from scripts import prepare_data
from tests.training.runs import settings
from tests.videodata.tars import add, array
from training.data import PositionSampler, batches, blocks_of
from videodata import open_clips
from videodata.shapes import Shapes
from videodata.tars.scan import index_shards

STEPS, BATCH = 9, 4


@pytest.fixture(scope="module", params=["npy", "hdf5", "shares", "tars"])
def data(request, tmp_path_factory) -> Path:
    """Seven prepared videos of 24 frames: as one array, as shards, as three shares with an index, or in three tars."""
    root = tmp_path_factory.mktemp("data")
    if request.param == "tars":
        for shard, numbers in enumerate(([0, 1, 2], [3, 4], [5, 6])):
            with tarfile.open(root / f"x-{shard}.tar", "w") as tar:
                for number in numbers:
                    add(tar, f"v{number}.npy", array(Shapes(7, 24, 16).read(number)))
        index_shards(root, workers=1)
        return root
    form = "npy" if request.param == "shares" else request.param
    command = ["shapes", "--count", "7", "--frames", "24", "--size", "16", "--format", form, "--num_frames", "24"]
    if request.param != "shares":
        prepare_data.main([*command, "--out", str(root / "one")])
        return root / "one"
    for number in (1, 2, 3):
        prepare_data.main([*command, "--out", str(root), "--shard", f"{number}/3"])
    prepare_data.main(["merge", str(root)])
    return root / "clips.json"


def read(data: Path, log: Path, rank: int, world: int, kill_after: int | None) -> None:
    """What one process of a run does: each step's clips from the loader, noted when they are used, from the next step
    on. kill_after: SIGKILL to itself after so many steps."""
    done = len(log.read_text().splitlines()) if log.exists() else 0
    dataset = open_clips(data, frames=8, size=16, stride=2, seed=3, flip=True)
    blocks = blocks_of(dataset)
    sampler = PositionSampler(7, BATCH, 3, done, STEPS, done * BATCH, rank=rank, world=world, blocks=blocks)
    with (
        batches(dataset, sampler, settings(log.parent, workers=rank), torch.device("cpu")) as feed,
        open(log, "a") as lines,
    ):
        for step, batch in enumerate(feed, 1):
            clips = [hashlib.sha256(clip.numpy().tobytes()).hexdigest() for clip in batch.data]
            lines.write(json.dumps(dict(zip(batch.positions, clips, strict=True))) + "\n")
            lines.flush()
            if step == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)


def run_processes(data: Path, folder: Path, world: int, kill_after: int | None = None) -> dict[str, str]:
    """The clips, by position, that `world` processes have used so far."""
    folder.mkdir(exist_ok=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            try:
                read(data, folder / f"{rank}.jsonl", rank, world, kill_after)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0 if kill_after is None else -signal.SIGKILL] * world
    lines = [line for rank in range(world) for line in (folder / f"{rank}.jsonl").read_text().splitlines()]
    return {position: clip for line in lines for position, clip in json.loads(line).items()}


@pytest.mark.posix
def test_killed_and_resumed(data, tmp_path):
    """Killed after two steps and again after three more: all 36 positions hold the clips of an undisturbed run."""
    whole = run_processes(data, tmp_path / "whole", 1)
    assert len(whole) == STEPS * BATCH and len(set(whole.values())) > 30  # windows and flips differ between epochs
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert len(run_processes(data, folder, world, kill_after=2)) == 2 * BATCH
        assert len(run_processes(data, folder, world, kill_after=3)) == 5 * BATCH
        assert run_processes(data, folder, world) == whole
