"""VideoVAE+'s part of the demonstration: train, reconstruct, evaluate, show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Row
from evaluation.psnr import psnr
from scripts.demo.stage import Stage
from videodata.clips import open_clips
from videodata.pixels import to_uint8
from videodata.write_video import write_video

INTRO = (
    "A convolutional video autoencoder: 8 times less height and width, 4 times fewer frames, one number kept of 48. "
    "This is a small one of 4 million parameters; the published ones have 485 million. "
    "The clips are of the validation set, which the model has never seen."
)
SHOWN = 4
SIZE = 32  # of the frames, as in the configuration


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its number against the trivial baseline."""
    run, folder = stage.folder / "vvae", stage.folder / "vvae_clips"
    stage.run(
        "train",
        "scripts/train_vvae.py",
        *("--config", "configs/vvae/tiny.yaml", "--data", stage.clips, "--run_dir", run),
    )
    baseline = write_originals(stage.clips, folder / "original")
    stage.run(
        "reconstruct",
        "scripts/reconstruct_vvae.py",
        *(folder / "original", folder / "reconstruction", "--ckpt", run, "--chunk_size", 8, "--overlap", 0),
    )
    report = stage.folder / "vvae.json"
    stage.run(
        "evaluate",
        "scripts/evaluate_vvae.py",
        *(folder / "original", folder / "reconstruction", "--output", report),
    )
    scores = {score["name"]: score["mean"] for score in json.loads(report.read_text())["scores"]}
    gallery.add_section(
        "vvae",
        INTRO,
        clips=rows(folder),
        curves=curves(run / "metrics.jsonl", baseline),
        table=[("score", "mean"), *scores.items(), ("PSNR of the mean colour", baseline)],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        headline=[
            (f"{scores['PSNR']:.1f} dB", "PSNR of the reconstructions"),
            (f"{baseline:.1f} dB", "the clip's mean colour"),
            (f"{scores['PSNR'] - baseline:+.1f} dB", "gain"),
        ],
    )
    return f"PSNR {scores['PSNR']:.1f} dB at 48 to 1, mean colour of each clip {baseline:.1f} dB"


def write_originals(clips: Path, folder: Path) -> float:
    """Write the first validation clips as videos; returns the PSNR of each clip's mean colour, in dB."""
    data = open_clips(str(clips), frames=8, size=SIZE, split="val")
    values = []
    for index in range(min(SHOWN, len(data))):
        clip = data[index]
        flat = clip.mean(dim=(1, 2, 3), keepdim=True).expand_as(clip)
        values.append(float(psnr(clip[None], flat[None])))
        write_video(folder / f"clip_{index}.mp4", np.ascontiguousarray(to_uint8(clip)), 8)
    return float(np.mean(values))


def rows(folder: Path) -> list[Row]:
    """What is shown side by side."""
    found = {name: sorted((folder / name).glob("*.mp4")) for name in ("original", "reconstruction")}
    return [Row(name.capitalize(), [(path.stem, path) for path in paths]) for name, paths in found.items()]


def curves(metrics: Path, baseline: float) -> list[Curve]:
    """Learning curves."""
    return [
        Curve("Training: L1 error", [read_line(metrics, "train/rec_loss", "error")]),
        Curve(
            "Validation PSNR",
            [
                read_line(metrics, "validation/psnr", "reconstruction"),
                Line("mean colour", [(0, baseline)], baseline=True),
            ],
            unit="dB",
        ),
    ]
