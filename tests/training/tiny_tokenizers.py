"""Tokenizers of every type with random weights, stored as their trainings or publishers store them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from flow_pred import build_autoencoder
from lvt import config as lvt_config
from lvt.files import build_vqvae
from tests.conftest import ROOT
from tests.tokenizer3d.tiny import tiny
from training.checkpoint import weights_path, write_weights
from videodata.digits import Digits
from videodata.pixels import to_float
from vqgan import VQGAN, LDMVQModel
from vqgan.files import Model, model_config, save_model
from vvae import instantiate_from_config
from vvae.utils.common_utils import load_config as load_vvae_config

SIDE = 16
CODES = 12
LDM = {"z_channels": 2, "resolution": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
OURS = {
    "encoder": {"in_channels": 3, "out_channels": 4, "width": 4, "levels": 2},
    "decoder": {"in_channels": 4, "out_channels": 3, "width": 4, "levels": 2},
    "vector_quantizer": {"num_embeddings": 16, "embedding_dimension": 4},
}


def write_run(folder: Path, recipe: str, config: dict[str, Any], **networks: nn.Module) -> str:
    """A run folder with nothing but weights, as one of weights/ unpacks."""
    (folder / "checkpoints").mkdir(parents=True)
    states = {name: network.state_dict() for name, network in networks.items()}
    state = {"recipe": recipe, "step": 1, "config": config, "networks": states, "ema": {}}
    write_weights(weights_path(folder / "checkpoints", 1), state)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def digit_frames() -> torch.Tensor:
    """Frames (N, 3, SIDE, SIDE) in [-1, 1]."""
    digits = Digits(4, frames=4, size=SIDE)
    return torch.cat([to_float(digits.read(video)).movedim(1, 0) for video in range(4)])


def stored_vqgan(folder: Path, model: Model) -> str:
    """A file of `save_model`, its codes among the latents of digits."""
    with torch.no_grad():
        latents = model.quantizer.project(model.eval().latents(digit_frames()))
    model.quantizer.start(latents.flatten(0, -2), tokens=64)
    save_model(folder / "model.pt", model, config={"model": model_config(model)})
    return str(folder / "model.pt")


def stored_vqvae(folder: Path) -> str:
    pairs = ["MODEL.ENCODER.NF", "16", "MODEL.CODEBOOK.DIM", "16", "MODEL.GENERATOR.IN_CHANNELS", "16"]
    pairs += ["MODEL.CODEBOOK.SIZE", str(CODES), "MODEL.CODEBOOK.NUM", "2", "INPUT.SIZE", str(SIDE)]
    config = lvt_config.load_config(ROOT / "configs/lvt/VQVAE_tiny.yaml", pairs)
    model = build_vqvae(config)
    with torch.no_grad():
        model.quantizer.start_from(model.encoder(model.normalize(digit_frames())))
    return write_run(folder / "run", "lvt-vqvae", config, vqvae=model)


def stored_vvae(folder: Path) -> str:
    model = instantiate_from_config(load_vvae_config("config_tiny.yaml")["model"])
    model.save_pretrained(folder / "vvae")
    return str(folder / "vvae")


def stored_ours(folder: Path) -> str:
    module = build_autoencoder({"type": "ours", **OURS})
    return write_run(folder / "run", "flow_pred_autoencoder", {"model": {"type": "ours", **OURS}}, autoencoder=module)


def stored_tokenizer3d(folder: Path, **settings: Any) -> str:
    """A folder of `save_pretrained`."""
    tiny("444", **settings).save_pretrained(folder / "tokenizer3d")
    return str(folder / "tokenizer3d")


STORED: dict[str, Callable[[Path], str]] = {
    "vqgan": lambda folder: stored_vqgan(folder, VQGAN((8, 16, 16), 4, CODES, 4)),
    "ldm": lambda folder: stored_vqgan(folder, LDMVQModel(LDM, CODES, 2)),
    "lvt-vqvae": stored_vqvae,
    "vvae": stored_vvae,
    "ours": stored_ours,
    "kl": stored_tokenizer3d,
    "fsq": lambda folder: stored_tokenizer3d(folder, regularizer="fsq", z_channels=3, levels=(4, 4, 3)),
    "identity": lambda folder: "identity",
}


def store_tokenizer(kind: str, folder: Path) -> str:
    """What `open_tokenizer` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return STORED[kind](folder)
