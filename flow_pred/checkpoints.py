"""Weights from our own checkpoints and from the original's, which hold a frozen autoencoder and other networks too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from training.checkpoint import load_checkpoint, migrate, read_tensors
from videodata.errors import UserError

Weights = dict[str, Tensor]
REGRESSOR = "vector_field_regressor."
AUTOENCODER_PREFIX = {"ours": "ae.backbone.", "ldm-vq": "ae.", "sd-vae-ft-mse": "ae.backbone."}
WHENCE = {
    "ours": "scripts/train_flow_autoencoder.py makes one",
    "ldm-vq": "scripts/train_vqgan.py --ldm NAME makes one, latent diffusion published others",
}
NOT_WEIGHTS = ("loss.",)  # perceptual loss and discriminator in files of VQGAN trainings


@dataclass
class Stored:
    """What a file holds: the weights of its networks by name, and the configuration where it has one."""

    source: str
    networks: dict[str, Weights]
    config: dict[str, Any] | None = None
    recipe: str | None = None  # of a training of ours

    def network(self, name: str) -> Weights:
        """The weights of one network. Raises UserError naming those that are there."""
        if name not in self.networks:
            raise UserError(f"{self.source}: holds no {name}, only {', '.join(self.networks) or 'nothing known'}")
        return self.networks[name]


def read_weights(path: str | Path, autoencoder: str = "ldm-vq") -> Stored:
    """Networks "regressor", and where the file has them "autoencoder", "flow" and "denoiser".

    path: a run folder, a checkpoint or weights file of ours (averaged weights where there are any), or a file of the
    original with or without the `module.` prefix of distributed training. autoencoder: the type of the original's.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors" or not path.is_file():
        return from_ours(load_checkpoint(path), path)
    state = read_tensors(path)
    if "networks" in state:
        return from_ours(migrate(state, path), path)
    return Stored(str(path), split_original(original_weights(state, path), autoencoder))


def from_ours(state: dict[str, Any], source: Path) -> Stored:
    """A training state of ours."""
    networks = {**state["networks"], **state.get("ema", {})}
    return Stored(str(source), networks, state.get("config"), state.get("recipe"))


def original_weights(state: dict[str, Any], source: Path) -> Weights:
    """The state dict of a foreign file, without `module.` and without what is no weight of the model."""
    for name in ("model", "state_dict"):
        if isinstance(state.get(name), dict):
            state = state[name]
    named = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    tensors = {key.removeprefix("module."): value for key, value in named.items()}
    if not tensors:
        raise UserError(f"{source}: holds no weights; expected a state dict under 'model' or 'state_dict'")
    return {key: value for key, value in tensors.items() if not key.startswith(NOT_WEIGHTS)}


def split_original(weights: Weights, autoencoder: str) -> dict[str, Weights]:
    """Weights of the original's video model by network."""
    prefixes = {
        "regressor": REGRESSOR,
        "autoencoder": AUTOENCODER_PREFIX.get(autoencoder, "ae."),
        "flow": "f." + REGRESSOR,
        "denoiser": "d." + REGRESSOR,
    }
    parts = {name: below(weights, prefix) for name, prefix in prefixes.items()}
    return {name: part for name, part in parts.items() if part}


def below(weights: Weights, prefix: str) -> Weights:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def autoencoder_weights(path: str | Path, kind: str) -> Weights:
    """Weights of an autoencoder: from a training of ours, a file of its own, or a video model that contains it."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such autoencoder checkpoint; {WHENCE[kind]}, or name one in ckpt_path")
    foreign = path.is_file() and path.suffix != ".safetensors"
    state = read_tensors(path) if foreign else load_checkpoint(path)
    if "networks" in state:
        networks = from_ours(migrate(state, path) if foreign else state, path).networks
        return networks.get("autoencoder") or Stored(str(path), networks).network("model")  # of our VQGAN
    weights = original_weights(state, path)
    return below(weights, AUTOENCODER_PREFIX.get(kind, "ae.")) or weights
