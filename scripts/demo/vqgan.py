"""The VQGAN's part of the demonstration: train both stages, evaluate, draw, show."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Row
from scripts.demo.stage import Stage

INTRO = (
    "A vector-quantised autoencoder of single frames. Each frame becomes 8x8 indices of a codebook of 128, 56 bytes "
    "in place of 12,288; the decoder paints the frame from the codes alone. Stage 1 learns to reconstruct, stage 2 "
    "adds a discriminator. The clips are of validation videos, which the model has never seen."
)
SHOWN = 4  # validation clips


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    folder = stage.folder / "vqgan"
    stage.run(
        "train VQGAN",
        "scripts/train_vqgan.py",
        *("--preset", "test", "--config", "configs/vqgan/demo.yaml", "--data_path", stage.clips),
        *("--checkpoint_dir", folder, "--log_dir", folder / "logs", "--results_dir", folder / "results"),
    )
    model, report = folder / "best_model_gan.pt", stage.folder / "vqgan.json"
    stage.run(
        "evaluate VQGAN",
        "scripts/evaluate.py vqgan",
        *("--checkpoint", model, "--data", stage.clips, "--split", "val", "--output", report),
    )
    for number in range(SHOWN):
        stage.run(
            f"draw VQGAN {number}",
            "scripts/visualize_vqgan.py",
            *("--data_path", stage.clips, "--split", "val", "--checkpoint", model, "--video_idx", number),
            *("--output_dir", folder / f"pictures_{number}"),
        )
    content = json.loads(report.read_text())
    scores = {score["name"]: score["mean"] for score in content["scores"]}
    details = content["details"]
    psnr, baseline = scores["PSNR"], scores["PSNR of the mean colour"]
    used = f"{details['codes_used']} of {details['codebook_size']}"
    gallery.add_section(
        "vqgan",
        INTRO,
        clips=rows(folder),
        curves=curves(folder, baseline),
        table=[
            ("score", "mean"),
            *scores.items(),
            ("codes in use", used),
            ("codebook perplexity", details["codebook_perplexity"]),
            ("bits per frame", details["bits_per_frame"]),
        ],
        config=yaml.safe_load((folder / "stage2" / "config.yaml").read_text()),
        headline=[
            (f"{psnr:.1f} dB", "validation PSNR"),
            (f"{baseline:.1f} dB", "each frame's mean colour"),
            (used, "codes in use"),
        ],
    )
    return f"validation PSNR {psnr:.1f} dB, mean colour of each frame {baseline:.1f} dB, {used} codes in use"


def rows(folder: Path) -> list[Row]:
    """What is shown side by side."""
    clips = [folder / f"pictures_{number}" / "whole_frame" / "comparison.mp4" for number in range(SHOWN)]
    return [Row("Original and reconstruction", [(f"clip {i + 1}", path) for i, path in enumerate(clips)])]


def curves(folder: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    first, second = (folder / stage / "metrics.jsonl" for stage in ("stage1", "stage2"))
    return [
        Curve(
            "Validation PSNR",
            [
                read_line(first, "validation/psnr", "stage 1"),
                read_line(second, "validation/psnr", "stage 2"),
                Line("mean colour", [(0, baseline)], baseline=True),
            ],
            unit="dB",
        ),
        Curve(
            "Codebook perplexity",
            [
                read_line(first, "validation/perplexity", "stage 1"),
                read_line(second, "validation/perplexity", "stage 2"),
            ],
        ),
    ]
