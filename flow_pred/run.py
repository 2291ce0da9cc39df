"""The commands: a training run from its configuration (autoencoder, data, networks, run folder, the original's final
file), and the encoding of a data set.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from itertools import islice
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

from flow_pred.autoencoder import build_autoencoder
from flow_pred.checkpoints import AUTOENCODER_PREFIX, REGRESSOR, Weights, read_predictor
from flow_pred.config import FlowPredConfig, plain_config, read_config
from flow_pred.files import build_regressor, inner, read_component
from flow_pred.latents import LatentClips, LatentSpace, encode_latents, moments_of
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.train import DenoiserRecipe, DiffusionRecipe, FlowRecipe, PredictorRecipe, RiverRecipe
from training import TrainSettings, settings_from, train
from training.checkpoint import checkpoints_in
from training.device import resolve_device
from training.distributed import is_main, launched, print0
from training.files import write_file
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.pixels import normalize

logger = logging.getLogger(__name__)
MEASURED_CLIPS = 64  # for latent_mean and latent_std: auto
RECIPES: dict[str, type[PredictorRecipe]] = {
    "river": RiverRecipe, "f": FlowRecipe, "d": DenoiserRecipe, "g": DiffusionRecipe,
}  # fmt: skip


def train_flow_pred(args: argparse.Namespace) -> None:
    """What scripts/train_flow_pred.py does: train, or continue where the same command stopped."""
    config = configure(args)
    run_dir = args.runs / f"{config.name}_run-{args.run_name}"
    check_resume(run_dir, args.resume_step)
    if args.device == "auto":
        spread_over_gpus(args.num_gpus)
    recipe, data, validation = prepare(config, run_dir, args.seed)
    result = train(recipe, data, engine_settings(args, config, run_dir), plain_config(config), validation)
    if result.finished and is_main():
        path = write_final(run_dir, recipe, config, result.step)
        print0(f"{path}: step {result.step}", {name: round(value, 5) for name, value in result.metrics.items()})


def configure(args: argparse.Namespace) -> FlowPredConfig:
    """The configuration under the flags: those that were given replace its values."""
    config, _ = read_config(args.config, args.overrides)
    batching, optimizer = config.training.batching, config.training.optimizer
    for part, key, value in (
        (batching, "batch_size", args.batch_size),
        (batching, "num_workers", args.workers),
        (optimizer, "num_warmup_steps", args.warmup_steps),
        (optimizer, "schedule", args.schedule),
    ):
        if value is not None:
            setattr(part, key, value)
    if args.vqvae_path:
        config.model.autoencoder["ckpt_path"] = args.vqvae_path
    return config


def engine_settings(args: argparse.Namespace, config: FlowPredConfig, run_dir: Path) -> TrainSettings:
    """The training loop's settings: the flags', and those that the configuration decides."""
    batching, optimizer = config.training.batching, config.training.optimizer
    return dataclasses.replace(
        settings_from(args, run_dir, optimizer.num_training_steps),
        batch_size=batching.batch_size,
        workers=batching.num_workers,
        warmup_steps=optimizer.num_warmup_steps,
        schedule=optimizer.schedule,
        device="cpu" if args.num_gpus == 0 else args.device,
    )


def check_resume(run_dir: Path, step: int | None) -> None:
    """Raises UserError when the checkpoint to continue from is not the one that the run would continue from."""
    if step is None:
        return
    found = [checkpoint.step for checkpoint in checkpoints_in(run_dir / "checkpoints")]
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint to resume from; leave --resume-step out to start")
    if step not in (-1, found[0]):
        there = "is there" if step in found else "is not there"
        raise UserError(f"{run_dir}: step {step} {there}, but the newest is {found[0]}; use --resume-step -1, or move "
                        "the newer checkpoints away")  # fmt: skip


def spread_over_gpus(count: int | None) -> None:
    """Start one process per GPU in place of this one, where there are several GPUs and no launcher did it already."""
    available = torch.cuda.device_count()
    if count is not None and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available}; --num-gpus 0 trains on the CPU")
    count = available if count is None else count
    if count > 1 and not launched():
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def open_data(config: FlowPredConfig, split: str, seed: int) -> Dataset:
    """Clips of pictures, uint8, or of cached latents. Validation clips are fixed and not augmented."""
    data = config.data
    stride = data.skip_frames + 1
    if data.latents:
        if data.aug:
            raise UserError("data.aug needs pictures: cached latents cannot be augmented; set data.latents to null")
        return LatentClips(data.latents, split, data.frames_per_sample, stride, seed)
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


def build_recipe(config: FlowPredConfig, latent_space: LatentSpace) -> PredictorRecipe:
    """The recipe of a configuration; the diffusion's loads its flow, and its denoiser where there is one."""
    model = config.model
    regressor, recipe = build_regressor(model), RECIPES[model.role]
    if model.role != "g":
        return recipe(config, regressor, latent_space)
    if not model.f_ckpt_path:
        raise UserError("training the diffusion needs model.f_ckpt_path: the run folder or file of a trained flow")
    parts = {"f": model.f_ckpt_path, "d": model.d_ckpt_path}
    networks = {role: frozen_part(path, role, config) for role, path in parts.items() if path}
    return DiffusionRecipe(config, regressor, latent_space, networks["f"], networks.get("d"))


def frozen_part(path: str, role: str, config: FlowPredConfig) -> VectorFieldRegressor:
    """The flow or the denoiser under a diffusion. Raises UserError if it was trained on other latents."""
    own = config.model
    part = read_component(path, role, dataclasses.replace(own, func={"f": "f_nll", "d": "d"}[role]))
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
    stored = stored_moments(run_dir)
    if stored is None:
        if isinstance(data, LatentClips):
            stored = data.moments()
        else:
            first = islice(range(len(data)), MEASURED_CLIPS)
            moments = moments_of(autoencoder, (normalize(data[index]) for index in first))
            stored = moments.mean(), moments.std()
    return tuple(found if value == "auto" else value for value, found in zip(wanted, stored, strict=True))


def stored_moments(run_dir: Path) -> tuple[list[float], list[float]] | None:
    """The moments in the configuration of a run that exists."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return None
    model = yaml.safe_load(path.read_text()).get("model", {})
    mean, std = model.get("latent_mean"), model.get("latent_std")
    return (mean, std) if isinstance(mean, list) and isinstance(std, list) else None


def prepare(config: FlowPredConfig, run_dir: Path, seed: int) -> tuple[PredictorRecipe, Dataset, Dataset | None]:
    """Recipe, training data and validation data; sets the latent moments in `config`."""
    torch.manual_seed(seed)
    autoencoder = build_autoencoder(config.model.autoencoder)
    data = open_data(config, "train", seed)
    try:
        validation = open_data(config, "val", seed)
    except UserError as error:
        logger.warning("no validation: %s", error)
        validation = None
    if isinstance(data, LatentClips):
        data.check(autoencoder)
    config.model.latent_mean, config.model.latent_std = measure_latents(config, autoencoder, data, run_dir)
    latent_space = LatentSpace(autoencoder, config.model.latent_mean, config.model.latent_std)
    check_latents(config, latent_space, data)
    return build_recipe(config, latent_space), data, validation


@torch.no_grad()
def check_latents(config: FlowPredConfig, latent_space: LatentSpace, data: Dataset) -> None:
    """Raises UserError before the training when latents and network do not fit together."""
    first, size = data[0], config.model.vector_field_regressor
    if isinstance(first, dict):
        shape = tuple(first["latents"].shape[1:])
    else:
        shape = tuple(latent_space.encode(normalize(first[:, :1].transpose(0, 1))).shape[1:])
    expected = (size.state_size, *size.state_res)
    if shape != expected:
        raise UserError(
            f"the autoencoder's latents are {shape} and the network is made for {expected}: "
            "set model.vector_field_regressor.state_size and state_res"
        )


def encode_splits(args: argparse.Namespace) -> None:
    """What scripts/encode_latents.py does: write the latents of each split to a file of its own."""
    config, _ = read_config(args.config, args.overrides)
    settings = config.model.autoencoder
    autoencoder = build_autoencoder({**settings, "ckpt_path": args.vqvae_path or settings.get("ckpt_path")})
    for split in args.splits:
        path = encode_latents(
            autoencoder,
            config.data.data_root,
            split,
            args.out,
            size=config.data.crop_size,
            short_side=config.data.input_size,
            dtype=args.dtype,
            device=resolve_device(args.device),
        )
        print0(path)


def write_final(run_dir: Path, recipe: PredictorRecipe, config: FlowPredConfig, step: int) -> Path:
    """Write checkpoints/final_step_<step>.pth: {"model", "global_step"}, averaged weights where there are any.

    "model" holds the trained network, the frozen autoencoder, and the frozen networks under a diffusion.
    """
    model = prefixed(REGRESSOR, read_predictor(run_dir).network("regressor"))
    kind = config.model.autoencoder.get("type", "")
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
