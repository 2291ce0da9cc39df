"""What a training says first and last: where it computes and on what; and the command that shows what it has learnt."""

import importlib
import re
import shlex

import pytest

from tests.lvt.test_scripts import VQVAE
from tests.scripts.test_broken_weights import DATA, RIVER, ROOT, call
from tests.vqgan.test_acceptance import SMALL as VQGAN

FIRST = re.compile(r"cpu, 1 process, \w+, batch \d+, 1 steps, trained on \d+ clips of shapes:.* \(train\), in runs/\S+")
CPU = ["--device", "cpu"]
FLOW = ["--config", ROOT / "configs/flow_pred/shapes_river_tiny.yaml", *RIVER]
FLOW += ["model.autoencoder.ckpt_path=runs/shapes_run-autoencoder", "data.data_root='shapes:8,frames=32,size=32'"]
TRAININGS = {  # in this order: a predictor needs its autoencoder, a second stage its first
    "main": [
        *("--data", DATA, "--preset", "tiny", "--frames", 4, "--size", 16, 16, "--perceptual_weight", 0, "--steps", 1),
        *("--warmup_steps", 0, "--run_dir", "runs/video_vae", *CPU),
    ],
    "train_video_vae_prior": ["--checkpoint", "runs/video_vae", "--steps", 1, *CPU],
    "train_vqgan": ["--data", DATA, *VQGAN, "--gan_steps", 0, "--steps", 1, "--run_dir", "runs/vqgan", *CPU],
    "train_vvae": [
        *("--data", DATA, "--config", ROOT / "configs/vvae/tiny.yaml", "--run_dir", "runs/vvae", "--steps", 1, *CPU),
        *("--batch_size", 2, "data.frames=4", "data.size=16", "model.params.ddconfig.ch=32"),
    ],
    "train_lvt": [
        *("--config-file", ROOT / "configs/lvt/VQVAE_tiny.yaml", *VQVAE),
        *("SOLVER.MAX_ITER", 1, "OUTPUT_DIR", "runs/lvt"),
    ],
    "train_flow_autoencoder": [*FLOW[:2], "--steps", 1, "--batch_size", 2, *CPU, *FLOW[2:]],
    "train_flow_pred": [*FLOW[:2], "--run-name", "river", *CPU, *FLOW[2:]],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trainings share it."""
    return tmp_path_factory.mktemp("lines")


@pytest.mark.parametrize("script", TRAININGS)
def test_a_training_begins_with_its_facts_and_ends_with_what_shows_it(script, folder, monkeypatch, capsys, caplog):
    """Device, processes, precision, batch, steps, data and folder; the last line is a command that can be pasted."""
    monkeypatch.chdir(folder)
    caplog.set_level("INFO")
    assert call(script, *TRAININGS[script]) == 0
    first = next(record.getMessage() for record in caplog.records if "videodata" not in record.name)
    assert FIRST.fullmatch(first), first
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("next: python scripts/")
    command, *words = shlex.split(last.removeprefix("next: python scripts/"))
    importlib.import_module(f"scripts.{command.removesuffix('.py')}")
    caplog.clear()
    assert call(command.removesuffix(".py"), *words) == 0
    if command != "gallery.py":  # which computes nothing
        assert re.fullmatch(r"(cpu|cuda:\d+), 1 process", caplog.messages[0]), caplog.messages
