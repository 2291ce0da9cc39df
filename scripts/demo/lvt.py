"""The latent video transformer's part of the demonstration: train both networks, continue clips, evaluate, show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Row
from scripts.demo.stage import Stage

INTRO = (
    "A VQ-VAE turns every frame into 2 x 8 x 8 codes of 7 bits; a transformer continues them, code by code. It is "
    "given the first four frames of clips that it has never seen and samples the next four. The baseline is the last "
    "given frame, repeated; what the VQ-VAE makes of the true frames is the most that the transformer can reach."
)
CODES_PER_CODEBOOK = 128


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its numbers against the trivial baselines."""
    vqvae, run = stage.folder / "lvt_vqvae", stage.folder / "lvt"
    train, val = f"{stage.clips}#train", f"{stage.clips}#val"
    codes = [vqvae / "inference" / f"{stage.clips.name}-{split}" for split in ("train", "val")]
    first = ("scripts/train_lvt.py", "--config-file", "configs/lvt/VQVAE_tiny.yaml")
    data = ("OUTPUT_DIR", vqvae, "DATASETS.TRAIN", names(train))
    stage.run("train the VQ-VAE", *first, *data, "DATASETS.TEST", names(val))
    stage.run(
        "encode the clips", *first, "--eval-only", *data,
        *("DATASETS.TEST", names(train, val), "TEST.EVALUATORS", "CodesExtractor"),
    )  # fmt: skip
    weights = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    stage.run(
        "train the transformer and continue clips",
        *("scripts/train_lvt.py", "--config-file", "configs/lvt/VT_tiny.yaml", "OUTPUT_DIR", run),
        *("DATASETS.TRAIN", names(codes[0]), "DATASETS.TEST", names(codes[1]), "DATASETS.VIDEOS", names(val)),
        *("TEST.EVALUATORS", "BitsEvaluator,ContinuationEvaluator"),
        *(text for key in weights for text in (key, vqvae)),
    )
    results = json.loads((run / "evaluation.json").read_text())
    scores = {**results[str(codes[1])]["likelihood"], **results[val]["continuation"]}
    best = next(name for name in scores if name.startswith("psnr_best"))
    bits, baseline = scores["bits_per_dim"], scores["psnr_last_frame_repeated"]
    gallery.add_section(
        "lvt",
        INTRO,
        clips=rows(run / "inference" / "continuation" / f"{stage.clips.name}-val"),
        curves=curves(vqvae / "metrics.jsonl", run / "metrics.jsonl"),
        table=[("score", "mean"), *scores.items()],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        headline=[
            (f"{bits:.2f} bits", f"per code, of {math.log2(CODES_PER_CODEBOOK):.0f}"),
            (f"{scores[best]:.1f} dB", best.replace("_", " ")),
            (f"{baseline:.1f} dB", "last frame repeated"),
        ],
    )
    return (
        f"{bits:.2f} bits per code of {math.log2(CODES_PER_CODEBOOK):.0f}, {best.replace('_', ' ')} "
        f"{scores[best]:.1f} dB, last frame repeated {baseline:.1f} dB"
    )


def names(*datasets: str | Path) -> str:
    """Data sets as the value of a configuration key."""
    return f"({', '.join(repr(str(name)) for name in datasets)},)"


def rows(folder: Path) -> list[Row]:
    """What is shown side by side: one row per clip."""
    kinds = ("original", "reconstruction", "sample_0", "sample_1", "sample_2")
    count = len(list(folder.glob("*_original.mp4")))
    return [
        Row(f"Clip {number + 1}", [(kind.replace("_", " "), folder / f"{number}_{kind}.mp4") for kind in kinds])
        for number in range(count)
    ]


def curves(vqvae: Path, transformer: Path) -> list[Curve]:
    """Learning curves of both networks."""
    bits = math.log2(CODES_PER_CODEBOOK)
    return [
        Curve("VQ-VAE: validation MSE", [read_line(vqvae, "validation/mse", "reconstruction")]),
        Curve(
            "Transformer: bits per code",
            [
                read_line(transformer, "train/bits_per_code", "training"),
                read_line(transformer, "validation/bits_per_code", "validation"),
                Line("uniform codes", [(0, bits)], baseline=True),
            ],
        ),
    ]
