"""The weight files with documented names, `<stem>_epoch_<N>.pth`, and loading a network from any file of ours."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import load_checkpoint, read_state
from training.files import canonical, write_file
from training.strict_load import strict_load
from video_vae.config import VideoVAEConfig
from video_vae.model import TransformerNetwork
from videodata.errors import UserError

RECIPE = "video_vae"
FORMAT = 1
EPOCH_SUFFIX = re.compile(r"_epoch_(\d+)$")


@dataclass
class StoredModel:
    """What a weight file holds. `config` is None for a bare state dict."""

    weights: dict[str, Tensor]  # the averaged ones where there are averages
    trained: dict[str, Tensor]  # the ones that training continues from
    config: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    epoch: int | None = None


def split_model_path(path: Path) -> tuple[Path, int]:
    """`dir/name_epoch_7.pth` -> (dir/name, 7); `dir/name.pth` -> (dir/name, 0)."""
    stem = path.with_suffix("") if path.suffix in (".pth", ".pt") else path
    match = EPOCH_SUFFIX.search(stem.name)
    return (stem.with_name(stem.name[: match.start()]), int(match[1])) if match else (stem, 0)


def epoch_file(stem: Path, epoch: int) -> Path:
    """Where the weights of an epoch are written."""
    return stem.with_name(f"{stem.name}_epoch_{epoch}.pth")


def write_epoch_file(stem: Path, epoch: int, checkpoint: dict[str, Any]) -> Path:
    """Write the weights and the optimiser of a training state under the documented name, whole or not at all."""
    path = epoch_file(stem, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "recipe": RECIPE,
        "model": checkpoint["networks"]["vae"],
        "ema": checkpoint["ema"].get("vae"),
        "optimizer": checkpoint["optimizers"]["vae"],
        "epoch": epoch,
        "step": checkpoint["step"],
        "samples_seen": checkpoint["samples_seen"],
        "config": checkpoint["config"],
    }
    write_file(path, lambda file: torch.save(canonical(content), file))
    return path


def read_model(path: Path | str) -> StoredModel:
    """Weights from a run folder, a training checkpoint, `_epoch_<N>.pth`, .safetensors, or a bare state dict.

    Raises UserError in one line for anything else.
    """
    path = Path(path)
    if path.suffix == ".pth" and path.is_file():
        return parse_model_file(read_state(path), path)
    state = load_checkpoint(path)
    if state.get("recipe") != RECIPE or "vae" not in state["networks"]:
        raise UserError(f"{path}: is of recipe {state.get('recipe')!r}, not a video VAE")
    trained = state["networks"]["vae"]
    optimizer = state.get("optimizers", {}).get("vae")
    return StoredModel(state.get("ema", {}).get("vae", trained), trained, state["config"], optimizer)


def parse_model_file(content: dict[str, Any], path: Path) -> StoredModel:
    """The content of a .pth file: ours, or a bare state dict."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return StoredModel(content, content)
    if content.get("recipe") != RECIPE or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: neither a file of this trainer nor a state dict of a video VAE")
    if content.get("format", 0) > FORMAT:
        raise UserError(
            f"{path}: has format {content['format']}, this version reads up to {FORMAT}; update the project"
        )
    trained = content["model"]
    return StoredModel(content["ema"] or trained, trained, content["config"], content["optimizer"], content["epoch"])


def load_network(path: Path | str, device: torch.device | str = "cpu") -> tuple[TransformerNetwork, dict[str, Any]]:
    """The network in a weight file, in eval mode, and the complete configuration of its run.

    Raises UserError for a bare state dict, which does not say what it belongs to.
    """
    stored = read_model(path)
    if stored.config is None:
        raise UserError(f"{path}: holds weights without their configuration; name a run folder or an _epoch_<N>.pth")
    network = TransformerNetwork.from_config(stored.config["model"])
    strict_load(network, stored.weights, path)
    return network.to(device).eval().requires_grad_(False), stored.config


def model_settings(config: VideoVAEConfig) -> dict[str, Any]:
    """The configuration as plain types, as it is stored."""
    return {**asdict(config), "image_size": list(config.image_size)}
