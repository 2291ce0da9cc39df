"""The commands: train one of the two networks as a configuration says, or evaluate it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lvt import config as configuration
from lvt.datasets import class_names, open_code_windows, open_frames, open_videos, thinned, together
from lvt.evaluators import (
    continuation_scores,
    extract_codes,
    likelihood,
    reconstruction_error,
    write_samples,
)
from lvt.initialization import initialize_convolutions
from lvt.train import TransformerRecipe, VQVAERecipe
from lvt.transformer import VideoTransformer
from lvt.vqvae import VQVAE
from lvt.weights import load_transformer, load_vqvae, original_groups, write_original
from training import TrainSettings, distributed, train
from training.distributed import resolve_device
from training.files import write_file, write_json
from training.randomness import seed_everything
from videodata.errors import UserError

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
VQVAE_EVALUATORS = ("MSEEvaluator", "CodesExtractor")
TRANSFORMER_EVALUATORS = ("BitsEvaluator", "VTSampler", "ContinuationEvaluator")


def is_transformer(config: dict[str, Any]) -> bool:
    """Which network a configuration is for. Raises UserError when it does not say."""
    name = config["MODEL"]["META_ARCHITECTURE"]
    if name not in ("VQVAEModel", "VideoTransformerModel"):
        raise UserError(f"MODEL.META_ARCHITECTURE {name!r}: use VQVAEModel or VideoTransformerModel")
    return name == "VideoTransformerModel"


def build_transformer(config: dict[str, Any]) -> VideoTransformer:
    """The transformer of a configuration, with fresh weights."""
    node = config["MODEL"]
    model = VideoTransformer(node["AUTOREGRESSIVE"]["VT"], node["GRADIENT_CHECKPOINTING"])
    initialize_convolutions(model, node["INIT_TYPE"])
    return model


def build_vqvae(config: dict[str, Any]) -> VQVAE:
    """The VQ-VAE of a configuration, with fresh weights. Raises UserError for a file that is only a base."""
    channels = config["MODEL"]["ENCODER"]["IN_CHANNELS"]
    if channels != 3 or config["INPUT"]["FORMAT"] != "RGB":
        raise UserError("this configuration is only a base for others: frames need IN_CHANNELS 3 and INPUT.FORMAT RGB")
    model = VQVAE(config)
    initialize_convolutions(model, config["MODEL"]["INIT_TYPE"])
    return model


def load_sampler_vqvae(config: dict[str, Any], device: torch.device) -> VQVAE | None:
    """The VQ-VAE that TEST.VT_SAMPLER.VQ_VAE names, ready to decode; None when no weights are named."""
    node = config["TEST"]["VT_SAMPLER"]["VQ_VAE"]
    paths = {"netE": node["ENCODER_WEIGHTS"], "netG": node["GENERATOR_WEIGHTS"], "netC": node["CODEBOOK_WEIGHTS"]}
    if not any(paths.values()):
        return None
    file = Path(node["CFG"])
    file = file if file.is_file() or file.is_absolute() else ROOT / file
    model = build_vqvae(configuration.load(file))
    return load_vqvae(model, paths).to(device).eval()


def settings(config: dict[str, Any], resume: bool) -> TrainSettings:
    """The settings of the training loop."""
    solver = config["SOLVER"]
    return TrainSettings(
        run_dir=Path(config["OUTPUT_DIR"]),
        steps=solver["MAX_ITER"],
        batch_size=solver["IMS_PER_BATCH"],
        accumulation=solver["ACCUMULATION_STEPS"],
        seed=max(config["SEED"], 0),
        device=config["MODEL"]["DEVICE"],
        precision=solver["PRECISION"],
        compile=solver["COMPILE"],
        clip=solver["CLIP_NORM"],
        ema=solver["EMA"],
        resume="auto" if resume else "never",
        save_every=solver["CHECKPOINT_PERIOD"],
        log_every=config["LOG_PERIOD"],
        evaluate_every=config["TEST"]["EVAL_PERIOD"] or solver["MAX_ITER"],
        pictures_every=config["VIS_PERIOD"],
        max_minutes=config["MAX_MINUTES"],
        workers=config["DATALOADER"]["NUM_WORKERS"],
    )


def train_lvt(config: dict[str, Any], resume: bool = False, allow_config_change: bool = False) -> dict[str, Any]:
    """Train the network of a configuration in OUTPUT_DIR, write it in the original's layout too, evaluate it.

    `resume` continues the run that the folder holds; without it, such a folder is refused. Gives the results by
    task. Raises UserError.
    """
    seed_everything(max(config["SEED"], 0))
    evaluators_of(config)  # a mistake there shall not wait for the end of the training
    recipe, data, validation = build_run(config)
    chosen = replace(settings(config, resume), allow_config_change=allow_config_change)
    refuse_used_folder(chosen)
    result = train(recipe, data, chosen, {**config, "model": shape_of_model(config)}, validation)
    if not result.finished:
        logger.info("stopped at step %d; --resume continues", result.step)
        return {}
    if not distributed.is_main():
        return {}
    (model,) = recipe.networks.values()
    load_final(model, chosen.run_dir)
    write_original(chosen.run_dir, original_groups(model), result.step - 1, "model_final")
    return evaluate_lvt(config, model)


def refuse_used_folder(chosen: TrainSettings) -> None:
    """Raises UserError when the folder holds a run that is not to be continued."""
    used = (chosen.run_dir / "metrics.jsonl").exists() or any((chosen.run_dir / "checkpoints").glob("step-*.pt"))
    if used and chosen.resume == "never":
        raise UserError(f"{chosen.run_dir}: holds a run already; add --resume to continue it, or set OUTPUT_DIR")


def shape_of_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the configuration that a continued run must share."""
    model = config["MODEL"]
    if is_transformer(config):
        shape = {"META_ARCHITECTURE": model["META_ARCHITECTURE"], "VT": model["AUTOREGRESSIVE"]["VT"]}
        classes = class_names(config)
        return shape if classes is None else {**shape, "CLASSES": classes}
    return {name: model[name] for name in ("META_ARCHITECTURE", "ENCODER", "GENERATOR", "CODEBOOK")}


def build_run(config: dict[str, Any]) -> tuple[VQVAERecipe | TransformerRecipe, Any, Any]:
    """Recipe, training data and validation data of a configuration."""
    names = config["DATASETS"]
    if is_transformer(config):
        data = together([open_code_windows(config, name, training=True) for name in names["TRAIN"]])
        tests = [open_code_windows(config, name, training=False) for name in names["TEST"]]
        shown = (
            load_sampler_vqvae(config, torch.device("cpu"))
            if config["VIS_PERIOD"] <= config["SOLVER"]["MAX_ITER"]
            else None
        )
        recipe = TransformerRecipe(build_transformer(config), config, shown)
    else:
        data = together([open_frames(config, name, training=True) for name in names["TRAIN"]])
        tests = [open_frames(config, name, training=False) for name in names["TEST"]]
        recipe = VQVAERecipe(build_vqvae(config), config)
    return recipe, data, thinned(together(tests), config["TEST"]["N_SAMPLES"]) if tests else None


def load_final(model: VQVAE | VideoTransformer, run_dir: Path) -> None:
    """Put the weights that count, the averaged ones where there are any, into the network."""
    if isinstance(model, VQVAE):
        load_vqvae(model, dict.fromkeys(("netE", "netG", "netC"), run_dir))
    else:
        load_transformer(model, run_dir)


def load_for_evaluation(config: dict[str, Any]) -> VQVAE | VideoTransformer:
    """The network with the weights of MODEL.*.WEIGHTS, else those of the run in OUTPUT_DIR.

    Raises UserError when there are neither: random weights are never evaluated.
    """
    node, run_dir = config["MODEL"], Path(config["OUTPUT_DIR"])
    if is_transformer(config):
        return load_transformer(build_transformer(config), node["GENERATOR"]["WEIGHTS"] or run_dir)
    model = build_vqvae(config)
    given = {
        "netE": node["ENCODER"]["WEIGHTS"],
        "netG": node["GENERATOR"]["WEIGHTS"],
        "netC": node["CODEBOOK"]["WEIGHTS"],
    }
    return load_vqvae(model, given if any(given.values()) else dict.fromkeys(given, run_dir))


def evaluate_lvt(config: dict[str, Any], model: VQVAE | VideoTransformer | None = None) -> dict[str, Any]:
    """Run the evaluators that TEST.EVALUATORS names; gives and writes (evaluation.json) {data set: {task: {...}}}.

    Raises UserError for an unknown evaluator, missing weights or missing data.
    """
    names = evaluators_of(config)
    model = load_for_evaluation(config) if model is None else model
    device = resolve_device(config["MODEL"]["DEVICE"])
    model = model.to(device).eval()
    folder = Path(config["OUTPUT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: evaluate_dataset(config, model, name, names, device) for name in config["DATASETS"]["TEST"]}
    if "ContinuationEvaluator" in names:
        for name in config["DATASETS"]["VIDEOS"]:
            results.setdefault(name, {})["continuation"] = evaluate_continuation(config, model, name, device)
    write_json(folder / "evaluation.json", results)
    for name, tasks in results.items():
        for task, values in tasks.items():
            logger.info("%s %s: %s", name, task, ", ".join(f"{key} {value}" for key, value in values.items()))
    return results


def evaluators_of(config: dict[str, Any]) -> list[str]:
    """The names in TEST.EVALUATORS. Raises UserError for one that the model does not have, or that lacks a VQ-VAE."""
    names = [name.strip() for name in config["TEST"]["EVALUATORS"].split(",") if name.strip()]
    known = TRANSFORMER_EVALUATORS if is_transformer(config) else VQVAE_EVALUATORS
    for name in names:
        if name not in known:
            raise UserError(f"TEST.EVALUATORS: {name!r} does not fit this model; use {', '.join(known)}")
    if {"VTSampler", "ContinuationEvaluator"} & set(names):
        needed_vqvae(config, torch.device("cpu"))
    return names


def evaluate_dataset(
    config: dict[str, Any], model: VQVAE | VideoTransformer, dataset: str, evaluators: list[str], device: torch.device
) -> dict[str, dict[str, Any]]:
    """The results of some evaluators on one data set, by task."""
    folder = Path(config["OUTPUT_DIR"]) / "inference"
    limit = config["TEST"]["N_SAMPLES"]
    results: dict[str, dict[str, Any]] = {}
    if "MSEEvaluator" in evaluators:
        clips = thinned(open_frames(config, dataset, training=False), limit)
        results["reconstruction"] = reconstruction_error(model, clips, device)
    if "CodesExtractor" in evaluators:
        path = extract_codes(model, open_videos(config, dataset), folder / folder_name(dataset), device)
        results["codes"] = {"file": str(path)}
    if "BitsEvaluator" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), limit)
        results["likelihood"] = likelihood(model, windows, device)
    if "VTSampler" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), limit)
        target = folder / "samples" / folder_name(dataset)
        written = write_samples(model, needed_vqvae(config, device), windows, config, target, device)
        results["samples"] = {"folder": str(target), "clips": written}
    return results


def evaluate_continuation(
    config: dict[str, Any], model: VideoTransformer, dataset: str, device: torch.device
) -> dict[str, float]:
    """Scores of the continuations of a data set's first frames; some of them are written as videos."""
    clips = thinned(open_frames(config, dataset, training=False), config["TEST"]["N_SAMPLES"])
    target = Path(config["OUTPUT_DIR"]) / "inference" / "continuation" / folder_name(dataset)
    return continuation_scores(model, needed_vqvae(config, device), clips, config, device, target)


def needed_vqvae(config: dict[str, Any], device: torch.device) -> VQVAE:
    """The VQ-VAE that decodes samples. Raises UserError when none is named."""
    model = load_sampler_vqvae(config, device)
    if model is None:
        raise UserError(
            "frames need the VQ-VAE: set TEST.VT_SAMPLER.VQ_VAE.{CFG,ENCODER_WEIGHTS,GENERATOR_WEIGHTS,"
            "CODEBOOK_WEIGHTS}; the three weights may be one run folder"
        )
    return model


def folder_name(dataset: str) -> str:
    """The data set's name as the name of a folder: that of a path is its last part."""
    return dataset.rstrip("/").split("/")[-1].replace(":", "-").replace("#", "-")


def missed_expectations(config: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """What of TEST.EXPECTED_RESULTS, (task, metric, value, tolerance) each, the results do not meet."""
    missed = []
    for task, metric, value, tolerance in config["TEST"]["EXPECTED_RESULTS"]:
        for dataset, tasks in results.items():
            found = tasks.get(task, {}).get(metric)
            if found is None or abs(found - value) > tolerance:
                missed.append(f"{dataset} {task}/{metric} is {found}, expected {value} +- {tolerance}")
    return missed


def write_config(config: dict[str, Any]) -> None:
    """The merged configuration as OUTPUT_DIR/config.yaml."""
    folder = Path(config["OUTPUT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)
    write_file(folder / "config.yaml", lambda file: file.write(text.encode()))
