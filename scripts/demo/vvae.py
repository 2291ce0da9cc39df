"""VideoVAE+'s part of the demonstration: train, reconstruct, evaluate, show."""

from __future__ import annotations

from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Grid, Overview
from scripts.demo.stage import FRAMES, Stage, clip_names, read_scores
from videodata.write_video import write_video

INTRO = (
    "A convolutional video autoencoder: 8 times less height and width, 4 times fewer frames, one number kept of 48. "
    "This is a small one; the published ones have 485 million. It learns from single frames first, then from clips. "
    "The clips are of the validation set, which the model has never seen."
)
SCORED = 16  # validation clips
SIZE = 32  # of the frames, as in the configuration
STEPS = 300


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    run, folder = stage.folder / "vvae", stage.folder / "vvae_clips"
    original, reconstruction = folder / "original", folder / "reconstruction"
    steps = stage.steps(STEPS)
    stage.run(
        "train VideoVAE+",
        "scripts/train_vvae.py",
        *("--config", "configs/vvae/tiny.yaml", "--data", stage.clips, "--run_dir", run),
        *("--steps", steps, "--pictures_every", steps, f"optimization.image_steps={2 * steps // 3}"),
        *("--evaluate_every", max(1, steps // 3), "--evaluate_batches", SCORED),
    )
    data = stage.validation(SIZE)
    for index in range(min(SCORED, len(data))):
        write_video(original / f"clip_{index:02d}.mp4", data[index], FRAMES)
    stage.run(
        "reconstruct with VideoVAE+",
        "scripts/reconstruct_vvae.py",
        *(original, reconstruction, "--ckpt", run, "--chunk_size", FRAMES, "--overlap", 0),
    )
    report = stage.folder / "vvae.json"
    stage.run("evaluate VideoVAE+", "scripts/evaluate_vvae.py", original, reconstruction, "--output", report)
    scores, baseline = read_scores(report), stage.mean_frame_psnr(SIZE)
    psnr = scores["PSNR"]
    shown = {path.name: sorted(path.glob("*.mp4"))[: stage.shown] for path in (original, reconstruction)}
    gallery.add_section(
        "vvae",
        INTRO,
        clips=[Grid("Original and reconstruction", shown, clip_names(stage.shown))],
        curves=curves(run / "metrics.jsonl", baseline),
        table=[("score", "mean"), *scores.items(), ("PSNR of each clip's mean frame", baseline)],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        overview=[
            Overview(f"{psnr:.1f} dB", "PSNR of reconstructions", f"{baseline:.1f} dB", "each clip's mean frame")
        ],
    )
    return f"PSNR of reconstructions {psnr:.1f} dB at 48 to 1, mean frame of each clip {baseline:.1f} dB"


def curves(metrics: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    return [
        Curve("Training: L1 error", [read_line(metrics, "train/rec_loss", "training")]),
        Curve(
            "Validation PSNR",
            [
                read_line(metrics, "validation/psnr", "reconstruction"),
                Line("mean frame", [(0, baseline)], baseline=True),
            ],
            unit="dB",
        ),
    ]
