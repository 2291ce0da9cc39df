"""`evaluate.py river --protocol bair-1-15` from TFRecords to a JSON file: killed twice on the way, and in two
processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation.protocols import named
from scripts import evaluate, train_flow_autoencoder, train_flow_pred
from tests.training import processes
from tests.videodata.miniatures import prepare

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "flow_pred" / "shapes_river_tiny.yaml"
CLIPS = 9  # of the miniature's test part
SMALL = [  # a RIVER of 64x64 pixels that sees one given frame
    *("data.input_size=64", "data.crop_size=64", "data.skip_frames=0"),
    *("model.vector_field_regressor.inner_dim=16", "model.vector_field_regressor.depth=1"),
    *("model.vector_field_regressor.state_res=[16,16]", "model.num_input_frames=1", "model.unroll=1"),
    *("training.num_observations=4", "data.frames_per_sample=4"),
    *("training.condition_frames=1", "training.frames_to_generate=3"),
]


COMMAND = [
    *("river", "--checkpoint", "runs/shapes_run-river", "--data", "data/bair", "--protocol", "bair-1-15"),
    *("--samples", "3", "--allow_random_features", "--force", "--batch_size", "1", "--device", "cpu"),
    *("--feature_cache", "none", "--out", "result.json"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Folder with BAIR in miniature, prepared as the protocol says, and a RIVER that was trained on it for a step."""
    folder = tmp_path_factory.mktemp("river")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(shlex.split(named("bair-1-15").prepare)[2:], folder / "archives", test=CLIPS)
        shared = ["--config", str(CONFIG), "--data", "data/bair", "--steps", "1", "--batch_size", "2"]
        train_flow_autoencoder.main([*shared, *SMALL])
        train_flow_pred.main([*shared, "--run-name", "river", "--warmup_steps", "1", "--num-gpus", "0", *SMALL])
    return folder


@pytest.fixture(scope="module")
def whole(workplace) -> bytes:
    """The file of the command that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        evaluate.main(COMMAND)
    return taken(workplace)


def taken(folder: Path) -> bytes:
    """The result, which is there no more, nor anything beside it."""
    assert [path.name for path in folder.glob("result*")] == ["result.json"]
    content = (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()
    return content


def killed_after(batches: int, folder: Path) -> None:
    """Run the command until it has kept so many batches, and kill it."""
    process = multiprocessing.get_context("fork").Process(target=evaluate.main, args=(COMMAND,))
    process.start()
    while process.is_alive() and len(list(folder.glob("result.json.*.partial/*.pt"))) < batches:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was done before it could be killed"


@pytest.mark.posix
def test_killed_twice_it_gives_the_same_file(workplace, whole, monkeypatch, capsys):
    """Byte for byte; the batches that were kept are not made again, and nothing else is left."""
    monkeypatch.chdir(workplace)
    for batches in (2, 5):
        killed_after(batches, workplace)
        assert not Path("result.json").exists()
    kept = len(list(workplace.glob("result.json.*.partial/*.pt")))
    assert 5 <= kept < CLIPS
    evaluate.main(COMMAND)
    assert taken(workplace) == whole
    stored = json.loads(whole)
    scores = {score["name"]: score for score in stored["scores"]}
    assert scores["FVD-RANDOM"]["sizes"] == {"real": CLIPS, "generated": 3 * CLIPS}
    assert len(scores["PSNR best of 3"]["per_clip"]) == CLIPS and stored["excluded_frames"] == 1
    assert stored["details"]["protocol"]["departs_in"] == {
        "samples": [100, 3], "allow_random_features": [False, True], "clips": [256, CLIPS],
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "protocol bair-1-15+changed: samples 3 in place of 100" in printed
    assert "LVT              FVD 125.76 +- 2.90  (arXiv 2006.10704)" in printed


@pytest.mark.posix
def test_stopped_by_a_signal_it_says_that_the_same_command_goes_on(workplace):
    """One line and the usual status; the batches until then are kept."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *COMMAND, "--out", "stopped.json"], cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(workplace.glob("stopped.json.*.partial/*.pt")):
        time.sleep(0.005)
    process.terminate()
    said = process.communicate()[1].strip().splitlines()
    assert process.returncode == 143 and said[0] == "cpu, 1 process"
    assert said[-1] == "stopped by SIGTERM; the same command goes on after the batches that are kept beside the result"
    assert list(workplace.glob("stopped.json.*.partial/*.pt")) and not (workplace / "stopped.json").exists()


@pytest.mark.posix
def test_two_processes_give_the_same_file(workplace, whole, monkeypatch):
    """Started as torchrun starts them: all but the number of processes, and the last bits of sums whose order is
    another.
    """
    monkeypatch.chdir(workplace)
    assert processes.launched(evaluate.main, 2, COMMAND) == [0, 0]
    one, two = json.loads(whole), json.loads(taken(workplace))
    assert (one["details"].pop("processes"), two["details"].pop("processes")) == (1, 2)
    for mine, other in zip(one["scores"], two["scores"], strict=True):
        if not mine["per_clip"]:
            values = [(score.pop("mean"), score["half_sample"].pop("value")) for score in (mine, other)]
            assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert one == two
