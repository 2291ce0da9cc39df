"""Weights on disk: published files and ours. What a file holds is read from it, but for the version, which no file of
the original tells: it comes from an argument, the end of the file's name, or the notes in a file of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from tokenizer3d.config import LEVELS, PUBLISHED, SUFFIX_1_1, Tokenizer3DConfig, config_from, published
from training.checkpoint import DAMAGE, check_form, mismatch_report, read_tensors, strict_load, write_tensors
from videodata.errors import UserError, said_by
from videodata.files import parse_json, read_json, write_file, write_json

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
METADATA = "tokenizer3d"  # the entry of our files' metadata: the configuration as JSON
SOURCE = "source"  # in config.json and in the metadata: where the weights are from
WRAPPERS = ("module", "_orig_mod")  # parts of keys that DataParallel and torch.compile put in
TRAINING_ALONE = ("loss.", "model_ema.")  # beginnings of the keys that a training checkpoint has beside the model's


def read_state_dict(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """The weights in a .ckpt, .pt or .safetensors, flat or below `state_dict`, under the published keys, on the CPU.

    ema: the averaged weights in place of the last ones. Raises UserError for a file that is none, or has no averages.
    """
    content = read_tensors(path, mapped=True)
    content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: state_dict is a {type(content).__name__}, not tensors by name")
    weights = {key: value for key, value in content.items() if not str(key).startswith(TRAINING_ALONE)}
    if ema:
        weights = {key: averaged(key, content, path) for key in weights}
    return {".".join(part for part in str(key).split(".") if part not in WRAPPERS): weights[key] for key in weights}


def averaged(key: str, content: Mapping[str, Any], path: str | Path) -> Tensor:
    """The average of a weight: its name has lost its dots."""
    name = "model_ema." + key.replace(".", "")
    if name not in content:
        raise UserError(f"{path}: holds no average of {key} ({name}); load it without ema")
    return content[name]


def structure_of(
    weights: Mapping[str, Tensor], version: str, source: object, levels: tuple[int, ...] | None = None
) -> Tokenizer3DConfig:
    """The configuration that a model with these weights has. levels: of an FSQ model; None: 8 in each channel.

    Raises UserError for weights of another model.
    """
    causal = "encoder.conv_in.conv.weight" in weights
    end = ".conv.weight" if causal else ".weight"
    try:
        first, last = weights[f"encoder.conv_in{end}"], weights[f"decoder.conv_out{end}"]
        depth = 1 + max(numbers(weights, r"encoder\.down\.(\d+)\."))
        widths = [len(weights[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(depth)]
        z_channels, moments = weights[f"decoder.conv_in{end}"].shape[1], len(weights[f"encoder.conv_out{end}"])
        blocks = 1 + max(numbers(weights, r"encoder\.down\.0\.block\.(\d+)\."))
    except (KeyError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise UserError(f"{source}: holds no weights of a 3-D tokenizer of the VidTok family ({error})") from error
    if moments not in (z_channels, 2 * z_channels):
        raise UserError(f"{source}: the encoder gives {moments} channels and the decoder takes {z_channels}")
    is_fsq = moments == z_channels
    config = Tokenizer3DConfig(
        version=version,
        causal=causal,
        regularizer="fsq" if is_fsq else "kl",
        z_channels=z_channels,
        ch=len(first),
        ch_mult=tuple(width // len(first) for width in widths),
        num_res_blocks=blocks,
        space_down=numbers(weights, r"encoder\.down\.(\d+)\.downsample\.conv\.weight"),
        time_down=numbers(weights, r"encoder\.down_temporal\.(\d+)\.downsample\.mix_factor"),
        space_up=numbers(weights, r"decoder\.up\.(\d+)\.upsample\.conv\.weight"),
        time_up=numbers(weights, r"decoder\.up_temporal\.(\d+)\.upsample\.mix_factor"),
        levels=(levels or (LEVELS,) * z_channels) if is_fsq else (),
        patch_size=(patch := math.isqrt(max(1, first.shape[1] // 3))),  # of pictures with three channels
        in_channels=first.shape[1] // patch**2,
        out_channels=len(last) // patch**2,
    )
    same = (name for name in PUBLISHED if replace(published(name), name="") == config)
    return replace(config, name=next(same, ""))


def numbers(weights: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """The different numbers that a pattern finds in the keys, in rising order."""
    return tuple(sorted({int(found[1]) for key in weights if (found := re.match(pattern, key))}))


def version_of(path: Path) -> str:
    """The version that the name of a file or its notes say. Raises UserError, naming both choices, where none does."""
    notes = notes_of(path)
    if path.stem.endswith(SUFFIX_1_1):
        if notes and notes["version"] != "1.1":
            raise UserError(f"{path}: its name says version 1.1, its notes {notes['version']}; give the version")
        return "1.1"
    if notes:
        return notes["version"]
    raise UserError(
        f"{path}: does not say whether its weights are of version 1.0 or 1.1, whose keys and shapes are the same and "
        'whose results are not; give version="1.0" or version="1.1"'
    )


def notes_of(path: Path) -> dict[str, Any]:
    """What a file of ours says about its model; {} for any other file. Raises UserError for a damaged one."""
    if path.suffix != ".safetensors":
        return {}
    check_form(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
        return {} if text is None else {**Tokenizer3DConfig().to_dict(), **parse_json(text)}
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error


def read_file(
    path: str | Path, version: str | None = None, levels: tuple[int, ...] | None = None, ema: bool = False
) -> tuple[Tokenizer3DConfig, dict[str, Tensor]]:
    """Configuration and weights of any single file. Raises UserError, also where nothing tells the version."""
    path = Path(path)
    weights = read_state_dict(path, ema)
    notes = notes_of(path)
    version = version or version_of(path)
    if notes and levels is None:
        notes.pop(SOURCE, None)
        return replace(config_from(notes), version=version), weights
    return structure_of(weights, version, path, levels), weights


def read_folder(folder: str | Path) -> tuple[Tokenizer3DConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder of `write_folder`. Raises UserError."""
    folder = Path(folder)
    stored = read_json(folder / CONFIG_FILE)
    if stored is None:
        raise UserError(f"{folder / CONFIG_FILE}: missing or no JSON; save_pretrained writes it beside the weights")
    stored.pop(SOURCE, None)
    config = config_from(stored)
    notes = notes_of(folder / WEIGHTS_FILE)
    notes.pop(SOURCE, None)
    if notes and config_from(notes) != config:
        raise UserError(f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} are of two different models; save it once more")
    return config, read_state_dict(folder / WEIGHTS_FILE)


def write_folder(folder: str | Path, model: nn.Module, config: Tokenizer3DConfig, source: str = "") -> None:
    """Write model.safetensors and config.json; each is whole or absent, and both say what the model is.

    Raises UserError where one of these is there and was not written so.
    """
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).exists() and not notes_of(folder / WEIGHTS_FILE):
        raise UserError(f"{folder / WEIGHTS_FILE}: is another model, which would be replaced; name another folder")
    place = folder / CONFIG_FILE
    if place.exists() and not {*Tokenizer3DConfig().to_dict()} <= {*(read_json(place) or {})}:
        raise UserError(f"{place}: is no configuration of a 3-D tokenizer, and would be replaced; name another folder")
    facts = config.to_dict() | ({SOURCE: source} if source else {})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach() for key, value in model.state_dict().items()}
    metadata = {METADATA: json.dumps(facts)}
    write_file(folder / WEIGHTS_FILE, lambda file: write_tensors(file, tensors, metadata))
    write_json(folder / CONFIG_FILE, facts)


def load_into(model: nn.Module, config: Tokenizer3DConfig, weights: Mapping[str, Tensor], source: object) -> None:
    """Load weights strictly. Raises UserError that names the cause where they are of another kind of model."""
    if mismatch_report(model, weights):
        cause = difference(config, weights, source)
        if cause:
            raise UserError(f"{source} does not fit the model: {cause}; {mismatch_report(model, weights)}")
    strict_load(model, weights, source)


def difference(config: Tokenizer3DConfig, weights: Mapping[str, Tensor], source: object) -> str:
    """In what a file's model differs from a configuration, in words; empty where only single weights differ."""
    try:
        found = structure_of(weights, config.version, source)
    except UserError as error:
        return str(error).removeprefix(f"{source}: ")
    kinds = {True: "causal", False: "not causal"}
    if found.causal != config.causal:
        return (
            f"the file is of a model that is {kinds[found.causal]}, the configuration of one that is "
            + (kinds[config.causal])
        )
    if found.regularizer != config.regularizer:
        return f"the file is of regularizer {found.regularizer}, the configuration of {config.regularizer}"
    names = ("ch", "ch_mult", "z_channels", "num_res_blocks", "space_down", "time_down", "space_up", "time_up")
    return ", ".join(
        f"{name} is {getattr(found, name)} in the file and {getattr(config, name)} in the configuration"
        for name in names
        if getattr(found, name) != getattr(config, name)
    )


def build_empty(kind: type[nn.Module], config: Tokenizer3DConfig) -> nn.Module:
    """A model whose weights are not set, for those of a file: drawing 157 million numbers takes seconds."""
    with torch.device("meta"):
        model = kind(config)
    return model.to_empty(device="cpu")
