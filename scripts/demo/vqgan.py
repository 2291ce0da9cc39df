"""The VQGAN's part of the demonstration: train both stages, evaluate, draw, show."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import torch
import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Grid, Overview, Row
from scripts.demo.stage import ROOT, Stage, clip_names, read_scores
from videodata.write_video import write_video
from vqgan.data import merge_patches, split_patches
from vqgan.files import load_model

INTRO = (
    "A vector-quantised autoencoder of single frames. Each frame becomes {indices} indices of a codebook of {codes}, "
    "{bytes} bytes in place of {raw}; the decoder paints the frame from the codes alone. Stage 1 learns to "
    "reconstruct, stage 2 adds a discriminator. The clips are of validation videos, which the model has never seen."
)
SIZE = 64
CONFIG = "configs/vqgan/demo.yaml"


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    folder, settings = stage.folder / "vqgan", yaml.safe_load((ROOT / CONFIG).read_text())
    stage.run(
        "train the VQGAN",
        "scripts/train_vqgan.py",
        *("--preset", "test", "--config", CONFIG, "--data_path", stage.clips),
        *("--steps", stage.steps(settings["steps"]), "--gan_steps", stage.steps(settings["gan_steps"])),
        *("--checkpoint_dir", folder, "--log_dir", folder / "logs", "--results_dir", folder / "results"),
    )
    model, report = folder / "best_model_gan.pt", stage.folder / "vqgan.json"
    data = ("--split", "val", "--checkpoint", model)
    stage.run("evaluate the VQGAN", "scripts/evaluate.py vqgan", *data, "--data", stage.clips, "--output", report)
    pictures = folder / "pictures"
    stage.run(
        "draw the codebook", "scripts/visualize_vqgan.py", *data, "--data_path", stage.clips, "--output_dir", pictures
    )
    write_clips(stage, model, settings["num_patches_h"], settings["num_patches_w"], folder / "clips")
    scores, details = read_scores(report), json.loads(report.read_text())["details"]
    psnr, baseline = scores["PSNR"], stage.mean_frame_psnr(SIZE)
    used = f"{details['codes_used']} of {details['codebook_size']}"
    gallery.add_section(
        "vqgan",
        describe(details["bits_per_frame"], details["codebook_size"]),
        clips=groups(stage, folder / "clips", pictures),
        curves=curves(folder, baseline),
        table=[
            ("score", "mean"),
            *scores.items(),
            ("PSNR of each clip's mean frame", baseline),
            ("codes in use", used),
            ("codebook perplexity", details["codebook_perplexity"]),
            ("bits per frame", details["bits_per_frame"]),
        ],
        config=yaml.safe_load((folder / "stage2" / "config.yaml").read_text()),
        overview=[
            Overview(f"{psnr:.1f} dB", "PSNR of reconstructions", f"{baseline:.1f} dB", "each clip's mean frame")
        ],
    )
    return f"validation PSNR {psnr:.1f} dB, mean frame of each clip {baseline:.1f} dB, {used} codes in use"


def describe(bits: float, codes: int) -> str:
    """What the model is, with its numbers for one frame."""
    indices = round(bits / math.log2(codes))
    return INTRO.format(indices=indices, codes=codes, bytes=math.ceil(bits / 8), raw=f"{3 * SIZE * SIZE:,}")


@torch.no_grad()
def write_clips(stage: Stage, checkpoint: Path, rows: int, columns: int, folder: Path) -> None:
    """The first validation clips, and what the model makes of each of their frames."""
    model, data = load_model(checkpoint), stage.validation(SIZE)
    for number in range(stage.shown):
        frames = data[number].movedim(1, 0)  # (T, 3, H, W)
        made = merge_patches(model(split_patches(frames, rows, columns)).frames, rows, columns).float().clamp(-1, 1)
        for name, values in (("original", frames), ("reconstruction", made)):
            write_video(folder / f"{name}_{number}.mp4", values.movedim(0, 1), Fraction(8))


def groups(stage: Stage, clips: Path, pictures: Path) -> list[Row | Grid]:
    """What is shown side by side."""
    kinds = ("original", "reconstruction")
    rows = {kind: [clips / f"{kind}_{number}.mp4" for number in range(stage.shown)] for kind in kinds}
    found = [
        ("codes, most used first: each decoded alone", pictures / "codebook" / "codebook_visualization.png"),
        ("how often each code is used", pictures / "codebook" / "codebook_usage.png"),
        ("indices of one frame", pictures / "whole_frame" / "index_map_00.png"),
    ]
    return [Grid("Original and reconstruction", rows, clip_names(stage.shown)), Row("The codebook", found)]


def curves(folder: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    first, second = (folder / stage / "metrics.jsonl" for stage in ("stage1", "stage2"))
    return [
        Curve(
            "Validation PSNR",
            [
                read_line(first, "validation/psnr", "stage 1"),
                read_line(second, "validation/psnr", "stage 2"),
                Line("mean frame", [(0, baseline)], baseline=True),
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
