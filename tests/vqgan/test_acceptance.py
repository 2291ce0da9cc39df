"""What the documentation promises of the VQGAN, one test per promise; the commands run on generated batch files."""

import importlib
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from evaluation.codebook import CodebookUsage
from losses.quantize import AverageQuantizer
from tests.interpreter import python_for_shells
from training.checkpoint import load_checkpoint
from training.cli import run
from training.state import weights_digest
from videodata.encode import write_video
from videodata.shapes import Shapes
from videodata.video import read_video
from vqgan import VQGAN, Discriminator
from vqgan.data import merge_patches, split_patches
from vqgan.files import GAN_FILE, load_model
from vqgan.model import AttentionBlock, ResidualBlock

ROOT = Path(__file__).resolve().parent.parent.parent
SIDE = 32  # of a frame, which has 2 x 2 patches
SMALL = [
    *("--patch_size", "16", "--num_patches_h", "2", "--num_patches_w", "2", "--downsample_factor", "4"),
    *("--hidden_dims", "8", "16", "16", "--latent_dim", "4", "--num_embeddings", "16", "--perceptual_weight", "0"),
    *("--batch_size", "4", "--steps", "6", "--gan_steps", "3", "--num_workers", "0", "--test_batch", "2", "--no_cuda"),
]  # fmt: skip


@contextmanager
def inside(folder):
    """Make `folder` the working directory for the length of the block."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def log_rows(folder, stage):
    """The log of a stage."""
    text = (folder / "checkpoints" / f"stage{stage}" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def script(name, *arguments, folder):
    """Run a script's main in `folder`; gives what it prints."""
    main = importlib.import_module(f"scripts.{name}").main
    output = io.StringIO()
    with inside(folder), redirect_stdout(output):
        main([str(argument) for argument in arguments])
    return output.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with three batch files and a model trained on them in both stages by the documented command."""
    folder = tmp_path_factory.mktemp("vqgan")
    (folder / "data").mkdir()
    for number in range(3):
        videos = Shapes(4, frames=3, size=SIDE, seed=number)
        frames = np.stack([videos.read(index) for index in range(4)])
        np.save(folder / "data" / f"ucf101_subset_batch_{number}.npy", frames)
    command = [sys.executable, ROOT / "scripts" / "train_vqgan.py", "--data_path", "data", *SMALL]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_01_training_runs_stage_1_and_then_stage_2(trained):
    """One command trains both stages to their ends."""
    for stage, steps in ((1, 6), (2, 3)):
        assert log_rows(trained, stage)[-1]["step"] == steps
    assert json.loads((trained / "results" / "test_scores.json").read_text())["patches"] == 4 * 3 * 4


@pytest.mark.slow
def test_the_run_folder_stands_for_the_model_after_both_stages(trained):
    """load_model takes the folder of the best models."""
    file, folder = (load_model(path)[0] for path in (trained / "checkpoints" / GAN_FILE, trained / "checkpoints"))
    assert all(torch.equal(a, b) for a, b in zip(file.state_dict().values(), folder.state_dict().values(), strict=True))


def test_02_documented_flags_have_their_defaults():
    """Names, types and defaults of the flags are the documented ones."""
    documented = {
        "test_batch": 13, "patch_size": 80, "num_patches_h": 3, "num_patches_w": 4, "hidden_dims": [64, 128, 256, 512],
        "latent_dim": 32, "num_embeddings": 512, "downsample_factor": 4, "commitment_cost": 0.25, "decay": 0.99,
        "batch_size": 3, "epochs_per_batch": 10, "gan_epochs_per_batch": 5, "num_epoch": 3, "lr": 1e-4, "lr_g": 5e-5,
        "lr_d": 2e-4, "perceptual_weight": 0.1, "adv_weight": 0.1, "workers": 4, "gan_mode": False, "gpu": 0,
        "no_cuda": False, "seed": 42, "resume_disc": None, "log_dir": Path("logs"), "results_dir": Path("results"),
        "checkpoint_dir": Path("checkpoints"), "restart_unused": True,
    }  # fmt: skip
    defaults = vars(importlib.import_module("scripts.train_vqgan").parse([]))
    assert {name: defaults[name] for name in documented} == documented
    assert all(type(defaults[name]) is type(value) for name, value in documented.items())


@pytest.mark.slow
def test_03_testing_script_trains_and_draws(tmp_path):
    """run_testing.sh trains both stages on generated data and draws all kinds of pictures; flags reach the training."""
    with python_for_shells() as python:
        result = subprocess.run(
            ["bash", ROOT / "scripts" / "run_testing.sh", *SMALL],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHON": str(python), "DATA_PATH": f"shapes:4,frames=4,size={SIDE}"},
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    folder = tmp_path / "results" / "test_viz"
    for name in (
        "reconstructions/comparison_grid.png", "latent_space.png", "codebook/codebook_visualization.png",
        "interpolation/latent_interpolation.png", "sequence/sequence_comparison.png", "whole_frame/reconstruction.mp4",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert list((tmp_path / "logs" / "test" / "stage1").glob("events*"))


def test_03_testing_script_has_the_documented_sizes():
    """The model of run_testing.sh is the documented one."""
    defaults = vars(importlib.import_module("scripts.train_vqgan").parse(["--preset", "test"]))
    documented = {
        "hidden_dims": [16, 32, 64, 128], "latent_dim": 8, "num_embeddings": 128, "batch_size": 2, "num_epoch": 1,
        "epochs_per_batch": 2, "gan_epochs_per_batch": 1, "adv_weight": 0.05, "downsample_factor": 4,
        "perceptual_weight": 0.05, "checkpoint_dir": Path("checkpoints/test"), "results_dir": Path("results/test"),
    }  # fmt: skip
    assert {name: defaults[name] for name in documented} == documented


@pytest.mark.slow
def test_04_visualize_writes_all_kinds_of_pictures(trained):
    """The documented command writes the documented files, and none of them is blank."""
    flags = ("--data_path", "data", "--batch_idx", 1, "--num_samples", 3, "--num_frames", 3, "--no_cuda")
    checkpoint = "checkpoints/best_model_gan.pt"
    script("visualize_vqgan", *flags, "--checkpoint", checkpoint, "--output_dir", "viz", folder=trained)
    names = [
        "reconstructions/reconstructions_grid.png", "reconstructions/comparison_grid.png",
        "reconstructions/sample_0_recon.png", "reconstructions/sample_2_recon.png", "latent_space.png",
        "codebook/codebook_visualization.png", "codebook/codebook_usage.png",
        "interpolation/latent_interpolation.png", "interpolation/interpolation_with_originals.png",
        "sequence/frames/frame_00_original.png", "sequence/frames/frame_02_recon.png",
        "sequence/frames/frame_02_comparison.png", "sequence/original_sequence.png",
        "sequence/reconstructed_sequence.png", "sequence/sequence_comparison.png", "whole_frame/frame_00.png",
        "whole_frame/index_map_00.png",
    ]  # fmt: skip
    for name in names:
        assert len(np.unique(np.array(Image.open(trained / "viz" / name)))) > 2, name
    frames, _ = read_video(trained / "viz" / "whole_frame" / "reconstruction.mp4")
    assert frames.shape == (3, SIDE, SIDE, 3)


def test_05_encoder_has_strided_convolutions_residual_blocks_and_optional_attention():
    """Attention is at the latents, once."""
    model = VQGAN((8, 16, 32), 4, 16, 4)
    kinds = [type(layer) for level in model.encoder.levels for layer in level]
    strides = [layer.stride for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert strides.count((2, 2)) == 2
    assert kinds.count(ResidualBlock) == 4 and kinds.count(AttentionBlock) == 1


def test_06_unused_codes_are_restarted():
    """After a forced collapse to 3 of 128 codes, at least 90 % are in use within 200 steps, and usage is counted."""
    torch.manual_seed(1)
    quantizer = AverageQuantizer(8, 128, 0.25, 0.99, 0.1).train()
    quantizer.set_codebook(torch.cat([torch.randn(3, 8), torch.full((125, 8), 30.0)]), torch.ones(128))
    usage = {}
    for step in range(200):
        batch = torch.randn(4, 8, 4, 4)
        counted = usage.setdefault("first" if step == 0 else "last", CodebookUsage(128))
        quantized = quantizer(batch)
        if step in (0, *range(150, 200)):
            counted.update(quantized.indices)
    assert usage["first"].used <= 3
    assert usage["last"].used >= 0.9 * 128


def test_07_decoder_has_transposed_convolutions_residual_blocks_and_optional_attention():
    """The decoder mirrors the encoder; `upsample="nearest"` replaces the transposed convolutions."""
    model = VQGAN((8, 16, 32), 4, 16, 4)
    layers = list(model.decoder.modules())
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers) == 2
    assert sum(isinstance(layer, AttentionBlock) for layer in layers) == 1
    nearest = VQGAN((8, 16, 32), 4, 16, 4, upsample="nearest").decoder
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in nearest.modules())
    assert nearest(torch.zeros(1, 4, 3, 5)).shape == (1, 3, 12, 20)


def test_08_discriminator_is_a_patchgan_with_spectral_norm():
    """It gives a map of logits, and every convolution has spectral norm."""
    discriminator = Discriminator()
    assert discriminator(torch.zeros(2, 3, 80, 80)).shape == (2, 1, 8, 8)
    convolutions = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 5 and all(is_parametrized(layer, "weight") for layer in convolutions)


@pytest.mark.slow
def test_09_stage_2_adds_the_adversarial_terms(trained):
    """The logged terms of each stage are exactly those of its loss, beside the share of codes in use."""
    logged = {}
    for stage in (1, 2):
        logged[stage] = {name[6:] for row in log_rows(trained, stage) for name in row if name.startswith("train/")}
    assert logged[1] == {"reconstruction", "quantizer", "code_usage"}
    added = {"adversarial", "adversarial_weight", "discriminator", "accuracy_real", "accuracy_fake"}
    added.add("discriminator_accuracy")
    assert logged[2] == logged[1] | added


def test_10_patches_tile_the_frame():
    """`merge_patches(split_patches(x)) == x` for a 240x320 frame in 3 x 4 patches of 80 pixels."""
    frames = torch.arange(2 * 3 * 240 * 320).reshape(2, 3, 240, 320)
    patches = split_patches(frames, 3, 4)
    assert patches.shape == (24, 3, 80, 80) and torch.equal(merge_patches(patches, 3, 4), frames)


def test_11_each_key_parameter_changes_the_model():
    """hidden_dims, latent_dim, num_embeddings and downsample_factor each change shapes, as their names say."""
    base = {"hidden_dims": (8, 16, 32), "latent_dim": 4, "num_embeddings": 16, "downsample_factor": 4}
    changes = {"hidden_dims": (8, 16, 24), "latent_dim": 8, "num_embeddings": 32, "downsample_factor": 2}

    def signature(arguments):
        model = VQGAN(**arguments).eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        return shapes, model.encode(torch.zeros(1, 3, 16, 16))[1].shape

    for name, value in changes.items():
        assert signature({**base, name: value}) != signature(base), name
    assert signature({**base, "downsample_factor": 2})[1] == (1, 8, 8)


@pytest.mark.slow
def test_12_files_lie_where_the_documentation_says(trained):
    """Checkpoints in checkpoints/, TensorBoard in logs/, figures in results/."""
    for name in ("best_model_stage1.pt", "best_model_gan.pt", "best_discriminator.pt"):
        assert (trained / "checkpoints" / name).is_file()
    for stage in ("stage1", "stage2"):
        assert list((trained / "logs" / stage).glob("events*"))
        assert list((trained / "results" / stage).glob("step-*/reconstructions.png"))


@pytest.mark.slow
def test_13_variations_and_projection(trained):
    """Animation and latent variations exist; all indices are stored and decode to the frames that encoding gives."""
    flags = ("--data_path", "data", "--no_cuda", "--checkpoint", "checkpoints/best_model_gan.pt")
    script("visualize_vqgan", *flags, "--num_frames", 2, "--output_dir", "demo", folder=trained)
    assert (trained / "demo" / "latent_manipulation" / "latent_variations.png").is_file()
    assert len(read_video(trained / "demo" / "whole_frame" / "comparison.mp4")[0]) == 2

    project = ("--output_path", "codes", "--splits", "test", "--test_batch", 2)
    script("project_vqgan", *flags, *project, folder=trained)
    codes = np.load(trained / "codes" / "test.npy", mmap_mode="r")
    assert codes.dtype == np.int16 and codes.shape == (4, 3, 1, 8, 8)
    model, _ = load_model(trained / "checkpoints" / "best_model_gan.pt")
    frames = np.load(trained / "data" / "ucf101_subset_batch_2.npy")[1]
    patches = split_patches(torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1, 2, 2)
    with torch.no_grad():
        expected = merge_patches(model(patches).frames, 2, 2)
        indices = split_patches(torch.from_numpy(codes[1, :, 0].astype(np.int64)), 2, 2)
        decoded = merge_patches(model.decode_indices(indices), 2, 2)
    assert torch.allclose(decoded, expected, atol=1e-5)


@pytest.mark.slow
def test_resuming_between_and_within_the_stages_is_bit_exact(trained, tmp_path):
    """A run that stops after every step, in both stages and between them, ends with the weights of a straight run."""
    train_in_pieces(tmp_path, "--data_path", trained / "data", *SMALL)
    assert_same_ends(trained, tmp_path)


@pytest.mark.slow
def test_resuming_on_raw_videos_is_bit_exact(tmp_path):
    """The same holds for a folder of video files."""
    videos = Shapes(4, frames=3, size=SIDE)
    (tmp_path / "videos").mkdir()
    for index in range(4):
        write_video(tmp_path / "videos" / f"v{index}.mp4", videos.read(index), videos.fps(index))
    flags = ("--data_path", tmp_path / "videos", *SMALL, "--steps", 3, "--gan_steps", 2)
    for name in ("straight", "pieces"):
        (tmp_path / name).mkdir()
    script("train_vqgan", *flags, folder=tmp_path / "straight")
    train_in_pieces(tmp_path / "pieces", *flags)
    assert_same_ends(tmp_path / "straight", tmp_path / "pieces")


def train_in_pieces(folder, *flags):
    """Call the training until it is done, each call stopping after a step."""
    calls = 1
    while "stopped" in script("train_vqgan", *flags, "--max_minutes", "1e-9", folder=folder):
        calls += 1
    assert calls >= 4


def assert_same_ends(*folders):
    """Both stages end with the same weights and moments, bit for bit."""
    for stage in ("stage1", "stage2"):
        ends = [load_checkpoint(folder / "checkpoints" / stage) for folder in folders]
        digests = [weights_digest({"networks": end["networks"], "optimizers": plain(end)}) for end in ends]
        assert digests[0] == digests[1], stage


def plain(checkpoint):
    """The moments of all optimisers, by number."""
    moments = {}
    for name, state in checkpoint["optimizers"].items():
        moments[name] = {str(number): entry for number, entry in state["state"].items()}
    return moments


def test_problems_are_one_line(tmp_path, capsys):
    """A missing folder, a missing stage 1, a mistyped YAML key, patches that are too small for stage 2: status 2 and
    one line that says what to do, before anything is trained.
    """
    (tmp_path / "wrong.yaml").write_text("latent_dims: 3\n")
    cases = {
        ("--data_path", "nowhere"): "nowhere",
        ("--data_path", "shapes:9,size=32", "--gan_mode"): "--resume FILE",
        ("--config", "wrong.yaml"): "did you mean 'latent_dim'",
        ("--data_path", "shapes:9,size=32", "--patch_size", "16"): "--patch_size 16: ",
    }
    main = importlib.import_module("scripts.train_vqgan").main
    for flags, words in cases.items():
        with inside(tmp_path), pytest.raises(SystemExit) as end:
            run(main, list(flags))
        printed = capsys.readouterr().err
        assert end.value.code == 2 and words in printed and printed.count("\n") == 1, printed
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]
