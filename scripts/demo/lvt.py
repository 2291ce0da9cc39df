"""The latent video transformer's part of the demonstration: train both networks, continue clips, evaluate, show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Grid, Overview
from scripts.demo.stage import FRAMES, Stage, clip_names

INTRO = (
    "A VQ-VAE turns every frame into 2 x 8 x 8 codes of 7 bits; a transformer continues them, code by code. It is "
    "given the first four frames of clips that it has never seen and samples the next four. The baseline is the last "
    "given frame, repeated; what the VQ-VAE makes of the true frames is the most that the transformer can reach."
)
CODES_PER_CODEBOOK = 128
GIVEN = 4  # frames
VQVAE_STEPS, STEPS = 800, 350


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show the model; returns one line with its numbers against the trivial baselines."""
    vqvae, run = stage.folder / "lvt_vqvae", stage.folder / "lvt"
    train, val = f"{stage.clips}#train", f"{stage.clips}#val"
    codes = [vqvae / "inference" / f"{stage.clips.name}-{split}" for split in ("train", "val")]
    first = ("scripts/train_lvt.py", "--config-file", "configs/lvt/VQVAE_tiny.yaml")
    steps = stage.steps(VQVAE_STEPS)
    data = ("OUTPUT_DIR", vqvae, "DATASETS.TRAIN", names(train), "SOLVER.MAX_ITER", steps)
    data += ("INPUT.N_FRAMES_PER_VIDEO_TEST", FRAMES)
    data += ("TEST.EVAL_PERIOD", max(1, steps // 3), "VIS_PERIOD", steps)
    stage.run("train the VQ-VAE", *first, *data, "DATASETS.TEST", names(val))
    stage.run(
        "encode the clips as codes", *first, "--eval-only", *data,
        *("DATASETS.TEST", names(train, val), "TEST.EVALUATORS", "CodesExtractor"),
    )  # fmt: skip
    weights = [f"TEST.VT_SAMPLER.VQ_VAE.{name}_WEIGHTS" for name in ("ENCODER", "GENERATOR", "CODEBOOK")]
    steps = stage.steps(STEPS)
    stage.run(
        "train the transformer and continue clips",
        *("scripts/train_lvt.py", "--config-file", "configs/lvt/VT_tiny.yaml", "OUTPUT_DIR", run),
        *("DATASETS.TRAIN", names(codes[0]), "DATASETS.TEST", names(codes[1]), "DATASETS.VIDEOS", names(val)),
        *("TEST.EVALUATORS", "BitsEvaluator,ContinuationEvaluator", "SOLVER.MAX_ITER", steps),
        *("TEST.EVAL_PERIOD", max(1, steps // 4), "VIS_PERIOD", steps),
        *(text for key in weights for text in (key, vqvae)),
    )
    results = json.loads((run / "evaluation.json").read_text())
    scores = {**results[str(codes[1])]["likelihood"], **results[val]["continuation"]}
    best = next(name for name in scores if name.startswith("psnr_best"))
    bits, baseline, uniform = scores["bits_per_dim"], scores["psnr_last_frame_repeated"], math.log2(CODES_PER_CODEBOOK)
    gallery.add_section(
        "lvt",
        INTRO,
        clips=[grid(run / "inference" / "continuation" / f"{stage.clips.name}-val")],
        curves=curves(vqvae / "metrics.jsonl", run / "metrics.jsonl"),
        table=[("score", "mean"), *scores.items()],
        config=yaml.safe_load((run / "config.yaml").read_text()),
        overview=[
            Overview(f"{bits:.2f} bits", "per code", f"{uniform:.0f} bits", "uniform codes"),
            Overview(f"{scores[best]:.1f} dB", best_name(best), f"{baseline:.1f} dB", "last frame repeated"),
        ],
    )
    return (
        f"{bits:.2f} bits per code, uniform codes {uniform:.0f}; {best_name(best)} "
        f"{scores[best]:.1f} dB, last frame repeated {baseline:.1f} dB"
    )


def best_name(key: str) -> str:
    """psnr_best_of_8 as words."""
    return key.replace("psnr_", "PSNR of the ").replace("_", " ") + " samples"


def names(*datasets: str | Path) -> str:
    """Data sets as the value of a configuration key."""
    return f"({', '.join(repr(str(name)) for name in datasets)},)"


def grid(folder: Path) -> Grid:
    """What is shown side by side."""
    kinds = ("original", "reconstruction", "sample_0", "sample_1", "sample_2")
    count = len(list(folder.glob("*_original.mp4")))
    rows = {kind.replace("_", " "): [folder / f"{number}_{kind}.mp4" for number in range(count)] for kind in kinds}
    note = "Reconstruction: the true frames, encoded and decoded. Samples: the first four frames are given."
    return Grid("Validation clips and their continuations", rows, clip_names(count), given=GIVEN, note=note)


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
