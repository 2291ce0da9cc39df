"""Models by configuration, and models from files: ours, bare weights, and published ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import load_checkpoint, newest_checkpoint
from training.config import unknown_key
from training.device import resolve_device
from training.files import sha256_of, write_file
from training.strict_load import strict_load
from videodata.errors import UserError
from vqgan.config import VQGANConfig, check_range
from vqgan.ldm import LDMVQModel, read_tensors, state_dict_in
from vqgan.model import VQGAN, Discriminator

FORMAT = "vqgan-weights"
VQGAN_KEYS = tuple(VQGANConfig.__dataclass_fields__)
LDM_KEYS = ("ddconfig", "n_embed", "embed_dim", "commitment_cost")
REMOVED_KEYS = ("attention_factors",)  # files of earlier versions hold it, empty
GRID = {"patch_size": 80, "num_patches_h": 3, "num_patches_w": 4}  # 240x320 frames, as the original cuts them
Model = VQGAN | LDMVQModel


def build_model(config: Mapping[str, Any]) -> Model:
    """VQGAN for `type: vqgan`, LDMVQModel for `type: ldm`; the other keys are their arguments. Raises UserError."""
    values = {key: value for key, value in config.items() if key != "type" and (value or key not in REMOVED_KEYS)}
    kinds = {"vqgan": (VQGAN, VQGAN_KEYS), "ldm": (LDMVQModel, LDM_KEYS)}
    kind = config.get("type", "vqgan")
    if kind not in kinds:
        raise unknown_key(str(kind), kinds, "model type")
    network, known = kinds[kind]
    for key in values:
        if key not in known:
            raise unknown_key(f"model.{key}", [f"model.{name}" for name in known])
    try:
        return network(**values)
    except TypeError as error:
        raise UserError(f"model configuration: {error}") from error


def model_config(model: Model) -> dict[str, Any]:
    """The configuration from which `build_model` makes the same network."""
    return {"type": "ldm" if isinstance(model, LDMVQModel) else "vqgan", **model.configuration()}


def save_model(path: Path, network: nn.Module, **facts: Any) -> None:
    """Write a network's weights with `facts` (plain values, such as config and metrics) as one file."""
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: torch.save({"format": FORMAT, "state_dict": state, **facts}, file))


def load_model(path: str | Path, config: Mapping[str, Any] | None = None) -> Model:
    """The model of a file that `save_model` wrote, of a training checkpoint or of a run folder, in eval mode.

    For bare weights and published files, `config` says what they are. Raises UserError.
    """
    path = Path(path)
    state, stored = read_model(path)
    config = stored or config
    if config is None:
        raise UserError(f"{path}: holds weights without a configuration; give the model's flags, such as --hidden_dims")
    model = build_model(config)
    strict_load(model, state, path)
    return model.eval()


def load_discriminator(path: str | Path, discriminator: Discriminator) -> None:
    """Load what `save_model` wrote for a discriminator, or its bare weights. Raises UserError."""
    strict_load(discriminator, read_model(Path(path))[0], path)


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """(state dict, configuration or None) of any file with a model's weights. Raises UserError."""
    if path.is_dir() or path.suffix == ".safetensors":
        return from_checkpoint(load_checkpoint(path), path)
    content = read_tensors(path)
    if "recipe" in content:
        return from_checkpoint(load_checkpoint(path), path)
    state = state_dict_in(content, path)
    config = content.get("config") if content.get("format") == FORMAT else None
    return state, config.get("model") if config else None


def from_checkpoint(checkpoint: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generator of a training checkpoint, averaged where there are averages."""
    networks = {**checkpoint["networks"], **checkpoint["ema"]}
    if "model" not in networks or not str(checkpoint["recipe"]).startswith("vqgan"):
        raise UserError(f"{path}: is a checkpoint of {checkpoint['recipe']!r}, not of a VQGAN")
    return networks["model"], checkpoint["config"]["model"]


def stored_data(path: Path) -> dict[str, Any]:
    """What a model's file says about its training data (patch_size, ...); {} for bare weights. Raises UserError."""
    if path.is_dir() or path.suffix == ".safetensors":
        return load_checkpoint(path)["config"].get("data", {})
    return (read_tensors(path).get("config") or {}).get("data", {})


def model_identity(path: Path) -> str:
    """SHA-256 of a model's file, or of the newest checkpoint of a run folder. Raises UserError."""
    if path.is_dir():
        newest = newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise UserError(f"{path}: holds no valid checkpoint; train first, or name a file")
        return newest.manifest["sha256"]
    return sha256_of(path)


def open_model(args: argparse.Namespace) -> Model:
    """The model that the flags of `add_model_arguments` name, on its device, in eval mode. Raises UserError."""
    names = [entry.name for entry in fields(VQGANConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    settle_device(args)
    model = load_model(args.checkpoint, {"type": "vqgan", **given} if given else None)
    return model.to(resolve_device(args.device))


def settle_device(args: argparse.Namespace) -> None:
    """Let --no_cuda and --gpu have their say: afterwards `args.device` alone counts."""
    if args.no_cuda:
        args.device = "cpu"
    elif args.device == "auto" and args.gpu and torch.cuda.is_available():
        args.device = f"cuda:{args.gpu}"


def settle_grid(args: argparse.Namespace) -> tuple[int, int]:
    """Fill in the grid that the flags leave open: that of the training, else the documented one; gives (rows, columns).

    Raises UserError for a side that is not positive.
    """
    stored = stored_data(Path(args.checkpoint))
    for name, documented in GRID.items():
        if getattr(args, name) is None:
            setattr(args, name, stored.get(name, documented))
    check_range(args, GRID, 1)
    return args.num_patches_h, args.num_patches_w
