"""Models by configuration, and models from files: ours, bare weights, and published ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses.quantize import codebooks_of
from training.checkpoint import (
    checkpoint_of,
    load_checkpoint,
    model_settings,
    newest_weights,
    read_tensors,
    strict_load,
)
from training.config import unknown_key
from training.distributed import announced, resolve_device
from training.tokenizer import FrameTokenizer, Kind, recipe_of
from videodata.errors import UserError
from videodata.files import sha256_of, write_file
from vqgan.config import VQGANConfig
from vqgan.data import merge_patches, split_patches
from vqgan.ldm import LDMVQModel, state_dict_in
from vqgan.model import VQGAN

FORMAT = "vqgan-weights"
GAN_FILE = "best_model_gan.pt"  # of a run folder: the model after both stages
STAGE1_FILE = "best_model_stage1.pt"  # and after the first, for runs that have no second
VQGAN_KEYS = tuple(VQGANConfig.__dataclass_fields__)
LDM_KEYS = ("ddconfig", "n_embed", "embed_dim", "commitment_cost")
REMOVED_KEYS = ("attention_factors",)  # files of earlier versions hold it, empty
GRID = {"patch_size": 80, "num_patches_h": 3, "num_patches_w": 4}  # 240x320 frames, as the original cuts them
TOKENIZERS = {
    "vqgan": ("rows", "columns", *VQGAN_KEYS), "ldm-vq": ("config", *LDM_KEYS, "rows", "columns")
}  # fmt: skip
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
    write_file(path, lambda file: torch.save({"format": FORMAT, "state_dict": state, **facts}, file))


def load_model(
    path: str | Path, device: torch.device | str = "cpu", config: Mapping[str, Any] | None = None
) -> tuple[Model, dict[str, Any]]:
    """The model of a run folder, of a training checkpoint or of a file that `save_model` wrote, in eval mode, and the
    configuration of its run.

    For bare weights and published files, `config` says what they are: it is the part "model" of the configuration.
    Raises UserError.
    """
    path = model_file(Path(path))
    weights, stored = read_weights(path)
    config = model_settings(stored, path) if stored.get("model") else config
    if config is None:
        raise UserError(f"{path}: holds weights without a configuration; give the model's flags, such as --hidden_dims")
    model = build_model(config)
    strict_load(model, weights, path)
    return model.to(device).eval(), {**stored, "model": config}


def model_file(path: Path) -> Path:
    """The best model of a run folder, whose own checkpoints lie in its parts; any other path as it is."""
    return next((path / name for name in (GAN_FILE, STAGE1_FILE) if (path / name).is_file()), path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration of any file with a model's weights; {} where it has none. Raises UserError."""
    if path.is_dir() or path.suffix == ".safetensors":
        return from_checkpoint(load_checkpoint(path), path)
    content = read_tensors(path)
    if "recipe" in content:
        return from_checkpoint(load_checkpoint(path), path)
    config = (content.get("config") if content.get("format") == FORMAT else None) or {}
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged, its config is no dict; use another file")
    return state_dict_in(content, path), config


def from_checkpoint(checkpoint: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generator of a training checkpoint, averaged where there are averages, and the configuration of its run."""
    networks = {**checkpoint["networks"], **checkpoint["ema"]}
    if "model" not in networks or not str(checkpoint["recipe"]).startswith("vqgan"):
        raise UserError(f"{path}: is a checkpoint of {checkpoint['recipe']!r}, not of a VQGAN")
    return networks["model"], checkpoint["config"]


def model_identity(path: Path) -> str:
    """SHA-256 of a model's file, or of the newest checkpoint of a run folder. Raises UserError."""
    path = model_file(path)
    if path.is_dir():
        newest = checkpoint_of(path)
        if newest is None and (weights := newest_weights(path / "checkpoints")):
            return sha256_of(weights)
        if newest is None:
            raise UserError(f"{path}: holds no valid checkpoint; train first, or name a file")
        return newest.manifest["sha256"]
    return sha256_of(path)


def open_model(args: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """`load_model` of what the flags of `add_model_arguments` name, on their device. Raises UserError."""
    names = [entry.name for entry in fields(VQGANConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    settle_device(args)
    device = announced(resolve_device(args.device))
    return load_model(args.checkpoint, device, {"type": "vqgan", **given} if given else None)


def settle_device(args: argparse.Namespace) -> None:
    """Let --no_cuda and --gpu have their say: afterwards `args.device` alone counts."""
    if args.no_cuda:
        args.device = "cpu"
    elif args.device == "auto" and args.gpu and torch.cuda.is_available():
        args.device = f"cuda:{args.gpu}"


def settle_grid(args: argparse.Namespace, config: dict[str, Any]) -> tuple[int, int]:
    """Fill in the grid that the flags leave open: that of the training, else the documented one; gives (rows, columns).

    config: of the run, as `load_model` gives it; that of bare weights knows nothing of their training.
    """
    stored = config.get("data", {})
    for name, documented in GRID.items():
        if getattr(args, name) is None:
            setattr(args, name, stored.get(name, documented))
    return args.num_patches_h, args.num_patches_w


def tokenizer_type(path: Path) -> str | None:
    """What `training.tokenizer` asks: "vqgan" for a run folder or file of ours, which says what network it holds."""
    file = model_file(path)
    if file.suffix == ".pt" and file.is_file():
        try:
            content = read_tensors(file, mapped=True)
        except UserError:
            return None
        recipe = content.get("recipe")
        return "vqgan" if content.get("format") == FORMAT or str(recipe).startswith("vqgan") else None
    return "vqgan" if str(recipe_of(file)).startswith("vqgan") else None


def build_tokenizer(type: str, path: Path, kind: Kind | None, settings: Mapping[str, Any]) -> FrameTokenizer:
    """A VQGAN of ours, or (`ldm-vq`) a published file of latent diffusion, of the architecture `config` or of
    `ddconfig`, `n_embed` and `embed_dim`; as codes, or as latents that are quantised when they are decoded.

    rows, columns: how many patches a frame is cut into, each of which goes through the network by itself. Raises
    UserError.
    """
    options = dict(settings)
    rows, columns = options.pop("rows", 1), options.pop("columns", 1)
    if type == "vqgan":
        model, _ = load_model(path, config={"type": "vqgan", **options} if options else None)
    else:
        name = options.pop("config", None)
        if (name is None) == ("ddconfig" not in options):
            raise UserError("a tokenizer of type ldm-vq needs its config (f8_small, f8, f16), or its ddconfig")
        model = LDMVQModel.from_name(str(name)) if name else build_model({"type": "ldm", **options})
        strict_load(model, read_weights(path)[0], path)
    return model_tokenizer(model, kind or "codes", rows, columns)


def model_tokenizer(model: Model, kind: Kind = "codes", rows: int = 1, columns: int = 1) -> FrameTokenizer:
    """A model as a tokenizer of frames."""

    stages = model.quantizer.num_quantizers  # indices per position: (N, h, w), of several stages (N, h, w, stages)

    def encode_frames(frames: Tensor) -> Tensor:
        array = model.latents(split_patches(frames, rows, columns))  # (N * rows * columns, D, h, w)
        if kind == "codes":
            index = model.quantize(array)[1]
            array = index[:, None] if stages == 1 else index.movedim(-1, 1)
        return merge_patches(array, rows, columns)

    def decode_frames(array: Tensor) -> Tensor:
        patches = split_patches(array, rows, columns)
        if kind == "codes":
            frames = model.decode_indices(patches[:, 0] if stages == 1 else patches.movedim(1, -1))
        else:
            frames = model.decode(patches if isinstance(model, LDMVQModel) else model.quantize(patches)[0])
        return merge_patches(frames, rows, columns)

    channels = model.quantizer.codebook_dim if isinstance(model, LDMVQModel) else model.config.latent_dim
    shape = (stages, model.num_embeddings) if kind == "codes" else (channels, None)
    return FrameTokenizer(
        model, kind, *shape, encode_frames=encode_frames, decode_frames=decode_frames,
        space_factor=model.downsample_factor, vectors=codebooks_of(model.quantizer) if kind == "codes" else None,
    )  # fmt: skip
