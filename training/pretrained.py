"""Trained models of one file each, `weights/<name>.safetensors`: every part of a model, and what it was trained on.

The tensors are "<part>/<network>/<key>"; the metadata has one entry, a JSON object: the model's folder, and for each
part its recipe, step, configuration and training data. A file is read by unpacking it into run folders, one for each
part, in a temporary folder: whatever opens a run folder opens a trained model, too. They lie beside each other, or
inside each other where the packed ones did. Where a configuration names the run of another part, the file says
"part:<name>", and the unpacked configuration the folder of that part.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoint import DAMAGE, check_form, load_checkpoint, weights_path, write_tensors, write_weights
from training.config import from_dict
from training.folder import TRAINED_ON, trained_on
from videodata.errors import UserError, said_by
from videodata.files import atomic_path, lock_file, parse_json, readable_size, write_file, write_json

FORMAT = 1
METADATA = "pretrained"  # the one entry of the metadata
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
MODELS = ("video_vae", "vqgan", "lvt", "vvae", "tokenizer3d", "flow_pred")  # folders whose files.py has load_model
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST = 8_000_000  # bytes: the repository keeps every version of a file for ever
START_FROM = "start_from"  # of a configuration: a run that only the beginning of the training needed
PART = "part:"  # in a configuration: the run folder of another part
FOLDER = re.compile(r"\w[\w .+-]{0,99}(/\w[\w .+-]{0,99}){0,9}")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

UNPACKED = "videogen-weights-"  # the names of the folders that files are unpacked to begin with it
_unpacked: dict[Path, tuple[Path, Path]] = {}  # absolute path -> the path as it was given, the folder of its parts


def names() -> list[str]:
    """The trained models that are there."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if is_pretrained(path))


def open_pretrained(name: str | Path, device: torch.device | str = "cpu") -> Any:
    """A trained model by its name, such as "lvt-digits", or by its file: what the `load_model` of its folder gives.

    Raises UserError, for an unknown name with those that are there.
    """
    folder = next(iter(unpack(file_of(name)).values()))
    model = read_facts(source_of(folder))["model"]
    return import_module(f"{model}.files").load_model(folder, device)


def pretrained_folder(name: str | Path) -> Path:
    """The run folder of the first part of a trained model, unpacked; it is there until the process ends.

    Any other .safetensors file is given back as it is.
    """
    path = file_of(name)
    return path if path == Path(name) and not is_pretrained(path) else next(iter(unpack(path).values()))


def file_of(name: str | Path) -> Path:
    """The file of a trained model, by its name or its path. Raises UserError."""
    path = Path(name)
    if path.suffix != ".safetensors":
        path = WEIGHTS / f"{name}.safetensors"
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if path.is_file():
        return path
    there = f"there are: {', '.join(names())}" if names() else "there are none"
    raise UserError(f"{name}: no such file, and no trained model of this name in {WEIGHTS.name}/; {there}")


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a file of this format."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return METADATA in (file.metadata() or {})
    except DAMAGE:
        return False


@dataclass
class Part:
    """What a file says about one of its parts."""

    folder: str  # below that in which all are unpacked
    recipe: str
    step: int
    config: dict[str, Any]
    trained_on: int | None  # which of the records of the file


def read_facts(path: Path) -> dict[str, Any]:
    """What a file says about itself: format, model, parts {name: recipe, step, config, trained_on}, and how it was
    made. Raises UserError.
    """
    check_form(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error
    if METADATA not in metadata:
        raise UserError(f"{path}: not a file of scripts/pack_weights.py (no parts in it)")
    try:
        facts = parse_json(metadata[METADATA])
        if facts["format"] > FORMAT:
            newer = f"has format {facts['format']}, this version reads up to {FORMAT}; update the project"
            raise UserError(f"{path}: {newer}")
        if facts["model"] not in MODELS:
            raise UserError(f"{path}: is of model {facts['model']!r}; known: {', '.join(MODELS)}")
        parts = [from_dict(Part, stored, f"{path}: parts.{name}") for name, stored in facts["parts"].items()]
        check_parts(parts, len(facts["trained_on"]))
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = said_by(error)
        raise UserError(
            f"{path}: not a whole file of scripts/pack_weights.py, its parts are damaged ({reason})"
        ) from error
    return facts


def check_parts(parts: list[Part], records: int) -> None:
    """Raise ValueError for parts that would be unpacked elsewhere, over each other, or without what they name."""
    folders = [part.folder for part in parts]
    if not parts or len(set(folders)) < len(parts) or not all(map(FOLDER.fullmatch, folders)):
        raise ValueError(f"their folders are {folders}")
    if any(part.trained_on is not None and not 0 <= part.trained_on < records for part in parts):
        raise ValueError("what they were trained on is not there")


def unpack(path: Path) -> dict[str, Path]:
    """{part: its run folder}, the first part first; a file is unpacked once in a process. Raises UserError."""
    facts, place = read_facts(path), path.resolve()  # the same relative path may be of another file elsewhere
    if place not in _unpacked:
        folder = temporary_folder(path.stem)
        try:
            write_parts(folder, facts, load_file(path))
        except (UserError, *DAMAGE) as error:
            raise UserError(f"{path}: cannot be unpacked ({said_by(error)})") from error
        _unpacked[place] = path, folder
    return {part: _unpacked[place][1] / stored["folder"] for part, stored in facts["parts"].items()}


def temporary_folder(name: str) -> Path:
    """A folder that is removed when this process ends. Those of processes that were killed are removed now."""
    place = Path(tempfile.gettempdir()).resolve()
    for lock in place.glob(f"{UNPACKED}*.lock"):
        with suppress(UserError, OSError), lock_file(lock.stem, "using", lock=lock):  # of a process that lives: refused
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    folder = place / f"{UNPACKED}{name}-{os.getpid()}-{secrets.token_hex(4)}"
    held = ExitStack()
    held.enter_context(lock_file(folder, "using"))  # first, so that nobody takes the folder for one that is left
    folder.mkdir(mode=0o700)
    held.callback(shutil.rmtree, folder, ignore_errors=True)
    own = os.getpid()
    atexit.register(lambda: held.close() if os.getpid() == own else None)  # a forked process must not remove it
    return folder


def named(text: str) -> str:
    """A text in which trained models have their name or their file in place of what they were unpacked to."""
    for file, folder in _unpacked.values():
        name = file.stem if file.resolve().parent == WEIGHTS else str(file)
        text = re.sub(re.escape(str(folder)) + r"[^\s:;,'\")]*", lambda _, name=name: name, text)
    return text


def write_parts(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The run folders of all parts below `folder`, with weights in single precision."""
    networks: dict[str, dict[str, dict[str, Tensor]]] = {part: {} for part in facts["parts"]}
    for name, tensor in tensors.items():
        part, network, key = (*name.split("/", 2), "", "")[:3]
        if part not in networks or not key:
            raise UserError(f"{name!r} is no tensor of one of the parts {', '.join(networks)}")
        value = tensor.float() if tensor.is_floating_point() else tensor
        networks[part].setdefault(network, {})[key] = value
    folders = {part: folder / stored["folder"] for part, stored in facts["parts"].items()}
    for part, stored in facts["parts"].items():
        config = replaced(stored["config"], lambda text: str(folder_of_part(folders, text)), PART)
        state = {"recipe": stored["recipe"], "step": stored["step"], "config": config}
        (folders[part] / "checkpoints").mkdir(parents=True)
        path = weights_path(folders[part] / "checkpoints", stored["step"])
        write_weights(path, {**state, "networks": networks[part], "ema": {}})
        write_file(folders[part] / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        if stored["trained_on"] is not None:
            write_json(folders[part] / TRAINED_ON, facts["trained_on"][stored["trained_on"]])


def folder_of_part(folders: Mapping[str, Path], text: str) -> Path:
    """Where the part lies that a configuration names as "part:<name>". Raises UserError for one that is not there."""
    part = text.removeprefix(PART)
    if part not in folders:
        raise UserError(f"its configuration names the part {part!r}, but there are only {', '.join(folders)}")
    return folders[part]


def source_of(path: str | Path) -> Path:
    """The file that a run folder was unpacked from; any other path as it is."""
    return next((file for file, folder in _unpacked.values() if folder in Path(path).parents), Path(path))


def parts_beside(path: str | Path) -> dict[str, Path]:
    """The run folders of all parts of the trained model that `path` is one of; {} for any other path."""
    return next((unpack(place) for place, (_, folder) in _unpacked.items() if folder in Path(path).parents), {})


def replaced(value: Any, change: Any, prefix: str = "") -> Any:
    """Nested plain values in which `change` has replaced the strings that begin with `prefix`."""
    if isinstance(value, Mapping):
        return {key: replaced(entry, change, prefix) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(entry, change, prefix) for entry in value]
    return change(value) if isinstance(value, str) and value.startswith(prefix) else value


def pack(
    path: Path,
    model: str,
    runs: Mapping[str, Path],
    dtype: str = "fp16",
    facts: Mapping[str, Any] | None = None,
    left_out: Sequence[str] = ("discriminator",),
) -> Path:
    """Write the runs of a model's parts, the one that --checkpoint means first, as one file, whole or not at all.

    dtype: of the stored weights, see DTYPES. facts: how it was made, such as command, cpu_seconds and licence.
    left_out: networks that only training needs. Raises UserError, also for a file of more than LARGEST bytes.
    """
    tensors, parts, records = {}, {}, []
    for part, run in runs.items():
        if not NAME.fullmatch(part):
            raise UserError(f"part {part!r}: a name is lower-case letters, digits, - and _")
        state = load_checkpoint(run)
        for network, weights in {**state["networks"], **state["ema"]}.items():
            if network not in left_out:
                tensors |= {f"{part}/{network}/{key}": stored_as(value, dtype) for key, value in weights.items()}
        config = replaced(without(state["config"], START_FROM), lambda text: portable(text, runs))
        record = trained_on(run)
        record = None if record is None else replaced(record, lambda text: portable(text, {}))
        if record is not None and record not in records:
            records.append(record)
        place = None if record is None else records.index(record)
        stored = {"recipe": state["recipe"], "step": state["step"], "config": config, "trained_on": place}
        parts[part] = {"folder": folder_of(part, runs), **stored}
    about = {"format": FORMAT, "model": model, "dtype": dtype, **(facts or {}), "trained_on": records, "parts": parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            write_tensors(file, tensors, {METADATA: json.dumps(about)})
        size = Path(temporary).stat().st_size
        if size > LARGEST:
            raise UserError(
                f"{path}: would have {readable_size(size)}, more than {readable_size(LARGEST)}; "
                "store the weights in half precision (--dtype fp16), or train a smaller model"
            )
    return path


def without(config: Any, key: str) -> Any:
    """A copy of a configuration in which a key, wherever it stands, is null."""
    if isinstance(config, Mapping):
        return {name: None if name == key else without(value, key) for name, value in config.items()}
    return config


def folder_of(part: str, runs: Mapping[str, Path]) -> str:
    """Where a part is unpacked: a run inside the run of another part, such as the prior of a VAE, inside that one."""
    own = Path(runs[part]).resolve()
    above = [(other, Path(run).resolve()) for other, run in runs.items() if Path(run).resolve() in own.parents]
    return f"{above[0][0]}/{own.relative_to(above[0][1]).as_posix()}" if above else part


def stored_as(value: Tensor, dtype: str) -> Tensor:
    """A tensor of its own, floating-point ones in the type of the file."""
    return value.to(DTYPES[dtype] if value.is_floating_point() else value.dtype).contiguous().clone()


def portable(text: str, runs: Mapping[str, Path]) -> str:
    """A text of a configuration without the places of this machine: a run as "part:<name>", a path relative to here.

    Raises UserError where it names a run that is no part, because the model would miss it elsewhere.
    """
    path = Path(text)
    try:
        is_run = text not in ("", ".") and (path / "checkpoints").is_dir()
    except OSError:  # a text that is no path
        return text
    if runs and is_run:
        part = next((part for part, run in runs.items() if Path(run).resolve() == path.resolve()), None)
        if part is None:
            raise UserError(f"its configuration names the run {text}: give it as a part, too (--part NAME={text})")
        return PART + part
    if not path.is_absolute():
        return text
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
