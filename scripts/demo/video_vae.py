"""The video VAE's part of the demonstration: train, generate, evaluate, show."""

from __future__ import annotations

from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Grid, Overview, Panel, Row
from scripts.demo.stage import FRAMES, Stage, clip_names, read_scores
from videodata.clips import open_clips

INTRO = (
    "A hierarchical transformer-LSTM VAE. The encoder reads the clip frame by frame into states at several scales; "
    "their final values are the latents, one set for the whole clip. From them the decoder draws every frame again. "
    "The clips are of the validation set, which the model has never seen."
)
STEPS, BATCH = 153, 8
MINUTES = 30  # of training at most: an epoch of many videos is long


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    run, clips = stage.folder / "video_vae", stage.folder / "video_vae_clips"
    count = len(open_clips(str(stage.clips), frames=FRAMES, size=48, split="train"))
    epochs = max(1, round(stage.steps(STEPS) * BATCH / count))
    stage.run(
        "train the video VAE",
        "main.py",
        *("--npy_file", stage.clips, "--run_dir", run, "--model_path", stage.folder / "video_vae.pth"),
        *("--preset", "tiny", "--size", 48, 48, "--perceptual_weight", 0, "--no_checkpointing"),
        *("--batch_size", min(BATCH, count), "--num_epochs", epochs, "--epoch_every", epochs),
        *("--frames_warmup_steps", stage.steps(75)),
        *("--optimizer", "muon", "--learning_rate", 2.5e-3, "--warmup_steps", 20, "--schedule", "cosine"),
        *("--evaluate_every", stage.steps(30), "--evaluate_batches", 4, "--max_minutes", MINUTES),
    )
    common = ("--checkpoint", run, "--data", stage.clips, "--split", "val")
    stage.run(
        "generate with the video VAE", "scripts/generate_video_vae.py",
        *common, "--num_samples", 4, "--num_clips", stage.shown, "--output_dir", clips,
        *("--fps", 8, "--only", "samples", "reconstructions", *(["interpolation"] if stage.shown > 1 else [])),
    )  # fmt: skip
    report = stage.folder / "video_vae.json"
    stage.run("evaluate the video VAE", "scripts/evaluate.py video_vae", *common, "--output", report)
    scores = read_scores(report)
    psnr, baseline = scores["PSNR"], scores["PSNR of the mean frame"]
    gallery.add_section(
        "video_vae",
        INTRO,
        clips=groups(clips),
        curves=curves(run / "metrics.jsonl", baseline),
        table=[("score", "mean"), *scores.items()],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        overview=[
            Overview(f"{psnr:.1f} dB", "PSNR of reconstructions", f"{baseline:.1f} dB", "each clip's mean frame")
        ],
    )
    return f"validation PSNR {psnr:.1f} dB, mean frame of each clip {baseline:.1f} dB"


def groups(clips: Path) -> list[Row | Grid]:
    """What is shown side by side."""
    pairs = sorted(clips.glob("reconstruction_*.mp4"))
    samples = [(f"sample {i + 1}", path) for i, path in enumerate(sorted(clips.glob("sample_*.mp4")))]
    between = clips / "interpolation_000.mp4"
    found: list[Row | Grid] = [
        Grid(
            "Original and reconstruction",
            {name: [Panel(path, side) for path in pairs] for side, name in enumerate(("original", "reconstruction"))},
            clip_names(len(pairs)),
        ),
        Row("Samples from the prior", samples, note="The prior learns far more slowly than the decoder: still noise "
            "after minutes."),
    ]  # fmt: skip
    if between.is_file():
        steps = [(("clip 1", "", "", "", "clip 2")[i] or f"{i}/4", Panel(between, i, 5)) for i in range(5)]
        found.append(Row("From the latents of one clip to those of another", steps))
    return found


def curves(metrics: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    return [
        Curve("Training loss", [read_line(metrics, "loss/vae", "training")]),
        Curve(
            "Validation PSNR",
            [
                read_line(metrics, "validation/psnr", "reconstruction"),
                Line("mean frame", [(0, baseline)], baseline=True),
            ],
            unit="dB",
        ),
    ]
