"""The networks from and to files: the original's (.pth, {"model": ..., "iteration": ...}) and this project's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvt import config as configuration
from lvt.config import DOWNSAMPLING, is_transformer
from lvt.layers import initialize_convolutions
from lvt.transformer import VideoTransformer, drop_recomputable
from lvt.vqvae import NETWORKS, VQVAE
from training.checkpoint import load_checkpoint, migrate, read_tensors, strict_load
from training.tokenizer import (
    FrameTokenizer,
    Kind,
    Tokenizer,
    open_tokenizer,
    recipe_of,
    run_of_tokenizer,
    tokenizer_digest,
)
from videodata.errors import UserError
from videodata.files import write_file

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
MASK_KEY = "decoder.mask_embedding"  # which masked decoders alone have
WEIGHT_NODES = {"netE": "ENCODER", "netG": "GENERATOR", "netC": "CODEBOOK"}
TOKENIZERS = {"lvt-vqvae": ("config",)}


def build_vqvae(config: dict[str, Any]) -> VQVAE:
    """The VQ-VAE of a configuration, with fresh weights. Raises UserError for a file that is only a base."""
    channels = config["MODEL"]["ENCODER"]["IN_CHANNELS"]
    if channels != 3 or config["INPUT"]["FORMAT"] != "RGB":
        raise UserError("this configuration is only a base for others: frames need IN_CHANNELS 3 and INPUT.FORMAT RGB")
    model = VQVAE(config)
    initialize_convolutions(model, config["MODEL"]["INIT_TYPE"])
    return model


def build_transformer(config: dict[str, Any]) -> VideoTransformer:
    """The transformer of a configuration, with fresh weights."""
    node = config["MODEL"]
    model = VideoTransformer(node["AUTOREGRESSIVE"]["VT"], node["GRADIENT_CHECKPOINTING"])
    initialize_convolutions(model, node["INIT_TYPE"])
    return model


def load_model(
    path: str | Path, device: torch.device | str = "cpu", config_file: str | Path | None = None
) -> tuple[VQVAE | VideoTransformer, dict[str, Any]]:
    """The network of a run folder, or of a file whose configuration is `config_file`, in eval mode, and that
    configuration. Raises UserError.
    """
    file = Path(config_file or Path(path) / "config.yaml")
    if not file.is_file():
        raise UserError(f"{file}: no such configuration; name it with --config_file")
    config = configuration.load_config(file)
    for node in WEIGHT_NODES.values():
        config["MODEL"][node]["WEIGHTS"] = str(path)
    return load_configured(config).to(device).eval(), config


def load_configured(config: dict[str, Any]) -> VQVAE | VideoTransformer:
    """The network with the weights of MODEL.*.WEIGHTS, else those of the run in OUTPUT_DIR.

    Raises UserError when there are neither: random weights are never evaluated.
    """
    node, run_dir = config["MODEL"], Path(config["OUTPUT_DIR"])
    if is_transformer(config):
        return load_transformer_weights(build_transformer(config), node["GENERATOR"]["WEIGHTS"] or run_dir)
    model = build_vqvae(config)
    given = {name: node[key]["WEIGHTS"] for name, key in WEIGHT_NODES.items()}
    return load_vqvae_weights(model, given if any(given.values()) else run_dir)


def tokenizer_type(path: Path) -> str | None:
    """What `training.tokenizer` asks: "lvt-vqvae" for a run folder or file of a trained VQ-VAE."""
    return "lvt-vqvae" if recipe_of(path) == "lvt-vqvae" else None


def build_tokenizer(type: str, path: Path, kind: Kind | None, settings: Mapping[str, Any]) -> FrameTokenizer:
    """The VQ-VAE of a run folder, or of a file whose configuration is `config`. Raises UserError."""
    model, _ = load_model(path, config_file=settings.get("config"))
    if not isinstance(model, VQVAE):
        raise UserError(f"{path}: is a transformer, not its VQ-VAE; name the run of the VQ-VAE")
    return vqvae_tokenizer(model)


def vqvae_tokenizer(model: VQVAE) -> FrameTokenizer:
    """The VQ-VAE as a tokenizer of frames."""
    book = model.config.codebook

    def encode_frames(frames: Tensor) -> Tensor:
        codes = model.encode(frames)  # (N, h, w) of one codebook
        return codes[:, None] if book.num == 1 else codes

    def decode_frames(codes: Tensor) -> Tensor:
        return model.denormalize(model.decode(codes[:, 0] if book.num == 1 else codes))

    return FrameTokenizer(
        model, "codes", book.num, book.size, encode_frames=encode_frames, decode_frames=decode_frames,
        space_factor=DOWNSAMPLING, vectors=[own.embedding.weight for own in model.quantizer.ve],
    )  # fmt: skip


def weights_behind(config: dict[str, Any]) -> tuple[str, ...]:
    """The files and run folders that an evaluation of this configuration reads its weights from."""
    model, sampler = config["MODEL"], config["TEST"]["VT_SAMPLER"]
    if not is_transformer(config):
        own = [model[node]["WEIGHTS"] for node in WEIGHT_NODES.values()]
        return tuple(dict.fromkeys(filter(None, own))) or (config["OUTPUT_DIR"],)
    vqvae = [sampler["VQ_VAE"][f"{node}_WEIGHTS"] for node in WEIGHT_NODES.values()]
    if sampler["TOKENIZER"]:
        vqvae = [run_of_tokenizer(sampler["TOKENIZER"])]
    return tuple(dict.fromkeys([model["GENERATOR"]["WEIGHTS"] or config["OUTPUT_DIR"], *filter(None, vqvae)]))


def load_sampler_tokenizer(config: dict[str, Any], device: torch.device) -> Tokenizer:
    """The tokenizer that decodes samples. Raises UserError when none is named."""
    tokenizer = find_sampler_tokenizer(config, device)
    if tokenizer is None:
        raise UserError(
            "frames need the tokenizer of the codes: --tokenizer RUN (TEST.VT_SAMPLER.TOKENIZER), or for a VQ-VAE "
            "TEST.VT_SAMPLER.VQ_VAE.{CFG,ENCODER_WEIGHTS,GENERATOR_WEIGHTS,CODEBOOK_WEIGHTS}; the three weights may be "
            "one run folder"
        )
    return tokenizer


def find_sampler_tokenizer(config: dict[str, Any], device: torch.device) -> Tokenizer | None:
    """The tokenizer that TEST.VT_SAMPLER names: any by TOKENIZER, else a VQ-VAE by VQ_VAE; None when neither is.

    A run folder of a VQ-VAE has its own configuration; CFG is for other weights.
    """
    sampler = config["TEST"]["VT_SAMPLER"]
    if sampler["TOKENIZER"]:
        return fitting(open_tokenizer(sampler["TOKENIZER"], "codes", device), config)
    node = sampler["VQ_VAE"]
    paths = {name: node[f"{key}_WEIGHTS"] for name, key in WEIGHT_NODES.items()}
    if not any(paths.values()):
        return None
    places = (Path(paths["netG"]) / "config.yaml", Path(node["CFG"]), ROOT / node["CFG"])
    file = next((place for place in places if place.is_file()), Path(node["CFG"]))
    model = build_vqvae(configuration.load_config(file))
    return vqvae_tokenizer(load_vqvae_weights(model, paths).to(device).eval())


def fitting(tokenizer: Tokenizer, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer. Raises UserError where the transformer models other codes than it has; warns where those that it
    was trained on were made by other weights.
    """
    node, sampler = config["MODEL"]["AUTOREGRESSIVE"]["VT"], config["TEST"]["VT_SAMPLER"]
    if (tokenizer.width, tokenizer.size) != (node["NC"], node["NV"]):
        raise UserError(
            f"{sampler['TOKENIZER']}: has {tokenizer.width} codebook(s) of {tokenizer.size} codes, the transformer is "
            f"for {node['NC']} of {node['NV']}; set MODEL.AUTOREGRESSIVE.VT.NC {tokenizer.width} "
            f"MODEL.AUTOREGRESSIVE.VT.NV {tokenizer.size}, or name another tokenizer"
        )
    if sampler["TOKENIZER_DIGEST"] not in ("", tokenizer_digest(tokenizer)):
        logger.warning(
            "WARN %s: has other weights than the tokenizer of the codes that were trained on", sampler["TOKENIZER"]
        )
    return tokenizer


def load_vqvae_weights(model: VQVAE, paths: Mapping[str, str | Path] | str | Path) -> VQVAE:
    """Load {"netE": file, "netG": file, "netC": file}, or one checkpoint or run folder of this project.

    Raises UserError for files that are missing or do not fit.
    """
    paths = paths if isinstance(paths, Mapping) else dict.fromkeys(NETWORKS, paths)
    groups = {}
    for name, attribute in NETWORKS.items():
        if not paths.get(name):
            raise UserError(f"the VQVAE needs weights for {name}: set MODEL.{WEIGHT_NODES[name]}.WEIGHTS")
        weights = read_weights(paths[name], "vqvae")
        own = {key.removeprefix(f"{attribute}."): v for key, v in weights.items() if key.startswith(f"{attribute}.")}
        if own and name == "netC" and model.config.codebook.num == 1:
            own = {key.removeprefix("ve.0."): value for key, value in own.items()}
        groups[name] = own or weights
    try:
        return model.load_original(groups)
    except UserError as error:
        raise UserError(f"{', '.join(sorted({str(path) for path in paths.values()}))}: {error}") from error


def load_transformer_weights(model: VideoTransformer, path: str | Path) -> VideoTransformer:
    """Load a published file (its index tables are left out) or a checkpoint of this project, strictly.

    Raises UserError, also for weights of the other DECODER.
    """
    weights = drop_recomputable(dict(read_weights(path, "transformer")))
    found = "masked" if MASK_KEY in weights else "causal"
    if found != model.config.decoder:
        key = "MODEL.AUTOREGRESSIVE.VT.DECODER"
        raise UserError(f"{path}: these weights are of {key} {found}, the configuration says {model.config.decoder}")
    strict_load(model, weights, path)
    return model


def read_weights(path: str | Path, network: str) -> dict[str, dict[str, Tensor]] | dict[str, Tensor]:
    """State dict of a published .pth, or that of `network` ("vqvae", "transformer") of a checkpoint of this project.

    A folder may be a run folder, or one with a `last_checkpoint` file as the original writes it.
    """
    path = Path(path)
    if path.is_dir() and (path / "last_checkpoint").is_file():
        path = path / (path / "last_checkpoint").read_text(encoding="utf-8").strip()
    if path.is_dir() or path.suffix == ".safetensors":
        return own_network(load_checkpoint(path), network, path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights; train first, or name another file")
    content = read_tensors(path)
    if "networks" in content:
        return own_network(migrate(content, path), network, path)
    weights = content.get("model", content)
    named = isinstance(weights, Mapping) and all(isinstance(key, str) for key in weights)
    if not named or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no state dict; published files hold {{'model': ..., 'iteration': ...}}")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def own_network(state: dict[str, Any], network: str, path: Path) -> dict[str, Tensor]:
    """The averaged weights of a network of a training state where there are any, else the trained ones."""
    networks = {**state["networks"], **state["ema"]}
    if network not in networks:
        raise UserError(f"{path}: holds no {network}, only {', '.join(networks)}")
    return networks[network]


def write_original(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], iteration: int, name: str) -> None:
    """Write a network's `original_state` as <folder>/<group>/<name>.pth, and `last_checkpoint` beside each."""
    for group, weights in groups.items():
        target = folder / group
        content = {"model": {key: value.detach().cpu() for key, value in weights.items()}, "iteration": iteration}
        write_file(target / f"{name}.pth", lambda file, content=content: torch.save(content, file))
        write_file(target / "last_checkpoint", f"{name}.pth")
