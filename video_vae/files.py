"""The weight files with documented names, `<stem>_epoch_<N>.pth`, loading a network from any file of ours, and the
prior of the second stage, which is a run of its own in the run's folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import canonical, load_checkpoint, model_settings, read_tensors, strict_load
from training.config import from_dict
from video_vae.config import PriorConfig
from video_vae.model import TransformerNetwork
from video_vae.prior import LatentPrior
from videodata.errors import UserError
from videodata.files import write_file

RECIPE, PRIOR_RECIPE = "video_vae", "video_vae_prior"
PRIOR_FOLDER = "prior"  # below the run's folder
FORMAT = 1
EPOCH_SUFFIX = re.compile(r"_epoch_(\d+)$")


@dataclass
class Stored:
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


def run_of(path: Path) -> str | None:
    """The run folder of the training that wrote a file; None for a file that does not say."""
    config = read_weights(path).config or {}
    return config.get("engine", {}).get("run_dir")


def write_epoch_file(stem: Path, epoch: int, checkpoint: dict[str, Any]) -> Path:
    """Write the weights and the optimiser of a training state under the documented name, whole or not at all."""
    path = epoch_file(stem, epoch)
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


def read_weights(path: Path | str) -> Stored:
    """Weights from a run folder, a training checkpoint, `_epoch_<N>.pth`, .safetensors, or a bare state dict.

    Raises UserError in one line for anything else.
    """
    path = Path(path)
    if path.suffix == ".pth" and path.is_file():
        return parse_model_file(read_tensors(path), path)
    state = load_checkpoint(path)
    if state.get("recipe") != RECIPE or "vae" not in state["networks"]:
        raise UserError(f"{path}: is of recipe {state.get('recipe')!r}, not a video VAE")
    trained = state["networks"]["vae"]
    optimizer = state.get("optimizers", {}).get("vae")
    return Stored(state.get("ema", {}).get("vae", trained), trained, state["config"], optimizer)


def parse_model_file(content: dict[str, Any], path: Path) -> Stored:
    """The content of a .pth file: ours, or a bare state dict."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return Stored(content, content)
    if content.get("recipe") != RECIPE or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: neither a file of this trainer nor a state dict of a video VAE")
    facts = {"format": int, "config": dict, "epoch": int, "optimizer": dict, "ema": dict | None}
    for name, kind in facts.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: damaged, its {name} is no {getattr(kind, '__name__', 'dict')}; use another file")
    if content["format"] > FORMAT:
        raise UserError(
            f"{path}: has format {content['format']}, this version reads up to {FORMAT}; update the project"
        )
    trained = content["model"]
    return Stored(content.get("ema") or trained, trained, content["config"], content["optimizer"], content["epoch"])


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[TransformerNetwork, dict[str, Any]]:
    """The network in a weight file, in eval mode, and the complete configuration of its run.

    Raises UserError for a bare state dict, which does not say what it belongs to.
    """
    stored = read_weights(path)
    if stored.config is None:
        raise UserError(f"{path}: holds weights without their configuration; name a run folder or an _epoch_<N>.pth")
    network = TransformerNetwork.from_config(model_settings(stored.config, path))
    strict_load(network, stored.weights, path)
    return network.to(device).eval().requires_grad_(False), stored.config


def step_of(path: Path | str) -> int:
    """The training step of a run folder's newest checkpoint, or of one of its files."""
    return load_checkpoint(path)["step"]


def load_prior(path: Path | str, device: torch.device | str = "cpu") -> LatentPrior | None:
    """The second stage of the network that `load_model` reads from a run folder or one of its files, in eval mode.

    None where it has none, or none of this step. Raises UserError for a run folder whose prior is of an earlier step.
    """
    path = Path(path)
    run = path if path.is_dir() else path.parent.parent
    if path.suffix == ".pth" or not (run / PRIOR_FOLDER / "checkpoints").is_dir():
        return None
    stored = load_checkpoint(run / PRIOR_FOLDER)
    config = from_dict(PriorConfig, model_settings(stored["config"], run / PRIOR_FOLDER))
    step = step_of(path)
    if config.of_step != step and path.is_dir():
        command = f"python scripts/train_video_vae_prior.py --checkpoint {path}"
        raise UserError(
            f"{run / PRIOR_FOLDER}: is the prior of step {config.of_step} of this run, which is at step {step}; "
            f"remove it and fit it again: {command}"
        )
    if config.of_step != step:
        return None
    prior = LatentPrior(config)
    strict_load(prior, stored.get("ema", {}).get("prior") or stored["networks"]["prior"], run / PRIOR_FOLDER)
    return prior.to(device).eval().requires_grad_(False)
