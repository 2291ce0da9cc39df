"""Weights that are not finite: every command that uses a trained model says so in one line and stores nothing."""

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.lvt.test_scripts import VQVAE
from tests.vqgan.test_acceptance import SMALL as VQGAN
from training.checkpoint import load_checkpoint, save_checkpoint
from training.cli import run
from videodata import write_video
from videodata.errors import UserError
from videodata.finite import finite, guarded_elsewhere
from videodata.pixels import denormalize

ROOT = Path(__file__).resolve().parents[2]
DATA = "shapes:8,frames=24,size=32"
RIVER = [
    f"data.data_root='{DATA}'", "model.vector_field_regressor.inner_dim=16", "training.batching.batch_size=2",
    "training.optimizer.num_training_steps=1", "data.frames_per_sample=8", "training.num_observations=6",
]  # fmt: skip


def call(script, *arguments):
    """Exit status of a script, in this process."""
    module = importlib.import_module("main" if script == "main" else f"scripts.{script}")
    with pytest.raises(SystemExit) as ended:
        run(module.main, [str(argument) for argument in arguments])
    return ended.value.code


def break_weights(folder):
    """Put NaN in place of all weights of the newest checkpoint of a run."""
    state = load_checkpoint(folder)
    for networks in (state["networks"], state["ema"]):
        for weights in networks.values():
            for value in weights.values():
                if value.is_floating_point():
                    value.fill_(torch.nan)
    facts = {"metrics": {}, "metrics_step": -1}
    save_checkpoint(next(iter(folder.rglob("step-*.pt"))).parent, state, facts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each model, of one or two steps."""
    folder = tmp_path_factory.mktemp("runs")
    own = ["--data", DATA, "--device", "cpu"]
    assert call(
        "main", *own, "--preset", "tiny", "--frames", 4, "--size", 16, 16, "--perceptual_weight", 0, "--steps", 1,
        "--warmup_steps", 0, "--run_dir", folder / "video_vae",
    ) == 0  # fmt: skip
    assert call("train_vqgan", *own, *VQGAN, "--gan_steps", 0, "--steps", 2, "--run_dir", folder / "vqgan") == 0
    assert call(
        "train_lvt", "--config-file", ROOT / "configs/lvt/VQVAE_tiny.yaml", *VQVAE, "SOLVER.MAX_ITER", 1,
        "OUTPUT_DIR", folder / "lvt",
    ) == 0  # fmt: skip
    assert call(
        "train_vvae", *own, "--config", ROOT / "configs/vvae/tiny.yaml", "--run_dir", folder / "vvae", "--steps", 1,
        "--batch_size", 2, "data.frames=4", "data.size=16", "model.params.ddconfig.ch=32",
    ) == 0  # fmt: skip
    river = ["--config", ROOT / "configs/flow_pred/shapes_river_tiny.yaml", "--runs", folder]
    autoencoder = f"model.autoencoder.ckpt_path={folder}/shapes_run-autoencoder"
    assert call("train_flow_autoencoder", *river, "--steps", 1, "--batch_size", 2, *RIVER, autoencoder) == 0
    assert call("train_flow_pred", *river, "--run-name", "river", "--num-gpus", 0, *RIVER, autoencoder) == 0
    return folder


@pytest.fixture(scope="module")
def broken(runs):
    """The same runs with weights that are not finite; RIVER's autoencoder is sound."""
    for name in ("video_vae", "vqgan/stage1", "lvt", "vvae", "shapes_run-river"):
        break_weights(runs / name)
    return runs


def refused(capsys, out, script, *arguments):
    """Call a script that has to refuse: status 2, one line with the reason, and no result, not even its folder."""
    capsys.readouterr()
    there = sorted(out.rglob("*"))
    assert call(script, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "not finite" in error and "use another checkpoint" in error
    assert sorted(out.rglob("*")) == there


@pytest.mark.parametrize(
    ("model", "name", "options"),
    [
        ("video_vae", "video_vae", ["--metrics", "psnr"]),
        ("video_vae", "video_vae", ["--generate", "--metrics", "fid", "--force", "--allow_random_features"]),
        ("vqgan", "vqgan/stage1", []),
        ("lvt", "lvt", []),
        ("vvae", "vvae", []),
        ("flow_pred", "shapes_run-river", ["--steps", 1, "--stride", 1]),
    ],
)
def test_an_evaluation_gives_no_number(broken, tmp_path, capsys, model, name, options):
    """A quantiser has a code for NaN, too: without the check RIVER's clips look grey and have a PSNR."""
    refused(
        capsys, tmp_path, "evaluate", model, "--checkpoint", broken / name, "--data", DATA, "--num_clips", 1,
        "--split", "all", "--device", "cpu",
        "--out", tmp_path / "evaluation.json", *options,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_vvae_stores_no_latents_and_no_films(broken, tmp_path, capsys, command):
    """A film and a picture go in; neither latents nor black films come out."""
    source = tmp_path / "source"
    write_video(source / "clip.mp4", torch.zeros(3, 8, 16, 16), 8)
    out = tmp_path / "out"
    suffix = ".npy" if command == "encode" else ".mp4"
    refused(
        capsys, out, "vvae", command, source / "clip.mp4", out / f"a{suffix}", "--ckpt", broken / "vvae",
        "--device", "cpu",
    )  # fmt: skip
    if command == "reconstruct":
        Image.new("RGB", (16, 16)).save(source / "picture.png")
        refused(
            capsys, out, "reconstruct_vvae", source / "picture.png", out / "a.png", "--ckpt", broken / "vvae",
            "--device", "cpu",
        )  # fmt: skip


def test_the_other_commands_store_nothing(broken, tmp_path, capsys):
    """Samples, projected codes, predictions, pictures, codes to train on, the latents under a prior."""
    own = ["--device", "cpu"]
    refused(capsys, tmp_path, "generate_video_vae", "--checkpoint", broken / "video_vae", "--out", tmp_path, *own)
    refused(
        capsys, tmp_path, "project_vqgan", "--data_path", DATA, "--checkpoint", broken / "vqgan" / "stage1",
        "--splits", "all", "--output_path", tmp_path / "codes",
    )  # fmt: skip
    refused(
        capsys, tmp_path, "visualize_vqgan", "--data_path", DATA, "--checkpoint", broken / "vqgan" / "stage1",
        "--output_dir", tmp_path / "pictures",
    )  # fmt: skip
    refused(
        capsys, tmp_path, "generate_flow_videos", "--ckpt", broken / "shapes_run-river", "--data", DATA,
        "--num-videos", 1, "--frames", 1, "--out", tmp_path / "predicted", *own,
    )  # fmt: skip
    refused(
        capsys, tmp_path / "codes", "train_lvt", "--eval-only", "--config-file", ROOT / "configs/lvt/VQVAE_tiny.yaml",
        *VQVAE, "OUTPUT_DIR", broken / "lvt", "TEST.EVALUATORS", "CodesExtractor",
    )  # fmt: skip
    refused(
        capsys, tmp_path, "train_video_vae_prior", "--checkpoint", broken / "video_vae", "--steps", 1, *own,
    )  # fmt: skip
    assert not (broken / "video_vae" / "prior" / "checkpoints").exists()


def test_latents_for_a_predictor(broken, tmp_path, capsys):
    """A cache of latents is not begun under its name; a predictor on a broken autoencoder is not trained."""
    break_weights(broken / "shapes_run-autoencoder")
    river = ["--config", ROOT / "configs/flow_pred/shapes_river_tiny.yaml", *RIVER]
    autoencoder = f"model.autoencoder.ckpt_path={broken}/shapes_run-autoencoder"
    refused(capsys, tmp_path, "encode_latents", *river, autoencoder, "--out", tmp_path, "--device", "cpu")
    refused(capsys, tmp_path, "train_flow_pred", *river, autoencoder, "--num-gpus", 0, "--run-dir", tmp_path / "new")


def test_half_precision_has_its_advice():
    """What overflows in 16 bits may be right in others."""
    with pytest.raises(UserError, match=r"1 of 2 values .* --precision bf16 or fp32"):
        finite(torch.tensor([1.0, 1e30], dtype=torch.float16), "pixels")
    with torch.autocast("cpu", torch.float16), pytest.raises(UserError, match="half precision"):
        finite(torch.tensor([torch.inf]), "pixels")
    with pytest.raises(UserError, match=r"pixels: 1 of 1 values") as refusal:
        denormalize(torch.tensor([torch.nan]))
    assert "half precision" not in str(refusal.value)


def test_a_training_goes_on_beside_its_pictures():
    """Inside of a training its own guard decides."""
    with guarded_elsewhere():
        assert denormalize(torch.tensor([torch.nan, 1.0]))[1] == 255
    with pytest.raises(UserError):
        denormalize(torch.tensor([torch.nan]))
