"""The weight files with documented names, `<stem>_epoch_<N>.pth`, loading a network from any file of ours, and the
prior of the second stage, which lies in the run's folder or in one file with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import canonical, load_checkpoint, read_tensors, strict_load, write_weights
from training.config import from_dict
from training.state import weights_digest
from video_vae.config import PriorConfig
from video_vae.model import TransformerNetwork
from video_vae.prior import LatentPrior
from videodata.errors import UserError
from videodata.files import write_file

RECIPE, PRIOR_RECIPE = "video_vae", "video_vae_prior"
PRIOR_FOLDER = "prior"  # below the run's folder
COMPLETE = "model.safetensors"  # both stages
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
    if content.get("format", 0) > FORMAT:
        raise UserError(
            f"{path}: has format {content['format']}, this version reads up to {FORMAT}; update the project"
        )
    trained = content["model"]
    return Stored(content["ema"] or trained, trained, content["config"], content["optimizer"], content["epoch"])


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[TransformerNetwork, dict[str, Any]]:
    """The network in a weight file, in eval mode, and the complete configuration of its run.

    Raises UserError for a bare state dict, which does not say what it belongs to.
    """
    stored = read_weights(path)
    if stored.config is None:
        raise UserError(f"{path}: holds weights without their configuration; name a run folder or an _epoch_<N>.pth")
    network = TransformerNetwork.from_config(stored.config["model"])
    strict_load(network, stored.weights, path)
    return network.to(device).eval().requires_grad_(False), stored.config


def weights_id(network: TransformerNetwork) -> str:
    """What tells these weights from others: a prior knows which ones its latents are of."""
    return weights_digest(network.state_dict())[:16]


def load_prior(path: Path | str, network: TransformerNetwork, device: torch.device | str = "cpu") -> LatentPrior | None:
    """The second stage of the network that `load_model` read from the same path, in eval mode; None where it has none.

    Raises UserError for a run folder whose prior belongs to other weights. Beside a file of one of the run's other
    steps such a prior counts as none.
    """
    path = Path(path)
    stored = stored_prior(path)
    if stored is None:
        return None
    config = from_dict(PriorConfig, stored["config"]["model"])
    if config.weights_of != weights_id(network):
        if not path.is_dir():
            return None
        command = f"python scripts/train_video_vae_prior.py --checkpoint {path}"
        raise UserError(
            f"{path / PRIOR_FOLDER}: is the prior of earlier weights of this run; remove it and fit it again: {command}"
        )
    prior = LatentPrior(config)
    strict_load(prior, stored.get("ema", {}).get("prior") or stored["networks"]["prior"], path)
    return prior.to(device).eval().requires_grad_(False)


def stored_prior(path: Path) -> dict[str, Any] | None:
    """The training state of the prior that lies beside or in a weight file of a video VAE, if there is one."""
    if path.name == COMPLETE or (path.suffix == ".safetensors" and path.parent.name != "checkpoints"):
        state = load_checkpoint(path)
        found = "prior" in state["networks"]
        return {"config": {"model": state["config"]["prior"]}, "networks": state["networks"]} if found else None
    run = path if path.is_dir() else path.parent.parent
    folder = run / PRIOR_FOLDER
    return load_checkpoint(folder) if (folder / "checkpoints").is_dir() else None


def write_complete(run: Path) -> Path:
    """Write `model.safetensors`: the video VAE of a run and its prior, averaged where there are averages."""
    vae, prior = load_checkpoint(run), load_checkpoint(run / PRIOR_FOLDER)
    both = {
        **vae,
        "networks": {**vae["networks"], "prior": prior["networks"]["prior"]},
        "ema": {**vae["ema"], **prior["ema"]},
        "config": {**vae["config"], "prior": prior["config"]["model"]},
    }
    write_weights(run / COMPLETE, both)
    return run / COMPLETE
