"""The video VAE's part of the demonstration: train, generate, evaluate, show."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Row
from scripts.demo.stage import Stage

INTRO = (
    "A hierarchical transformer-LSTM VAE. The encoder reads the clip frame by frame into states at several scales; "
    "their final values are the latents, one set for the whole clip. From them the decoder draws every frame again. "
    "The clips are of the validation set, which the model has never seen."
)


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    run, clips = stage.folder / "video_vae", stage.folder / "video_vae_clips"
    stage.run(
        "train",
        "main.py",
        *("--npy_file", stage.clips, "--run_dir", run, "--model_path", stage.folder / "video_vae.pth"),
        *("--preset", "tiny", "--size", 48, 48, "--perceptual_weight", 0, "--no_checkpointing"),
        *("--batch_size", 8, "--num_epochs", 3, "--frames_warmup_steps", 75, "--evaluate_batches", 4),
        *("--optimizer", "muon", "--learning_rate", 2.5e-3, "--warmup_steps", 20, "--schedule", "cosine"),
    )
    common = ("--checkpoint", run, "--data", stage.clips, "--split", "val")
    stage.run("generate", "scripts/generate_video_vae.py", *common, "--num_samples", 4, "--output_dir", clips)
    report = stage.folder / "video_vae.json"
    stage.run("evaluate", "scripts/evaluate.py video_vae", *common, "--output", report)
    scores = {score["name"]: score["mean"] for score in json.loads(report.read_text())["scores"]}
    psnr, baseline = scores["PSNR"], scores["PSNR of the mean frame"]
    gallery.add_section(
        "video_vae",
        INTRO,
        clips=rows(clips),
        curves=curves(run / "metrics.jsonl", baseline),
        table=[("score", "mean"), *scores.items()],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        headline=[
            (f"{psnr:.1f} dB", "validation PSNR"),
            (f"{baseline:.1f} dB", "the clip's mean frame"),
            (f"{psnr - baseline:+.1f} dB", "gain"),
        ],
    )
    return f"validation PSNR {psnr:.1f} dB, mean frame of each clip {baseline:.1f} dB"


def rows(clips: Path) -> list[Row]:
    """What is shown side by side."""
    reconstructions = sorted(clips.glob("reconstruction_*.mp4"))
    samples = sorted(clips.glob("sample_*.mp4"))
    return [
        Row("Original and reconstruction", [(f"clip {i + 1}", path) for i, path in enumerate(reconstructions)]),
        Row(
            "Samples from the prior, which learns far more slowly than the decoder: still noise after minutes",
            [(f"sample {i + 1}", path) for i, path in enumerate(samples)],
        ),
        Row("From the latents of one clip to those of another", [("", clips / "interpolation_000.mp4")]),
    ]


def curves(metrics: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    return [
        Curve("Training loss", [read_line(metrics, "loss/vae", "loss")]),
        Curve(
            "Validation PSNR",
            [
                read_line(metrics, "validation/psnr", "reconstruction"),
                Line("mean frame", [(0, baseline)], baseline=True),
            ],
            unit="dB",
        ),
    ]
