"""The second stage by its commands: trained, continued, stored with its model, and drawn from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from scripts import evaluate, generate_video_vae, train_video_vae_prior
from tests.video_vae.tiny import TINY
from training.checkpoint import load_checkpoint
from training.state import weights_digest
from video_vae.files import load_prior
from videodata.errors import UserError

DATA = "digits:40,digits=1,frames=4,size=16"
MODEL = [
    "--set", f"levels={json.dumps(TINY['levels'])}", "stem_dim=8", "canvas_dim=8", "head_dim=4", "stem_heads=2",
    "canvas_heads=2",
]  # fmt: skip
SIZES = ["--width", "16", "--depth", "1", "--heads", "2", "--directions", "4", "--batch_size", "8"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A run folder without second stage."""
    run = tmp_path_factory.mktemp("runs") / "r"
    video_vae(run, "--steps", 1)
    return run


@pytest.fixture
def run(plain, tmp_path, monkeypatch) -> Path:
    """A copy of it in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, "r")
    return Path("r")


def video_vae(run: Path, *flags: object) -> None:
    data = ["--data", DATA, "--frames", 4, "--size", 16, 16, "--preset", "tiny", *MODEL]
    others = ["--batch_size", 8, "--perceptual_weight", 0, "--device", "cpu", "--warmup_steps", 0]
    main.main([*map(str, [*data, *others, "--run_dir", run, *flags])])


def prior(run: Path, *flags: object) -> None:
    train_video_vae_prior.main(["--checkpoint", str(run), "--device", "cpu", *SIZES, *map(str, flags)])


def draw(checkpoint: Path, *flags: object) -> np.ndarray:
    flags = ["--checkpoint", checkpoint, "--num_samples", 2, "--device", "cpu", "--out", "o", *flags]
    generate_video_vae.main([*map(str, flags)])
    return np.load("o/samples.npy")


def test_a_run_without_second_stage_draws_as_before_and_says_so(run, capsys):
    """Asked for what it lacks, it names the command that makes it."""
    samples = draw(run)
    assert "the network was trained with; no second stage: scripts/train_video_vae_prior.py" in capsys.readouterr().out
    assert np.array_equal(samples, draw(run, "--prior", "normal"))
    for kind in ("flow", "gaussian"):
        with pytest.raises(UserError, match=f"no second stage for --prior {kind}.*train_video_vae_prior.py"):
            draw(run, "--prior", kind)
    with pytest.raises(UserError, match="--class 3 needs a flow that was trained with classes"):
        draw(run, "--class", "3")


def test_samples_come_from_the_second_stage_where_there_is_one(run, capsys):
    """By default; the others are asked for."""
    before = draw(run)
    prior(run, "--steps", 2, "--classes")
    assert load_checkpoint(run / "prior")["step"] == 2
    assert not np.array_equal(draw(run), before)
    assert "samples from the flow of the second stage" in capsys.readouterr().out
    assert np.array_equal(draw(run, "--prior", "normal"), before)
    assert not np.array_equal(draw(run, "--prior", "gaussian"), before)


def test_a_stopped_training_continues_bit_for_bit(run, tmp_path):
    """1 step and 2 more are 3 steps, the encoded clips and the Gaussian among what is the same."""
    shutil.copytree(run, "whole")
    prior("whole", "--steps", 3, "--classes", "--schedule", "constant")
    for steps in (1, 3):
        prior(run, "--steps", steps, "--classes", "--schedule", "constant")
    first, second = (load_checkpoint(Path(folder) / "prior") for folder in ("whole", "r"))
    for part in ("networks", "ema", "optimizers"):
        assert weights_digest(first[part]) == weights_digest(second[part])


def test_an_unknown_class_is_one_line(run):
    """Which names what there is."""
    prior(run, "--steps", 2, "--classes")
    with pytest.raises(UserError, match="'77' is none of the 10 classes"):
        draw(run, "--class", "77")


def test_guidance_1_is_the_default_and_another_differs(run):
    """Bit for bit, once the classes have been learnt from."""
    prior(run, "--steps", 3, "--classes", "--learning_rate", 0.05, "--warmup_steps", 0, "--ema", 0)
    plain = draw(run, "--class", "7")
    assert np.array_equal(plain, draw(run, "--class", "7", "--guidance", "1"))
    x = torch.randn(2, 88)
    network = load_prior(run)
    assert not torch.equal(network.flow(x, 2, torch.tensor([7, 7])), network.flow(x, 2, torch.tensor([7, 7]), 3.0))


def test_a_second_stage_of_other_weights_is_not_drawn_from(run):
    """After more steps of the first stage the second belongs to weights of the past, and the message says so."""
    prior(run, "--steps", 1)
    video_vae(run, "--steps", 2)
    with pytest.raises(UserError, match="prior of step 1 of this run, which is at step 2"):
        draw(run)
    assert draw(run, "--prior", "normal").shape == (2, 4, 16, 16, 3)
    earlier = run / "checkpoints" / "step-0000001.pt"
    assert load_prior(earlier) is not None
    with pytest.raises(UserError, match="prior: .*another model.*of_step.*; delete that folder to train it anew"):
        prior(run, "--steps", 1)


def test_samples_of_a_class_are_evaluated_with_each_clip_s_own(run):
    """The report says which prior they came from, and --guidance reaches the sampler."""
    prior(run, "--steps", 1, "--classes")
    common = [
        "video_vae",
        "--checkpoint",
        str(run),
        "--data",
        DATA,
        "--split",
        "train",
        "--device",
        "cpu",
        "--generate",
    ]
    evaluate.main([*common, "--guidance", "2", "--out", "evaluation.json"])
    report = json.loads(Path("evaluation.json").read_text())
    assert report["scores"][0]["name"].startswith("FD") and '"flow"' in json.dumps(report)
    with pytest.raises(UserError, match="without classes"):
        evaluate.main([*common, "--guidance", "2", "--prior", "gaussian"])


def test_the_second_stage_is_of_a_run_folder(run):
    """A weight file has no place for it."""
    with pytest.raises(UserError, match="is not the run folder of a video VAE"):
        prior(run / "checkpoints" / "step-0000001.pt", "--steps", 1)
