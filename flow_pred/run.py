"""A training run from its configuration: autoencoder, data, networks, run folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset

from flow_pred.autoencoder import build_autoencoder
from flow_pred.checkpoints import AUTOENCODER_PREFIX, REGRESSOR, Weights, read_predictor
from flow_pred.config import FlowPredConfig
from flow_pred.files import build_regressor, inner, read_component
from flow_pred.latents import LatentClips, LatentSpace, moments_of
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.train import DenoiserRecipe, DiffusionRecipe, FlowRecipe, PredictorRecipe, RiverRecipe
from training.files import write_file
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.pixels import normalize

logger = logging.getLogger(__name__)

MEASURED_CLIPS = 64  # for latent_mean and latent_std: auto
RECIPES: dict[str, type[PredictorRecipe]] = {
    "river": RiverRecipe, "f": FlowRecipe, "d": DenoiserRecipe, "g": DiffusionRecipe,
}  # fmt: skip


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
            moments = moments_of(autoencoder, some_clips(data))
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


def some_clips(data: Dataset) -> Iterator[Tensor]:
    """The first clips of a data set, float."""
    return (normalize(data[index]) for index in islice(range(len(data)), MEASURED_CLIPS))


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


def plain_config(config: FlowPredConfig) -> dict[str, Any]:
    """The configuration for the run folder; paths that say where something lies stay out of the model's part."""
    values: dict[str, Any] = dataclasses.asdict(config)
    model = values["model"]
    where = {key: model.pop(key) for key in ("f_ckpt_path", "d_ckpt_path")}
    model["autoencoder"] = {key: value for key, value in model["autoencoder"].items() if key != "ckpt_path"}
    where["autoencoder"] = config.model.autoencoder.get("ckpt_path")
    return {**values, "checkpoints": where}


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
