"""The command scripts/train_flow_pred.py: autoencoder, data, networks, run folder, and the final file of the original's
form. What is learned is in `recipes.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset

from flow_pred.autoencoder import build_autoencoder
from flow_pred.checkpoints import AUTOENCODER_PREFIX, REGRESSOR, Weights, read_weights
from flow_pred.config import RIVER_FINAL_RATE, SDE_FINAL_SHARE, FlowPredConfig, configure, plain_config, same_run
from flow_pred.files import Regressor, build_regressor, default_run, inner, read_component
from flow_pred.latents import EncodedLatents, LatentClips, LatentSpace, clock_of, encode_clip, moments_of
from flow_pred.recipes import RECIPES, DiffusionRecipe, PredictorRecipe
from training import TrainSettings, settings_from, train
from training.checkpoint import checkpoints_in, strict_load
from training.cli import relaunch
from training.distributed import is_main, made_on_main, print0
from training.encoded import is_encoded
from training.tokenizer import latent_frames, recorded_name
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.files import lock_file, write_file
from videodata.labels import LabelledClips, classes_of
from videodata.pixels import normalize

logger = logging.getLogger(__name__)
FUNCTIONS = {"f": "f_nll"}  # any of a role that has two
MEASURED_CLIPS = 64  # for latent_mean and latent_std: auto


def train_flow_pred(args: argparse.Namespace) -> None:
    """What scripts/train_flow_pred.py does: train, or continue where the same command stopped."""
    config = configure(args)
    named = f"{config.name}_run-{args.run_name}" if args.run_name else default_run(config.name, args.config).name
    run_dir = args.run_dir or same_run(args.runs / named.replace("-null", "-nll"))
    if is_main():
        go_back(run_dir, args.resume_step)
    if args.device == "auto":
        spread_over_gpus(args.num_gpus)
    settings = engine_settings(args, config, run_dir)
    recipe, data, validation = prepare(config, run_dir, args.seed, settings.fsdp)
    result = train(recipe, data, settings, plain_config(config), validation)
    facts = []
    if result.finished and is_main():
        facts = [f"{write_final(run_dir, recipe, config, result.step)} is the same in the original's format"]
    print0(result.told(*facts))


def engine_settings(args: argparse.Namespace, config: FlowPredConfig, run_dir: Path) -> TrainSettings:
    """The training loop's settings: the flags', and those that the configuration decides."""
    batching, optimizer = config.training.batching, config.training.optimizer
    base = optimizer.learning_rate
    final = min(RIVER_FINAL_RATE, base) if config.model.role == "river" else SDE_FINAL_SHARE * base
    settings = settings_from(
        args,
        run_dir,
        optimizer.num_training_steps,
        batch_size=batching.batch_size,
        workers=batching.num_workers,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.num_warmup_steps,
        warmup_start=0.0,
        precision=config.training.precision,
        clip=optimizer.clip,
        ema=optimizer.ema,
        **({"final_rate": final} if optimizer.schedule == "sqrt" else {}),
    )
    return dataclasses.replace(settings, device="cpu") if args.num_gpus == 0 else settings


def go_back(run_dir: Path, step: int | None) -> None:
    """Let the run continue from the checkpoint of a step: newer ones are set aside, in a folder of their own.

    step: -1 is the newest; None: whatever is there. Raises UserError for a step that is not kept, or is damaged.
    """
    if step is None:
        return
    there = checkpoints_in(run_dir / "checkpoints")
    kept = {checkpoint.step: checkpoint for checkpoint in there}
    if not kept:
        raise UserError(f"{run_dir}: holds no checkpoint to resume from; leave --resume-step out to start")
    if step == -1:
        return
    if step not in kept:
        raise UserError(f"{run_dir}: step {step} is not kept; there are {', '.join(map(str, sorted(kept)))}")
    if damage := kept[step].damage():
        raise UserError(f"{kept[step].path}: damaged, it {damage}; choose another step")
    with lock_file(run_dir, "training in", lock=run_dir / "run.lock"):
        for checkpoint in (entry for entry in reversed(there) if entry.step > step):
            aside = run_dir / "checkpoints" / f"newer-than-{step}"
            aside.mkdir(exist_ok=True)
            for path in (checkpoint.path.with_suffix(".json"), checkpoint.path, checkpoint.weights):  # manifest first
                if path.exists():
                    path.replace(aside / path.name)
            logger.warning("WARN %s: set aside in %s", checkpoint.path.name, aside)


def spread_over_gpus(count: int | None) -> None:
    """Start one process per GPU in place of this one, where there are several. Raises UserError for too many."""
    available = torch.cuda.device_count()
    if count is not None and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available}; --num-gpus 0 trains on the CPU")
    count = available if count is None else count
    if count > 1:
        relaunch(sys.argv[0], sys.argv[1:], count)


def open_data(config: FlowPredConfig, seed: int) -> tuple[Dataset, Dataset | None]:
    """What to train on and what to validate with; None: the data has no part for that."""
    training = open_part(config, "train", seed)
    try:
        return training, open_part(config, "val", seed)
    except UserError as error:
        logger.warning("no validation: %s", error)
        return training, None


def open_part(config: FlowPredConfig, split: str, seed: int) -> Dataset:
    """Clips of pictures, uint8, or of cached latents. Validation clips are fixed and not augmented."""
    data = config.data
    stride = data.skip_frames + 1
    if data.latents:
        if data.aug:
            raise UserError("data.aug needs pictures: cached latents cannot be augmented; set data.latents to null")
        kind = EncodedLatents if is_encoded(data.latents) else LatentClips
        return kind(data.latents, split, data.frames_per_sample, stride, seed)
    return open_clips(
        data.data_root,
        frames=data.frames_per_sample,
        size=data.crop_size,
        short_side=data.input_size,
        stride=stride,
        split=split,
        seed=seed,
        flip=data.random_horizontal_flip and split == "train",
        dtype="uint8",
    )


def build_recipe(config: FlowPredConfig, latent_space: LatentSpace, sharded: bool = False) -> PredictorRecipe:
    """The recipe of a configuration; the diffusion's loads its flow, and its denoiser where there is one.

    sharded: only the main process needs the values of the network.
    """
    model = config.model
    with made_on_main(sharded and model.role != "g" and not model.start_from):  # these look at the values
        regressor, recipe = build_regressor(model), RECIPES[model.role]
    if model.start_from:
        strict_load(regressor, trained_part(model.start_from, model.role, config).state_dict(), model.start_from)
    if model.role != "g":
        return recipe(config, regressor, latent_space)
    if not model.f_ckpt_path:
        raise UserError("training the diffusion needs model.f_ckpt_path: the run folder or file of a trained flow")
    parts = {"f": model.f_ckpt_path, "d": model.d_ckpt_path}
    networks = {role: trained_part(path, role, config) for role, path in parts.items() if path}
    return DiffusionRecipe(config, regressor, latent_space, networks["f"], networks.get("d"))


def trained_part(path: str, role: str, config: FlowPredConfig) -> Regressor:
    """A trained network of the same latents, such as the flow under a diffusion. Raises UserError."""
    own = config.model
    part = read_component(path, role, dataclasses.replace(own, func=FUNCTIONS.get(role, role)))
    if part.stored.config is not None and part.moments != (own.latent_mean, own.latent_std):
        raise UserError(
            f"{path}: was trained on latents of mean {part.moments[0]} and std {part.moments[1]}, this run has "
            f"{own.latent_mean} and {own.latent_std}; give all components the same latent_mean and latent_std"
        )
    return part.network


def measure_latents(
    config: FlowPredConfig, autoencoder: nn.Module, data: Dataset, run_dir: Path
) -> tuple[list[float] | None, list[float] | None]:
    """latent_mean and latent_std as numbers. "auto" is measured once, and read from the run folder ever after."""
    wanted = (config.model.latent_mean, config.model.latent_std)
    if "auto" not in wanted:
        return wanted
    path = run_dir / "config.yaml"
    model = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {}) if path.is_file() else {}
    stored = (model.get("latent_mean"), model.get("latent_std"))
    if not all(isinstance(value, list) for value in stored):
        if isinstance(data, LatentClips | EncodedLatents):
            stored = data.moments()
        else:
            first = islice(range(len(data)), MEASURED_CLIPS)
            moments = moments_of(autoencoder, (normalize(data[index]) for index in first))
            stored = moments.mean(), moments.std()
    return tuple(found if value == "auto" else value for value, found in zip(wanted, stored, strict=True))


def prepare(
    config: FlowPredConfig, run_dir: Path, seed: int, sharded: bool = False
) -> tuple[PredictorRecipe, Dataset, Dataset | None]:
    """Recipe, training data and validation data; sets the latent moments in `config`."""
    torch.manual_seed(seed)
    name_tokenizer(config)
    autoencoder = build_autoencoder(config.model.autoencoder)
    data, validation = open_data(config, seed)
    if isinstance(data, LatentClips | EncodedLatents):
        data.check(autoencoder)
    if config.model.classes == "auto":
        config.model.classes = list(classes_of(data))
    config.model.latent_mean, config.model.latent_std = measure_latents(config, autoencoder, data, run_dir)
    latent_space = LatentSpace(autoencoder, config.model.latent_mean, config.model.latent_std)
    check_latents(config, latent_space, data)
    texts = pooled_texts(config.data.texts, config.model.classes) if config.data.texts else None
    if texts is not None:
        config.model.text_width = texts.shape[1]
    recipe = build_recipe(config, latent_space, sharded)
    if config.model.classes:
        if config.data.texts:
            recipe.networks["regressor"].class_code.texts.copy_(texts)
        data = LabelledClips(data, config.model.classes)
        validation = None if validation is None else LabelledClips(validation, config.model.classes)
    if config.model.diffusion_start == "residual" and isinstance(recipe, DiffusionRecipe):
        recipe.start_at_residual(data)  # a run that continues loads its weights afterwards
    return recipe, data, validation


def name_tokenizer(config: FlowPredConfig) -> None:
    """Let latents of scripts/encode.py say which tokenizer made them, unless the configuration names a tokenizer."""
    folder, autoencoder = config.data.latents, config.model.autoencoder
    if folder and is_encoded(folder) and (autoencoder.get("type") != "tokenizer" or not autoencoder.get("ckpt_path")):
        config.model.autoencoder = {"type": "tokenizer", "ckpt_path": recorded_name(folder)}
        logger.info("the latents of %s are decoded by %s, which made them", folder, recorded_name(folder))


@torch.no_grad()
def check_latents(config: FlowPredConfig, latent_space: LatentSpace, data: Dataset) -> None:
    """Raises UserError before the training when latents and network do not fit together."""
    first, size, clock = data[0], config.model.vector_field_regressor, clock_of(latent_space)
    settings, given = config.training, config.training.condition_frames
    latent_frames(clock, given, "training.condition_frames: a beginning")
    latent_frames(clock, given + settings.frames_to_generate, "training.condition_frames + frames_to_generate: a clip")
    if isinstance(first, dict):
        latents = first["latents"]
    else:
        clip = first if clock.time_factor > 1 else first[:, :1]
        latent_frames(clock, clip.shape[1], "data.frames_per_sample: a clip")
        latents = encode_clip(latent_space, normalize(clip)[None])[0]
    shape = tuple(latents.shape[1:])
    if clock.time_factor > 1 and len(latents) < settings.num_observations:
        raise UserError(
            f"clips of data.frames_per_sample {config.data.frames_per_sample} frames have {len(latents)} latents, "
            f"fewer than training.num_observations {settings.num_observations}, which counts latents"
        )
    expected = (size.state_size, *size.state_res)
    if shape != expected:
        raise UserError(
            f"the autoencoder's latents are {shape} and the network is made for {expected}: "
            "set model.vector_field_regressor.state_size and state_res"
        )


def pooled_texts(folder: str, captions: Sequence[str]) -> Tensor:
    """The mean of each caption's cached embeddings (captions, width), over the tokens that its mask keeps.

    The files are those that trainings of vvae cache (`CaptionCache`). Raises UserError for a caption that has none.
    """
    from vvae.src.modules.t5 import CaptionCache, VVAEError

    rows = []
    for caption in captions:
        try:
            embeddings, mask = CaptionCache(folder).get(caption)  # (L, width), (L,)
        except VVAEError as error:
            raise UserError(f"caption {caption!r}: {error}") from error
        weight = mask.to(embeddings)[:, None]
        rows.append((embeddings * weight).sum(0) / weight.sum().clamp_min(1))
    return torch.stack(rows).float()


def write_final(run_dir: Path, recipe: PredictorRecipe, config: FlowPredConfig, step: int) -> Path:
    """Write checkpoints/final_step_<step>.pth: {"model", "global_step"}, averaged weights where there are any.

    "model" holds the trained network, the frozen autoencoder, and the frozen networks under a diffusion.
    """
    model = prefixed(REGRESSOR, read_weights(run_dir).network("regressor"))
    kind = config.model.autoencoder.get("type", "")
    if kind != "tokenizer":  # which stays where it is, under the name that the configuration has for it
        model |= prefixed(AUTOENCODER_PREFIX.get(kind, "ae."), inner(recipe.latent_space.autoencoder).state_dict())
    if isinstance(recipe, DiffusionRecipe):
        for letter, network in (("f", recipe.flow), ("d", recipe.denoiser)):
            if network is not None:
                model |= prefixed(f"{letter}.{REGRESSOR}", network.state_dict())
    path = run_dir / "checkpoints" / f"final_step_{step}.pth"
    state = {"model": {key: value.cpu() for key, value in model.items()}, "global_step": step}
    write_file(path, lambda file: torch.save(state, file))
    return path


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}
