"""The commands on a GPU, from training to what the trained models make; two steps each on generated shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main as video_vae
from scripts import (
    encode_latents,
    evaluate,
    generate_flow_videos,
    generate_video_vae,
    reconstruct_vvae,
    train_flow_autoencoder,
    train_flow_pred,
    train_lvt,
    train_vqgan,
    train_vvae,
    visualize_vqgan,
    vvae,
)
from tests.conftest import ROOT
from tests.lvt.test_scripts import VQVAE, VT
from tests.training.runs import run as run_tiny_gan
from tests.training.tiny_gan import TinyGAN
from tests.vvae.conftest import make_tiny
from tests.vvae.test_files import smooth_clip
from training.checkpoint import load_checkpoint, newest_checkpoint
from training.cli import run
from videodata import read_video, write_video
from videodata.errors import UserError

CONFIGS = ROOT / "configs"
WITHOUT_WEIGHTS = ("--allow-random-features", "--force", "--feature_cache", "none")


def call(main, *arguments):
    """Run a script's main in this process; it must end with status 0."""
    with pytest.raises(SystemExit) as ended:
        run(main, [str(argument) for argument in arguments])
    assert ended.value.code == 0


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory; the root is still where configurations are found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def device_of(run_folder):
    """What the newest checkpoint says that it was trained on."""
    return newest_checkpoint(Path(run_folder) / "checkpoints").manifest["device_type"]


def test_video_vae(folder):
    """Train, start anew from its file with the optimiser's moments, generate, evaluate."""
    common = ["--npy_file", "shapes:8,frames=4,size=32", "--frames", 4, "--size", 32, 32, "--preset", "tiny"]
    common += [
        "--perceptual_weight",
        0,
        "--batch_size",
        2,
        "--num_epochs",
        1,
        "--max_minutes",
        5,
        "--val_fraction",
        0.3,
    ]
    call(video_vae.main, *common, "--device", "cuda", "--run_dir", "first")
    (stored,) = folder.glob("transformer_model_epoch_*.pth")
    call(video_vae.main, *common, "--run_dir", "second", "--load_model", "--model_path", stored, "--amp")
    assert device_of("first") == device_of("second") == "cuda"
    common = ["--checkpoint", "first", "--device", "cuda"]
    clips = ["--data", "shapes:8,frames=4,size=32"]
    call(generate_video_vae.main, *common, *clips, "--num_samples", 2, "--steps", 2, "--num_clips", 2)
    assert np.load("generated/samples.npy").shape == (2, 4, 32, 32, 3)
    call(evaluate.main, "video_vae", *common, *clips, "--num_clips", 2, "--metrics", "psnr", "ssim")


def test_vqgan(folder):
    """Both stages, evaluation and pictures."""
    size = ["--patch_size", 16, "--num_patches_h", 2, "--num_patches_w", 2, "--downsample_factor", 4]
    size += ["--hidden_dims", 8, 16, 16, "--latent_dim", 4, "--num_embeddings", 16, "--perceptual_weight", 0]
    call(
        train_vqgan.main, "--data_path", "shapes:8,frames=8,size=32", *size, "--batch_size", 4, "--steps", 2,
        "--gan_steps", 2, "--num_workers", 0, "--device", "cuda", "--precision", "bf16",
    )  # fmt: skip
    assert device_of("checkpoints/stage1") == device_of("checkpoints/stage2") == "cuda"
    common = ["--checkpoint", "checkpoints/best_model_gan.pt", "--device", "cuda"]
    data = "shapes:8,frames=8,size=32"
    call(evaluate.main, "vqgan", *common, "--data", data, "--num_clips", 2, "--metrics", "psnr", "codebook")
    call(visualize_vqgan.main, *common, "--data_path", data, "--output_dir", "pictures")
    assert list(folder.glob("pictures/**/*.png"))


def lvt_weights(vqvae):
    """The keys that name the VQ-VAE of a sampler."""
    names = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    return [*(text for key in names for text in (key, vqvae)), "TEST.VT_SAMPLER.VQ_VAE.CFG", f"{vqvae}/config.yaml"]


def test_lvt(folder):
    """The VQ-VAE, codes of its data, the transformer on them, samples and continuations, evaluation."""
    first = ["--config-file", CONFIGS / "lvt" / "VQVAE_tiny.yaml"]
    common = [*VQVAE, "OUTPUT_DIR", "vqvae", "MODEL.DEVICE", "cuda"]
    call(train_lvt.main, *first, *common, "SOLVER.MAX_ITER", 2)
    call(
        train_lvt.main, *first, "--eval-only", *common, "DATASETS.TEST", "('shapes:6#train', 'shapes:6#val')",
        "TEST.EVALUATORS", "MSEEvaluator,CodesExtractor",
    )  # fmt: skip
    codes = [
        "DATASETS.TRAIN",
        "('vqvae/inference/shapes-6-train',)",
        "DATASETS.TEST",
        "('vqvae/inference/shapes-6-val',)",
    ]
    call(
        train_lvt.main, "--config-file", CONFIGS / "lvt" / "VT_tiny.yaml", *VT, *lvt_weights("vqvae"), *codes,
        "OUTPUT_DIR", "vt", "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 2, "SOLVER.PRECISION", "bf16", "VIS_PERIOD", 2,
        "TEST.EVALUATORS", "BitsEvaluator,VTSampler,ContinuationEvaluator", "DATASETS.VIDEOS", "('shapes:6#val',)",
    )  # fmt: skip
    assert device_of("vqvae") == device_of("vt") == "cuda"
    assert list(folder.glob("vt/inference/continuation/shapes-6-val/*_sample_1.mp4"))
    call(
        evaluate.main, "lvt", "--checkpoint", "vt", "--data", "shapes:6", "--num_clips", 2, "--device", "cuda",
        "--metrics", "psnr", "bits", "codebook", "fvd", *WITHOUT_WEIGHTS,
    )  # fmt: skip


def test_vvae(folder):
    """Train in bf16; reconstruct, encode and decode a video in bf16 and in float32, with windows and tiles."""
    call(
        train_vvae.main, "--config", CONFIGS / "vvae" / "tiny.yaml", "--data", "shapes:8,frames=8,size=32",
        "--run_dir", "run", "--steps", 2, "--batch_size", 2, "--device", "cuda", "--precision", "bf16",
    )  # fmt: skip
    assert device_of("run") == "cuda"
    frames = smooth_clip(26, 52, 46)
    write_video("in.mp4", frames, "30000/1001")
    make_tiny().save_pretrained("model")
    tiles = ["--tile", 32, 32, "--tile_overlap", 8]
    for ckpt, dtype, options in (("run", "bf16", tiles), ("model", "fp32", []), ("model", "fp16", tiles)):
        common = ["--ckpt", ckpt, "--device", "cuda", "--dtype", dtype, *options]
        call(reconstruct_vvae.main, "in.mp4", "out.mp4", *common, "--save_latent", ".npy")
        made, fps = read_video("out.mp4")
        assert made.shape == frames.shape and str(fps) == "30000/1001"
        call(vvae.main, "encode", "in.mp4", "latent.npy", *common)
        call(vvae.main, "decode", "latent.npy", "decoded.mp4", *common)
        assert read_video("decoded.mp4")[0].shape == frames.shape
    call(reconstruct_vvae.main, "in.mp4", "cpu.mp4", "--ckpt", "model", "--device", "cpu")
    call(reconstruct_vvae.main, "in.mp4", "gpu.mp4", "--ckpt", "model", "--device", "cuda")
    difference = np.abs(read_video("cpu.mp4")[0].astype(int) - read_video("gpu.mp4")[0])
    assert difference.mean() < 0.1  # of 255, after the video encoder


def test_flow_pred(folder):
    """Autoencoder, latents, the parts of the neural SDE and RIVER, videos of both, evaluation."""
    small = [
        "data.data_root='shapes:12,frames=48,size=32'", "model.vector_field_regressor.inner_dim=16",
        "model.autoencoder.ckpt_path=runs/shapes_run-autoencoder", "training.optimizer.num_training_steps=2",
        "training.batching.batch_size=2",
    ]  # fmt: skip
    configs, river = CONFIGS / "flow_pred", CONFIGS / "flow_pred" / "shapes_river_tiny.yaml"
    call(train_flow_autoencoder.main, "--config", river, "--steps", 2, "--batch_size", 2, "--device", "cuda", *small)
    call(encode_latents.main, "--config", river, "--out", "latents", "--device", "cuda", *small)
    for name in ("f-01-mse", "d-01", "g-01-nll", "river"):
        options = ["data.latents=latents"] if name != "river" else []
        if name == "g-01-nll":
            options += ["model.f_ckpt_path=runs/shapes_run-f-01-mse", "model.d_ckpt_path=runs/shapes_run-d-01"]
        arguments = ["--config", configs / f"shapes_{name}_tiny.yaml", "--run-name", name, "--device", "cuda"]
        call(train_flow_pred.main, *arguments, *small, *options)
        assert device_of(f"runs/shapes_run-{name}") == "cuda"
    shared = ["--num-videos", 2, "--metrics", "--frames", 2, "--device", "cuda"]
    sde = [f"--ckpt-{part[0]}=runs/shapes_run-{part}" for part in ("f-01-mse", "d-01", "g-01-nll")]
    call(generate_flow_videos.main, "--ckpt", "runs/shapes_run-river", *shared, "--out", "river")
    for solver, options in (("euler", ["--res", 2]), ("adaptive", ["--atol", 0.5])):
        call(generate_flow_videos.main, *sde, *shared, "--solver", solver, *options, "--context", 4, "--out", solver)
        assert 0 < json.loads((folder / solver / "metrics.json").read_text())["details"]["videos"] <= 2
    call(
        evaluate.main, "flow_pred", "--checkpoint", "runs/shapes_run-river", "--data", "shapes:12,frames=48,size=32",
        "--split", "test", "--num_clips", 2, "--device", "cuda", "--frames", 8,
        "--metrics", "psnr", "ssim",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_torchrun(folder, flags):
    """One process of a launcher joins a group of nccl, shards where asked, and its run is continued without it."""
    command = [
        "scripts/train_vvae.py", "--config", "configs/vvae/tiny.yaml", "--data", "shapes:8,frames=8,size=32",
        "--run_dir", folder / "run", "--batch_size", "2", "--device", "cuda",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    start(*launcher, *command, *flags, "--steps", "2")
    start(*command, "--steps", "3")
    state = load_checkpoint(folder / "run")
    assert state["step"] == 3 and state["device_type"] == "cuda"


def start(*arguments):
    """A new Python in the root of the project; it must end with status 0."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_out_of_memory_is_one_line_and_the_run_can_be_continued(folder):
    """A batch that the GPU cannot hold ends with what to lower; with room again the same run goes on."""

    class Hungry(TinyGAN):
        def losses(self, batch, step):
            if step.index == 1:
                torch.empty(2**50, dtype=torch.uint8, device=batch.device)
            yield from super().losses(batch, step)

    with pytest.raises(UserError, match=r"out of memory with --batch_size 4.*\(4, 3, 4, 8, 8\).*--precision bf16"):
        run_tiny_gan(folder / "run", Hungry(), device="cuda", save_every=1, steps=2)
    assert run_tiny_gan(folder / "run", device="cuda", save_every=1, steps=2).finished
