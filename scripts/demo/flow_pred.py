"""The video predictors' part of the demonstration: train all networks, continue clips, score, show."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from evaluation.curves import Curve, Line, read_line
from evaluation.gallery import Gallery, Grid, Overview, Panel, Row
from flow_pred.generate_videos import GAP
from scripts.demo.stage import Stage, clip_names

INTRO = (
    "An autoencoder turns each frame into an 8x8 map. RIVER carries noise to the next map along a learned flow; the "
    "neural SDE moves the last maps on by a learned drift with learned noise, and so reaches any time between two "
    "frames as well. Both are given four frames of clips that they have never seen. The baseline is the last "
    "given frame, repeated."
)
CONFIGS = "configs/flow_pred/shapes_{}_tiny.yaml"
PARTS = ("f-01-mse", "d-01", "g-01-nll")
NAMES = {
    "river": "RIVER",
    "f-01-mse": "neural SDE, flow",
    "d-01": "neural SDE, denoiser",
    "g-01-nll": "neural SDE, noise",
}
STEPS = {"river": 240, "f-01-mse": 200, "d-01": 50, "g-01-nll": 50}
AUTOENCODER_STEPS = 250
GIVEN = 4  # frames


def show(stage: Stage, gallery: Gallery) -> str:
    """Train and show both predictors; returns one line with their numbers against the trivial baseline."""
    runs = stage.folder / "flow_pred"
    train(stage, runs)
    river, sde, slow = (stage.folder / f"flow_pred_{name}" for name in ("river", "sde", "sde_slow"))
    parts = [f"--ckpt-{part[0]}={runs / f'shapes_run-{part}'}" for part in PARTS]
    common = ("--split", "val", "--format", "mp4", "--context", GIVEN)
    stage.run(
        "continue clips with RIVER", "scripts/generate_flow_videos.py", "--ckpt", runs / "shapes_run-river",
        *common, "--frames", 4, "--metrics", "--out", river,
    )  # fmt: skip
    stage.run(
        "continue clips with the neural SDE", "scripts/generate_flow_videos.py", *parts,
        *common, "--frames", 4, "--metrics", "--out", sde,
    )  # fmt: skip
    stage.run(
        "predict at four times the rate", "scripts/generate_flow_videos.py", *parts,
        *common, "--frames", 4, "--res", 4, "--num-videos", stage.shown, "--out", slow,
    )  # fmt: skip
    scores = {name: psnr(folder) for name, folder in (("RIVER", river), ("neural SDE", sde))}
    baseline = psnr(river, "last frame repeated")
    gallery.add_section(
        "flow_pred",
        INTRO,
        clips=groups(river, sde, slow, stage.shown),
        curves=curves(runs),
        table=[("PSNR of 4 predicted frames", "dB"), *scores.items(), ("last frame repeated", baseline)],
        config=yaml.safe_load((runs / "shapes_run-f-01-mse" / "config.yaml").read_text()),
        overview=[
            Overview(f"{value:.1f} dB", f"PSNR of 4 frames by {name}", f"{baseline:.1f} dB", "last frame repeated")
            for name, value in scores.items()
        ],
    )
    numbers = ", ".join(f"{name} {value:.1f} dB" for name, value in scores.items())
    return f"PSNR of 4 predicted frames: {numbers}, last frame repeated {baseline:.1f} dB"


def train(stage: Stage, runs: Path) -> None:
    """The autoencoder, its latents, and the four networks."""
    latents, river = runs / "latents", CONFIGS.format("river")
    data = [
        f"data.data_root={stage.clips}",
        *("data.skip_frames=0", "training.num_observations=8", "model.vector_field_regressor.inner_dim=96"),
        f"model.autoencoder.ckpt_path={runs / 'shapes_run-autoencoder'}",
    ]
    stage.run(
        "train the autoencoder", "scripts/train_flow_autoencoder.py", "--config", river, "--runs", runs,
        *("--steps", stage.steps(AUTOENCODER_STEPS), "--optimizer", "muon", "--learning-rate", 2e-3),
        *("--vq-warmup", stage.steps(100), "--clip-frames", 3, "--evaluate_every", stage.steps(100)),
        *("--pictures_every", stage.steps(AUTOENCODER_STEPS), *data),
    )  # fmt: skip
    stage.run("encode the clips", "scripts/encode_latents.py", "--config", river, "--out", latents, *data)
    for name, full in STEPS.items():
        steps = stage.steps(full)
        stage.run(
            f"train {name}", "scripts/train_flow_pred.py", "--config", CONFIGS.format(name), "--run-name", name,
            *("--runs", runs, "--log_every", 10, "--evaluate_every", max(1, steps // 5), "--pictures_every", steps),
            *data, f"data.latents={latents}", f"training.optimizer.num_training_steps={steps}",
            f"training.optimizer.num_warmup_steps={max(1, steps // 6)}",
            f"model.f_ckpt_path={runs / 'shapes_run-f-01-mse'}", f"model.d_ckpt_path={runs / 'shapes_run-d-01'}",
        )  # fmt: skip


def psnr(folder: Path, label: str = "") -> float:
    """The PSNR of all predicted frames that a run of generate_flow_videos.py measured."""
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    return next(score["mean"] for score in scores if score["name"] == f"PSNR {label}".strip())


def groups(river: Path, sde: Path, slow: Path, count: int) -> list[Row | Grid]:
    """What is shown side by side."""
    names = [f"{number:04d}.mp4" for number in range(count)]
    rows = {
        "true": [Panel(river / name, 0, gap=GAP) for name in names],
        "RIVER": [Panel(river / name, 1, gap=GAP) for name in names],
        "neural SDE": [Panel(sde / name, 1, gap=GAP) for name in names],
    }
    between = {"neural SDE, 4x": [slow / name for name in names]}
    return [
        Grid("Continued from four frames", rows, clip_names(count), given=GIVEN),
        Grid("Predicted at four times the frame rate", between, given=1,
             note="From the last given frame on: three frames between each and the next, which the data do not have."),
    ]  # fmt: skip


def curves(runs: Path) -> list[Curve]:
    """Learning curves."""
    found = [
        Curve(
            "Autoencoder: validation PSNR", [line(runs, "autoencoder", "validation/psnr", "reconstruction")], unit="dB"
        )
    ]
    for name, title in NAMES.items():
        lines = [line(runs, name, "loss/regressor", "training"), line(runs, name, "validation/loss", "validation")]
        found.append(Curve(f"Loss of {title}", lines))
    return found


def line(runs: Path, name: str, key: str, label: str) -> Line:
    return read_line(runs / f"shapes_run-{name}" / "metrics.jsonl", key, label)
