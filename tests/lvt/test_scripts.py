"""The commands from end to end: train, extract codes, train on them, evaluate, continue given frames."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import generate_videos, train_lvt
from training.cli import run
from videodata import read_video

ROOT = Path(__file__).resolve().parents[2]
VQVAE = [
    "MODEL.ENCODER.NF", 16, "MODEL.GENERATOR.NF", 16, "MODEL.GENERATOR.IN_CHANNELS", 16, "MODEL.CODEBOOK.DIM", 16,
    "MODEL.CODEBOOK.SIZE", 32, "INPUT.SIZE", 16, "SOLVER.IMS_PER_BATCH", 4, "INPUT.N_FRAMES_PER_VIDEO_TEST", 4,
    "DATASETS.TRAIN", "('shapes:6#train',)", "DATASETS.TEST", "('shapes:6#val',)", "MODEL.DEVICE", "cpu",
    "SOLVER.WARMUP_ITERS", 2,
]  # fmt: skip
VT = [
    "MODEL.AUTOREGRESSIVE.VT.NV", 32, "MODEL.AUTOREGRESSIVE.VT.D", 24, "MODEL.AUTOREGRESSIVE.VT.STRIDE", "(4, 1, 1)",
    "MODEL.AUTOREGRESSIVE.VT.BLOCKS_E", "((1, 4, 4),)", "MODEL.AUTOREGRESSIVE.VT.BLOCKS_D", "((1, 4, 4),)",
    "MODEL.AUTOREGRESSIVE.VT.N_HEAD_E", "(2,)", "MODEL.AUTOREGRESSIVE.VT.N_HEAD_D", "(2,)", "INPUT.SIZE", 16,
    "INPUT.N_FRAMES_PER_VIDEO_TRAIN", 4, "INPUT.N_FRAMES_PER_VIDEO_TEST", 4, "SOLVER.IMS_PER_BATCH", 1,
    "MODEL.DEVICE", "cpu", "SOLVER.WARMUP_ITERS", 2, "TEST.VT_SAMPLER.N_PRIME", 2, "TEST.VT_SAMPLER.NUM_SAMPLES", 2,
]  # fmt: skip


def config(name):
    return ROOT / "configs" / "lvt" / name


def call(main, *arguments):
    """Exit status of a script, in this process."""
    with pytest.raises(SystemExit) as ended:
        run(main, [str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of the VQ-VAE with codes of both splits, and one of the transformer."""
    folder = tmp_path_factory.mktemp("lvt")
    vqvae, vt = folder / "vqvae", folder / "vt"
    assert call(
        train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), *VQVAE, "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", vqvae
    ) == 0  # fmt: skip
    assert call(
        train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), "--eval-only", *VQVAE, "OUTPUT_DIR", vqvae,
        "DATASETS.TEST", "('shapes:6#train', 'shapes:6#val')", "TEST.EVALUATORS", "MSEEvaluator,CodesExtractor",
    ) == 0  # fmt: skip
    codes = vqvae / "inference"
    weights = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    options = [*VT, *(text for key in weights for text in (key, vqvae))]
    options += ["TEST.VT_SAMPLER.VQ_VAE.CFG", vqvae / "config.yaml", "OUTPUT_DIR", vt]
    data = ["DATASETS.TRAIN", f"('{codes}/shapes-6-train',)", "DATASETS.TEST", f"('{codes}/shapes-6-val',)"]
    assert call(
        train_lvt.main, "--config-file", config("VT_tiny.yaml"), *options, *data, "SOLVER.MAX_ITER", 3,
        "TEST.EVALUATORS", "BitsEvaluator,VTSampler,ContinuationEvaluator", "VIS_PERIOD", 3,
        "DATASETS.VIDEOS", "('shapes:6#val',)",
    ) == 0  # fmt: skip
    return {"vqvae": vqvae, "vt": vt, "options": options, "folder": folder}


def test_everything_that_is_promised_is_written(trained):
    """Run folder, the original's weight files, codes of all frames, samples, evaluation.json."""
    vqvae, vt = trained["vqvae"], trained["vt"]
    for group in ("netE", "netG", "netC"):
        assert (vqvae / group / "last_checkpoint").read_text() == "model_final.pth"
    stored = torch.load(vt / "netG" / "model_final.pth", weights_only=True)
    assert stored["iteration"] == 2 and "decoder.block_local_attention.0.mask" in stored["model"]
    results = json.loads((vqvae / "evaluation.json").read_text())["shapes:6#val"]
    assert 0 < results["reconstruction"]["MSE"] < 1
    codes = np.load(vqvae / "inference" / "shapes-6-train" / "codes.npy", mmap_mode="r", allow_pickle=False)
    assert codes.dtype == np.int16 and codes.shape[1:] == (64, 2, 4, 4)
    scores = json.loads((vt / "evaluation.json").read_text())
    (likelihood,) = [tasks["likelihood"] for tasks in scores.values() if "likelihood" in tasks]
    assert 0 < likelihood["bits_per_dim"] < 8
    continuation = scores["shapes:6#val"]["continuation"]
    assert continuation["psnr_sample"] <= continuation["psnr_best_of_2"] < continuation["psnr_last_frame_repeated"]
    assert len(read_video(vt / "inference" / "continuation" / "shapes-6-val" / "0_sample_1.mp4")[0]) == 4
    samples = sorted((vt / "inference" / "samples" / "shapes-6-val").iterdir())
    assert [path.name for path in samples] == ["video_0_0", "video_1_0"]
    assert np.load(samples[0] / "codes.npy", allow_pickle=False).shape == (4, 2, 4, 4)
    assert (vt / "samples" / "step-0000003" / "continuation.mp4").is_file()


def test_given_frames_are_continued(trained, clips):
    """PNGs and videos of all samples: same given frames, each sample as its own seed says."""
    folder, given, alone = (trained["folder"] / name for name in ("continued", "given", "alone"))
    given.mkdir()
    for number in (0, 1, 2, 10):
        with Image.open(clips / "lvt_bair_priming" / f"{min(number, 4)}.png") as image:
            image.resize((16, 16)).save(given / f"{number}.png")
    command = ["--config-file", config("VT_tiny.yaml"), "--video-dir", given]
    options = [*trained["options"], "MODEL.GENERATOR.WEIGHTS", trained["vt"], "TEST.VT_SAMPLER.N_PRIME", 3]
    options += ["TEST.VT_SAMPLER.NUM_SAMPLES"]
    assert call(generate_videos.main, *command, "--seed", 5, *options, 3, "OUTPUT_DIR", folder) == 0
    frames = [np.asarray(Image.open(folder / f"{number}.png")) for number in range(4)]
    assert frames[0].shape == (16, 16, 3) and not (folder / "4.png").exists()
    assert len(read_video(folder / "video.mp4")[0]) == 4
    assert read_video(folder / "samples.mp4")[0].shape == (4, 16, 48, 3)
    other = [np.asarray(Image.open(folder / "sample_2" / f"{number}.png")) for number in range(4)]
    assert all(np.array_equal(frames[number], other[number]) for number in range(3))
    # One sample with the last one's seed, and longer than the model's clips.
    assert call(generate_videos.main, *command, "--seed", 7, "--frames", 6, *options, 1, "OUTPUT_DIR", alone) == 0
    assert len(list(alone.glob("*.png"))) == 6
    assert all(np.array_equal(np.asarray(Image.open(alone / f"{number}.png")), other[number]) for number in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-only", *VQVAE, "OUTPUT_DIR", "absent"], "train first"),
        ([*VQVAE, "DATASETS.TRAIN", "('bair_train',)", "OUTPUT_DIR", "x"], "datasets/bair/train does not exist"),
        ([*VQVAE, "TEST.EVALUATORS", "BitsEvaluator", "--eval-only"], "has no value"),
        (["--eval-only", *VQVAE, "TEST.EVALUATORS", "BitsEvaluator"], "does not fit this model"),
        ([*VQVAE, "SOLVER.OPTIMIZER_NAME", "sgd", "OUTPUT_DIR", "x"], "use adam, adamw or rmsprop"),
        (["--num-machines", 2, *VQVAE], "--dist-url"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    """Missing weights are never replaced by random ones; missing data and wrong options say what to do."""
    monkeypatch.chdir(tmp_path)
    assert call(train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), *arguments) == 2
    assert message in capsys.readouterr().err


def test_missed_expectations_end_with_status_1(trained):
    """TEST.EXPECTED_RESULTS compares a result with its value and tolerance."""
    arguments = ["--config-file", config("VQVAE_tiny.yaml"), "--eval-only", *VQVAE, "OUTPUT_DIR", trained["vqvae"]]
    arguments += ["TEST.EVALUATORS", "MSEEvaluator", "TEST.EXPECTED_RESULTS"]
    assert call(train_lvt.main, *arguments, "(('reconstruction', 'MSE', 0.5, 0.5),)") == 0
    assert call(train_lvt.main, *arguments, "(('reconstruction', 'MSE', 9.0, 0.1),)") == 1


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_losses(tmp_path):
    """An exception inside a step ends the process with a status other than 0; --resume goes on at the next step."""

    arguments = ["--config-file", config("VQVAE_tiny.yaml")]
    options = [*VQVAE, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 1, "OUTPUT_DIR"]

    def losses(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss/vqvae"] for row in rows if "loss/vqvae" in row}

    assert call(train_lvt.main, *arguments, *options, tmp_path / "straight") == 0
    command = [sys.executable, "scripts/train_lvt.py", *map(str, [*arguments, *options, tmp_path / "killed"])]
    environment = {**os.environ, "VIDEOGEN_FAULT": "full_in_step@5"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == 2 and "No space left" in killed.stderr
    assert call(train_lvt.main, *arguments, *options, tmp_path / "killed") == 2  # not without --resume
    assert call(train_lvt.main, *arguments, "--resume", *options, tmp_path / "killed") == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert sorted(losses(tmp_path / "killed")) == [1, 2, 3, 4, 5, 6]
