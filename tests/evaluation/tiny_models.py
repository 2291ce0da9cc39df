"""Every model of the project with random weights, as small as it can be, stored as its training stores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from flow_pred.autoencoder import build_autoencoder
from flow_pred.config import parse_config
from flow_pred.files import build_regressor
from lvt import config as lvt_config
from lvt.files import build_transformer, build_vqvae
from tests.flow_pred.tiny import tiny_values
from tests.tokenizer3d.tiny import tiny as tiny_tokenizer3d
from tests.video_vae.tiny import TINY, tiny_network
from training.checkpoint import weights_path, write_weights
from video_vae.config import PriorConfig
from video_vae.prior import LatentPrior
from vqgan import VQGAN, LDMVQModel
from vqgan.files import Model, model_config, save_model
from vvae import AutoencoderKL2plus1D_1dcnn

LVT = Path(__file__).resolve().parents[2] / "configs" / "lvt"
CODES = 8
OURS = {  # the autoencoder of flow_pred: latents of one place for 8x8 pixels
    "space_to_depth": 4, "quantize": False,
    "encoder": {"in_channels": 3, "out_channels": 4, "width": 8, "levels": 1},
    "decoder": {"in_channels": 4, "out_channels": 3, "width": 8, "levels": 1},
}  # fmt: skip
LDM = {
    "z_channels": 4,
    "resolution": 64,
    "ch": 32,
    "ch_mult": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (),
}
Side = tuple[int, int]


def write_run(folder: Path, recipe: str, config: dict[str, Any], **networks: nn.Module) -> str:
    """A run folder with the weights and the configuration of a training; gives its path."""
    states = {name: {key: value.contiguous() for key, value in n.state_dict().items()} for name, n in networks.items()}
    state = {"recipe": recipe, "step": 1, "config": config, "networks": states, "ema": {}}
    write_weights(weights_path(folder / "checkpoints", 1), state)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def video_vae(folder: Path, frames: int, size: Side) -> list[str]:
    settings = {**TINY, "image_size": list(size)}
    config = {"model": settings, "data": {"frames": frames, "stride": 1}}
    run = write_run(folder / "vae", "video_vae", config, vae=tiny_network(image_size=list(size)))
    return ["video_vae", "--checkpoint", run]


def vqgan(folder: Path, model: Model) -> list[str]:
    save_model(folder / "model.pt", model, config={"model": model_config(model)})
    return ["vqgan", "--checkpoint", str(folder / "model.pt")]


def vvae(folder: Path) -> list[str]:
    torch.manual_seed(0)
    small = {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    model = AutoencoderKL2plus1D_1dcnn(ddconfig=small, ppconfig={"ch": 4, "hidden_channel": 32})
    model.freeze().save_pretrained(folder / "vvae")
    return ["vvae", "--checkpoint", str(folder / "vvae")]


def tokenizer3d(folder: Path) -> list[str]:
    tiny_tokenizer3d("488").save_pretrained(folder / "tokenizer3d")
    return ["tokenizer3d", "--checkpoint", str(folder / "tokenizer3d")]


def vqvae(folder: Path, size: Side) -> list[str]:
    keys = ["MODEL.ENCODER.NF", 16, "MODEL.GENERATOR.NF", 16, "MODEL.GENERATOR.IN_CHANNELS", 16, "INPUT.SIZE", size[0]]
    keys += ["MODEL.CODEBOOK.DIM", 16, "MODEL.CODEBOOK.SIZE", CODES, "MODEL.CODEBOOK.NUM", 1]
    config = lvt_config.load_config(LVT / "VQVAE_tiny.yaml", [str(word) for word in keys])
    torch.manual_seed(0)
    return ["lvt", "--checkpoint", write_run(folder / "vqvae", "lvt-vqvae", config, vqvae=build_vqvae(config))]


def lvt(folder: Path, frames: int, size: Side, classes: Sequence[str] = ()) -> list[str]:
    """A transformer of frames one by one over the VQ-VAE."""
    below = vqvae(folder, size)[-1]
    values = {
        **{"NC": 1, "NV": CODES, "D": 16, "DA": 8, "DE": 8, "KERNEL": (3, 3, 3), "STRIDE": (frames, 1, 1)},
        **{"BLOCKS_E": [[1, 2, 2]], "BLOCKS_D": [[1, 2, 2]], "N_HEAD_E": [1], "N_HEAD_D": [1]},
        **{"CLASS_NUM": len(classes), "CLASSES": list(classes), "TABLE_START": "matrix"},
    }
    keys = [word for key, value in values.items() for word in (f"MODEL.AUTOREGRESSIVE.VT.{key}", str(value))]
    config = lvt_config.load_config(LVT / "VT_tiny.yaml", [*keys, "INPUT.SIZE", str(size[0])])
    torch.manual_seed(0)
    run = write_run(folder / "lvt", "lvt-transformer", config, transformer=build_transformer(config))
    return ["lvt", "--checkpoint", run, "--vqvae", below]


def autoencoder(folder: Path, size: Side) -> list[str]:
    torch.manual_seed(0)
    model = {"type": "ours", **OURS}
    data = {"crop_size": size[0], "input_size": size[0]}
    config = {"model": model, "data": data}
    run = write_run(folder / "autoencoder", "flow_pred_autoencoder", config, autoencoder=build_autoencoder(model))
    return ["flow_pred", "--checkpoint", run]


def predictor(folder: Path, size: Side, stride: int, *funcs: str) -> list[str]:
    """The run folders of the components of a RIVER, or of a neural SDE, over the autoencoder."""
    below, runs = autoencoder(folder, size)[-1], []
    for func in funcs:
        torch.manual_seed(0)
        values = tiny_values(func, backbone="conv", autoencoder={"type": "ours", **OURS, "ckpt_path": below})
        values["model"]["vector_field_regressor"] |= {"state_size": 4, "state_res": [side // 8 for side in size]}
        values["data"] |= {"input_size": size[0], "crop_size": size[0], "skip_frames": stride - 1}
        values["model"]["num_input_frames"] = 1  # of a state: bair-1-15 gives one
        regressor = build_regressor(parse_config(values).model)
        runs.append(write_run(folder / func, "flow_pred", values, regressor=regressor))
    return ["--checkpoint", runs[0], *(["--diffusion", runs[1]] if runs[1:] else []), "--steps", "1"]


def river(folder: Path, frames: int, size: Side, stride: int = 1) -> list[str]:
    return ["river", *predictor(folder, size, stride, "river")]


def neural_sde(folder: Path, frames: int, size: Side, stride: int = 1) -> list[str]:
    return ["neural_sde", *predictor(folder, size, stride, "f_mse", "g")]


def video_vae_prior(folder: Path, frames: int, size: Side, classes: Sequence[str]) -> list[str]:
    """A video VAE with a second stage of classes."""
    words = video_vae(folder, frames, size)
    network = tiny_network(image_size=list(size))
    levels = [(level.latent_dim, *grid) for grid, level in network.levels(size)]
    sizes = {"width": 8, "depth": 1, "heads": 2, "directions": 2, "classes": list(classes), "of_step": 1}
    config = PriorConfig(levels, frames, size, **sizes)
    prior = LatentPrior(config)
    prior.fit(torch.randn(8, sum(c * h * w for c, h, w in levels)), torch.ones(sum(c * h * w for c, h, w in levels)))
    values = {**vars(config), "levels": [list(level) for level in levels], "size": list(size)}
    write_run(Path(words[-1]) / "prior", "video_vae_prior", {"model": values}, prior=prior)
    return [*words, "--prior_steps", "1"]


TOKENIZERS: dict[str, Callable[[Path, int, Side], list[str]]] = {  # of clips with so many frames of this size
    "video_vae": video_vae,
    "vqgan": lambda folder, frames, size: vqgan(folder, VQGAN((8, 16, 16, 16), 4, CODES, 8)),
    "LDM VQGAN": lambda folder, frames, size: vqgan(folder, LDMVQModel(LDM, CODES, 4)),
    "VQ-VAE of lvt": lambda folder, frames, size: vqvae(folder, size),
    "vvae": lambda folder, frames, size: vvae(folder),
    "tokenizer3d": lambda folder, frames, size: tokenizer3d(folder),
    "autoencoder of flow_pred": lambda folder, frames, size: autoencoder(folder, size),
}
PREDICTORS = {"river": river, "neural_sde": neural_sde}
GENERATORS = {"lvt": lvt, "video_vae": video_vae_prior}
