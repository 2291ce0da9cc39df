"""Trained predictors from their files: a component by its run folder or file, a predictor from its components."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flow_pred.autoencoder import SETTINGS, build_autoencoder
from flow_pred.checkpoints import Stored, read_weights
from flow_pred.config import FlowPredConfig, ModelConfig, alias, load_config, same_run, stored_config
from flow_pred.conv_backbone import ConvRegressor
from flow_pred.latents import LatentPredictor, LatentSpace
from flow_pred.neural_sde import NeuralSDE
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import RiverPredictor
from training import config as yaml_files
from training.checkpoint import load_checkpoint, model_settings, strict_load
from training.config import from_dict
from training.pretrained import parts_beside
from training.tokenizer import FrameTokenizer, Kind, recipe_of, run_of_tokenizer
from videodata.errors import UserError

Regressor = VectorFieldRegressor | ConvRegressor
AUTOENCODER_RECIPE = "flow_pred_autoencoder"  # of a training of `ours`
Files = tuple[str | None, str | None]  # of a component: its run folder or weights, its configuration file
TOKENIZERS = {name: SETTINGS[name] for name in ("ours", "sd-vae-ft-mse", "identity")}
PROBE = 64  # side of the frame that an autoencoder is asked the size of its latents with


@dataclass
class Component:
    """One trained network and what its file says about it."""

    network: Regressor
    model: ModelConfig
    stored: Stored
    config: dict[str, Any]  # plain, complete

    def autoencoder_file(self, path: str | None = None) -> str | None:
        """Where its autoencoder's weights lie: `path`, else inside its own file (None), else what is on record."""
        if path is None and "autoencoder" in self.stored.networks:
            return None
        return path or self.model.autoencoder.get("ckpt_path") or self.config.get("checkpoints", {}).get("autoencoder")

    def latent_space(self, path: str | None = None) -> LatentSpace:
        """The latent space that it was trained in; `path` as for `autoencoder_file`."""
        module = build_autoencoder({**self.model.autoencoder, "ckpt_path": self.autoencoder_file(path)})
        if path is None and "autoencoder" in self.stored.networks:
            strict_load(inner(module), self.stored.networks["autoencoder"], self.stored.source)
        mean, std = (value if isinstance(value, list) else None for value in self.moments)
        return LatentSpace(module, mean, std)

    @property
    def moments(self) -> tuple[Any, Any]:
        return self.model.latent_mean, self.model.latent_std


def inner(module: nn.Module) -> nn.Module:
    """The module whose keys a stored autoencoder has."""
    return module.backbone if hasattr(module, "backbone") else module


def build_regressor(model: ModelConfig) -> Regressor:
    """The network of a configuration."""
    size = dataclasses.asdict(model.vector_field_regressor)
    river = model.role == "river"
    options = {
        "role": model.role,
        "reference": model.reference,
        "condition": model.condition if river else "random",
        "num_input_frames": model.num_input_frames if not river or model.condition == "last" else None,
        "classes": len(model.classes),
        "text_width": model.text_width,
    }
    if size.pop("backbone") == "transformer":
        return VectorFieldRegressor(**size, **options)
    size = {key: value for key, value in size.items() if key not in ("mid_depth", "out_norm")}
    return ConvRegressor(**size, **options)


def load_component(checkpoint: str | Path | None, config: str | Path | None, role: str) -> Component:
    """A network of the given role by its run folder or file, its configuration file, or both.

    A configuration alone stands for the run folder that training with it writes. Files of the original need both.
    """
    if config is None:
        return read_component(checkpoint, role)
    settings, plain = load_config(config)
    return read_component(checkpoint or default_run(settings.name, config), role, settings.model, plain)


def read_component(
    checkpoint: str | Path | None, role: str, model: ModelConfig | None = None, plain: dict[str, Any] | None = None
) -> Component:
    """A network from a file; `model` says what a file of the original holds. Raises UserError."""
    if checkpoint is None:
        raise UserError(f"component {role}: give its checkpoint or its configuration")
    stored = read_stored(checkpoint, model.autoencoder.get("type", "") if model else "")
    if stored.config is not None:
        check_kind(checkpoint, stored)
        model, plain = from_dict(ModelConfig, model_settings(stored.config, checkpoint)), stored.config
    if model is None:
        remedy = "name its configuration file too, or for a training of ours its run folder"
        raise UserError(f"{checkpoint}: has no configuration in it; {remedy}")
    if model.role != role:
        raise UserError(f"{checkpoint}: is a network of func {model.func}, not of component {role}")
    network = build_regressor(model)
    strict_load(network, stored.network("regressor"), checkpoint)
    return Component(network.eval(), model, stored, plain or {})


def read_stored(checkpoint: str | Path, autoencoder: str = "") -> Stored:
    """What a checkpoint holds; a file of the original's form in a run folder has the configuration of that run."""
    path = documented(checkpoint)
    beside = path.parent.parent / "config.yaml"
    if path.match("checkpoints/final_step_*.pth") and beside.is_file():
        config = yaml_files.load_config(beside)
        under = model_settings(config, beside).get("autoencoder")
        stored = read_weights(path, under.get("type", "") if isinstance(under, dict) else "")
        return dataclasses.replace(stored, config=config)
    return read_weights(path, autoencoder)


def check_kind(checkpoint: str | Path, stored: Stored) -> None:
    """Raises UserError for a run of another model."""
    model = (stored.config or {}).get("model")
    if not isinstance(model, dict) or "func" not in model:
        kind = f"of {stored.recipe}" if stored.recipe else "of another model"
        raise UserError(f"{checkpoint}: is a run {kind}, not of a video predictor; name a run of train_flow_pred.py")


def load_autoencoder(
    checkpoint: str | Path, device: torch.device | str = "cpu"
) -> tuple[nn.Module, dict[str, Any]] | None:
    """A trained autoencoder of type `ours` in eval mode, and the configuration of its run; None for another network."""
    stored = read_stored(checkpoint)
    if stored.recipe != AUTOENCODER_RECIPE:
        return None
    module = build_autoencoder(stored.config["model"])
    strict_load(module, stored.network("autoencoder"), checkpoint)
    return module.to(device), stored.config


def documented(path: str | Path) -> Path:
    """The path; where a documented `<run>/checkpoints/final_step_<n>.pth` is not there, its run folder."""
    found = Path(path)
    if found.exists() or not found.match("checkpoints/final_step_*.pth"):
        return same_run(found)
    folder = same_run(found.parent.parent)
    file = folder / "checkpoints" / found.name
    return file if file.exists() else folder if (folder / "checkpoints").is_dir() else found


def default_run(name: str, config: str | Path) -> Path:
    """Run folder of a configuration: runs/<name>_run-<what follows the name in the file's name>."""
    run_name = alias(Path(config)).stem.removeprefix(f"{name}_")
    return Path("runs") / f"{name}_run-{run_name}"


def role_of(checkpoint: str | Path, config: str | Path | None) -> str:
    """What a file holds: river, f, d or g. Raises UserError where neither it nor its configuration file says so."""
    if config is not None:
        return load_config(config)[0].model.role
    stored = read_stored(checkpoint)
    if stored.config is None:
        raise UserError(f"{checkpoint}: has no configuration in it; name its file with --config")
    check_kind(checkpoint, stored)
    return from_dict(ModelConfig, model_settings(stored.config, checkpoint)).role


@dataclass
class Loaded:
    """A predictor, the configuration of its first component, and the runs or files that it comes from."""

    predictor: LatentPredictor
    config: FlowPredConfig
    runs: tuple[str, ...]  # of its components, and of the autoencoder under them


def load_model(
    path: str | Path | Mapping[str, Files],
    device: torch.device | str = "cpu",
    autoencoder: str | None = None,
    alpha: float | None = None,
    diffusion_scale: float | None = None,
) -> Loaded:
    """A trained predictor: by the run folder or file of a RIVER, or of a flow alone; or by the files of its components,
    RIVER from those of "river", a neural SDE from those of "f", and where given of "d" and "g".

    autoencoder: the checkpoint of another one than that on record. alpha, diffusion_scale: as for NeuralSDE; None: as
    the configuration says. Raises UserError.
    """
    files = path if isinstance(path, Mapping) else {role_of(path, None): (str(path), None)}
    files = {**files, **parts_of_sde(files)}
    named = {role for role, pair in files.items() if any(pair)}
    if ("river" in named) == bool(named & set("fdg")):
        raise UserError("name either a RIVER, or the parts of a neural SDE: its flow, and where wanted d and g")
    if "river" in named:
        predictor, first = load_river(*files["river"], device, autoencoder)
        parts = {"river": first}
    else:
        predictor, parts = load_neural_sde(files, device, autoencoder)
    role, first = next(iter(parts.items()))
    named_config = files[role][1]
    config = load_config(named_config)[0] if named_config else stored_config(first.config)
    if isinstance(predictor, NeuralSDE):
        predictor.alpha = config.evaluation.alpha if alpha is None else alpha
        predictor.diffusion_scale = config.evaluation.diffusion_scale if diffusion_scale is None else diffusion_scale
    runs = [*(part.stored.source for part in parts.values()), run_of(first, autoencoder)]
    return Loaded(predictor, config, tuple(run for run in runs if run))


def run_of(component: Component, autoencoder: str | None) -> str | None:
    """The run folder or file of the autoencoder under a component."""
    path = component.autoencoder_file(autoencoder)
    is_tokenizer = component.model.autoencoder.get("type") == "tokenizer"
    return run_of_tokenizer(path) if path and is_tokenizer else path


def parts_of_sde(files: Mapping[str, Files]) -> dict[str, Files]:
    """The denoiser and the diffusion that lie in one file with a flow of weights/, unless others are named."""
    flow = files.get("f", (None, None))[0]
    beside = parts_beside(flow) if flow else {}
    return {role: (str(beside[role]), None) for role in "dg" if role in beside and not any(files.get(role, ()))}


def load_river(
    checkpoint: str | None, config: str | None, device: torch.device | str, autoencoder: str | None = None
) -> tuple[RiverPredictor, Component]:
    """A RIVER predictor with its autoencoder."""
    component = load_component(checkpoint, config, "river")
    model = component.model
    space = component.latent_space(autoencoder)
    predictor = RiverPredictor(component.network, space, model.sigma, model.prediction, model.classes)
    return predictor.to(device).eval(), component


def load_neural_sde(
    files: Mapping[str, Files],
    device: torch.device | str,
    autoencoder: str | None = None,
) -> tuple[NeuralSDE, dict[str, Component]]:
    """A neural SDE from the files of "f", and where given of "d" and "g", with its autoencoder."""
    parts = {
        role: load_component(*files[role], role) for role in "fdg" if files.get(role, (None, None)) != (None, None)
    }
    if "f" not in parts:
        raise UserError("the neural SDE needs its flow: its run folder or file, or its configuration")
    flow = parts["f"]
    for role, part in parts.items():
        if part.moments != flow.moments:
            raise UserError(f"component {role} was trained on latents of another normalisation than the flow")
    sde = NeuralSDE(
        flow.network,
        parts["d"].network if "d" in parts else None,
        parts["g"].network if "g" in parts else None,
        flow.model.num_input_frames,
        tuple(parts["g"].model.logit_range) if "g" in parts else (-9.0, 1.0),
        autoencoder=flow.latent_space(autoencoder),
    )
    return sde.to(device).eval(), parts


def tokenizer_type(path: Path) -> str | None:
    """What `training.tokenizer` asks: "ours" for a run folder or file of a trained autoencoder of that type."""
    return "ours" if recipe_of(path) == "flow_pred_autoencoder" else None


def build_tokenizer(type: str, path: Path | None, kind: Kind | None, settings: Mapping[str, Any]) -> FrameTokenizer:
    """An autoencoder as a tokenizer of frames; a training of ours knows its settings. Raises UserError."""
    options = dict(settings)
    if type == "ours" and not options:
        options = {key: value for key, value in load_checkpoint(path)["config"]["model"].items() if key != "type"}
    module = build_autoencoder({"type": type, "ckpt_path": None if path is None else str(path), **options})
    with torch.no_grad():
        channels, side = module.encode(torch.zeros(1, 3, PROBE, PROBE)).shape[1:3]
    return FrameTokenizer(
        module, "latents", channels, encode_frames=module.encode, decode_frames=module.decode,
        space_factor=PROBE // side,
    )  # fmt: skip
