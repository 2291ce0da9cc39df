"""Checkpoints on disk: each is complete and verified, or ignored.

run_dir/checkpoints/step-0001000.pt               training state: tensors and plain types, read with weights_only=True
run_dir/checkpoints/step-0001000.json             manifest, written last: SHA-256, step, metrics; without it the .pt
                                                  does not count
run_dir/checkpoints/weights-0001000.safetensors   weights alone (averaged where there are averages), keys
                                                  "<network>.<key>", metadata recipe, step, config (JSON)
"""

from __future__ import annotations

import errno
import json
import logging
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training import distributed
from training.writing import Attempts
from videodata.errors import UserError, said_by
from videodata.files import HashingFile, parse_json, sha256_of, write_file, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # format n -> function to format n + 1
DTYPES = {  # names of the format
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
METADATA = "run"  # the one entry of the file's metadata: a JSON object
FACTS = ("recipe", "step", "config")
# What safetensors, and torch for its three formats, raise for a file that is damaged.
DAMAGE = (safetensors.SafetensorError, OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error)
DAMAGE += (TypeError, AttributeError, AssertionError, ArithmeticError)
PARTS = {"recipe": str, "step": int, "config": dict, "networks": dict, "ema": dict}  # of every state, for who reads it
MANIFEST_FACTS = ("recipe", "torch", "device_type", "world_size", "metrics", "metrics_step", "samples_seen")


@dataclass
class Checkpoint:
    """A checkpoint that has its manifest; `damage` tells whether the bytes are still those that were written."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def weights(self) -> Path:
        return weights_path(self.path.parent, self.step)

    def damage(self) -> str | None:
        """What is wrong with the file, or None."""
        try:
            size = self.path.stat().st_size
            if size != self.manifest["size"]:
                return f"has {size} bytes in place of {self.manifest['size']}"
            return None if sha256_of(self.path) == self.manifest["sha256"] else "does not have its SHA-256"
        except OSError as error:
            return f"cannot be read ({error.strerror})"


def weights_path(folder: Path, step: int) -> Path:
    return folder / f"weights-{step:07d}.safetensors"


def save_checkpoint(folder: Path, state: dict[str, Any], facts: dict[str, Any]) -> Checkpoint:
    """Write the state of a step, verify what is on the disk, and only then its manifest with `facts`.

    Raises OSError when the disk refuses or returns other bytes; earlier checkpoints are untouched.
    """
    step = state["step"]
    write_weights(weights_path(folder, step), state)
    path = folder / f"step-{step:07d}.pt"
    written = write_file(path, lambda file: torch.save(canonical({"format": FORMAT, **state}), file))
    if sha256_of(path) != written:
        raise OSError(errno.EIO, "the disk returns other bytes than were written", str(path))
    manifest = {"format": FORMAT, "file": path.name, "step": step, "sha256": written, "size": path.stat().st_size}
    write_json(path.with_suffix(".json"), {**manifest, **facts})
    return Checkpoint(path, {**manifest, **facts})


def canonical(value: Any) -> Any:
    """The same nested plain values and tensors, with equal strings as one object.

    torch.save writes an object that comes twice once and refers to it, so that equal contents give equal bytes only
    if their strings are shared alike; those of a resumed run are not.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {canonical(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(entry) for entry in value)
    return value


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """All checkpoints of a folder that have a manifest, newest first. Others are reported and left alone."""
    found = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            manifest = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
            numbers = {"step": int(manifest["step"]), "size": int(manifest["size"])}
            found.append(Checkpoint(path, {**manifest, **numbers, "sha256": str(manifest["sha256"])}))
        except FileNotFoundError:
            logger.warning("%s: ignored, its saving was interrupted (no manifest)", path)
        except (ValueError, KeyError, TypeError, ArithmeticError):
            logger.warning("%s: ignored, its manifest is damaged", path)
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is undamaged; damaged ones are reported."""
    for checkpoint in checkpoints_in(folder):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        logger.warning("WARN %s: damaged, it %s; the previous checkpoint is used", checkpoint.path, damage)
    return None


def newest_weights(folder: Path) -> Path | None:
    """The weights of the last step in a folder that never had a training state, as of a trained model."""
    return None if any(folder.glob("step-*")) else max(folder.glob("weights-*.safetensors"), default=None)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The training state of a checkpoint file, or of the newest valid checkpoint of a run folder.

    Keys: format, recipe, step, samples_seen, networks {name: state dict}, optimizers, ema {name: state dict}, config
    and more; tensors on the CPU. A weights .safetensors, also the one of a run folder without training states, gives
    recipe, step, networks and config alone.
    Raises UserError for a missing, damaged, foreign or newer file.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        newest = newest_checkpoint(folder)
        weights = newest_weights(folder)
        if newest is None and weights is None:
            raise UserError(f"{path}: holds no valid checkpoint; train first, or name a checkpoint file")
        if newest is None:
            return load_weights(weights)
        path = newest.path
    elif not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train first, or name another file")
    elif path.suffix == ".safetensors":
        return load_weights(path)
    else:
        check_manifest(path)
    return migrate(read_tensors(path), path)


def check_manifest(path: Path) -> None:
    """Compare a checkpoint file with the manifest beside it, where there is one."""
    manifest = path.with_suffix(".json")
    if not manifest.is_file():
        return
    try:
        damage = Checkpoint(path, parse_json(manifest.read_text(encoding="utf-8"))).damage()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest}: damaged; remove it to read {path.name} unverified") from error
    if damage:
        raise UserError(f"{path}: damaged, it {damage}; use another checkpoint of {path.parent}")


def read_tensors(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """What a .pt, .pth, .ckpt or .safetensors holds: tensors on the CPU and plain types by name, nested as in the file.

    mapped: tensors stay on the disk until they are used, where the file's form allows it, for large files of which a
    part is wanted. Nothing in it is ever executed. Raises UserError for a file that is missing, damaged, or holds
    anything else.
    """
    path = Path(path)
    check_form(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; train first, or name another one") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of tensors and plain types, or cut off; nothing was loaded, it might run code: "
            "keep only its weights"
        ) from error
    except DAMAGE as error:
        reason = said_by(error)
        raise UserError(f"{path}: not a readable weight file, or cut off ({reason}); nothing was loaded") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return content


FORMS = {  # what is found in place of weights, by its first bytes
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype": "a web page: what was downloaded is the page of a login or an error; download the file itself",
    b"<html": "a web page: what was downloaded is the page of a login or an error; download the file itself",
    b"<?xml": "an XML document, such as the error of a server; download the file again",
    b"{": "a text, such as the error of a server; download the file again",
    b"rar!": "a RAR archive: unpack it, and name the file in it",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and name the file in it",
    b"\x1f\x8b\x08": "a gzip file: unpack it, and name the file in it",
}


def check_form(path: Path) -> None:
    """Raises UserError for a file that is plainly something else than weights, with what it is."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return  # whoever reads it says why it cannot be read
    if not start and path.is_file():
        raise UserError(f"{path}: is empty; download or copy it again")
    if start[8:9] == b"{" and b"\0" in start[:8]:
        return  # .safetensors, whose first bytes are the length of its header
    for first, form in FORMS.items():
        if start.lstrip().lower().startswith(first):
            raise UserError(f"{path}: is {form}")


def migrate(state: dict[str, Any], source: object) -> dict[str, Any]:
    """Bring a state to the present format. Raises UserError for a foreign file and for a newer format."""
    if not isinstance(state.get("format"), int) or not isinstance(state.get("networks"), dict):
        raise UserError(f"{source}: not a checkpoint of this project (no format number or networks)")
    if state["format"] > FORMAT:
        raise UserError(
            f"{source}: has format {state['format']}, this version reads up to {FORMAT}; update the project"
        )
    while state["format"] < FORMAT:
        if state["format"] not in MIGRATIONS:
            raise UserError(f"{source}: format {state['format']} can no longer be read; use an older version")
        state = {**MIGRATIONS[state["format"]](state), "format": state["format"] + 1}
    return checked_state({"ema": {}, **state}, source)


def checked_state(state: dict[str, Any], source: object) -> dict[str, Any]:
    """The state, once each of its PARTS is what its readers take it for. Raises UserError."""
    optional = {"optimizers": dict} if "optimizers" in state else {}
    for name, kind in {**PARTS, **optional}.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{source}: damaged, its {name} is no {kind.__name__}; use another checkpoint")
    for name, weights in [*state["networks"].items(), *state["ema"].items()]:
        if (
            not isinstance(name, str)
            or not isinstance(weights, dict)
            or not all(isinstance(key, str) for key in weights)
        ):
            raise UserError(f"{source}: damaged, network {name!r} holds no weights by name; use another checkpoint")
    return state


def model_settings(config: Mapping[str, Any] | None, source: object) -> dict[str, Any]:
    """The part `model` of the configuration that a file holds. Raises UserError where it has none."""
    settings = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(settings, dict):
        raise UserError(f"{source}: its configuration does not describe a model; train again, or name another file")
    return settings


def write_weights(path: Path, state: dict[str, Any]) -> None:
    """Write the weights of a training state atomically, the averaged ones where there are averages.

    Raises OSError when the disk refuses.
    """
    facts = {"averaged": sorted(state["ema"]), **{key: state.get(key) for key in FACTS}}
    metadata = {METADATA: json.dumps(facts)}
    write_file(path, lambda file: write_tensors(file, tensors_to_share(state), metadata))


def write_tensors(file: BinaryIO | HashingFile, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors: the length of a JSON header, the header, the bytes of each tensor, wide types first.

    Not by the library's save_file: it writes to a temporary file with a name of its own, as large as the weights, that
    stays for ever when the process is killed, and whose final form only its owner may read.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))


def tensors_to_share(state: dict[str, Any]) -> dict[str, Tensor]:
    """ "<network>.<key>" -> tensor. Tied weights are stored once per key, because the format knows no sharing."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weights in {**state["networks"], **state["ema"]}.items():
        for key, value in weights.items():
            tied = value.untyped_storage().data_ptr() in seen
            seen.add(value.untyped_storage().data_ptr())
            tensors[f"{name}.{key}"] = value.clone() if tied else value.contiguous()
    return tensors


def load_weights(path: str | Path) -> dict[str, Any]:
    """recipe, step, config and networks {name: state dict} of a weights file. Raises UserError for a bad one."""
    check_form(Path(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error
    try:
        stored = parse_json(metadata[METADATA])
        facts = {key: stored[key] for key in FACTS}
        networks: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            network, key = name.split(".", 1)
            networks.setdefault(network, {})[key] = tensor
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a weights file of this project (no recipe and config in it)") from error
    return checked_state({**facts, "networks": networks, "ema": {}}, path)


SHOWN = 10  # entries that an error of one line names


def strict_load(module: nn.Module, state_dict: Mapping[str, Tensor], source: object) -> None:
    """Load weights into the module. Raises UserError naming missing, unexpected and misshapen keys, and those that hold
    NaN or infinity; then nothing is loaded. Complete tensors load into sharded modules too.
    """
    report = mismatch_report(module, state_dict)
    if report:
        raise UserError(f"{source} does not fit the model: {report}")
    bad = [key for key, value in state_dict.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:  # a clamp behind the last layer can hide them, and a training that starts from them learns nothing
        raise UserError(
            f"{source}: {len(bad)} of {len(state_dict)} weights are not finite, first {bad[0]}: the file is damaged, "
            "or its training has diverged; use another checkpoint"
        )
    own = module.state_dict()
    with torch.no_grad():
        module.load_state_dict({key: distributed.like(value, own[key]) for key, value in state_dict.items()})


def mismatch_report(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape, in one line; empty when all fits."""
    own = module.state_dict()
    shapes = [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
        for key, value in state_dict.items()
        if key in own and isinstance(value, Tensor) and value.shape != own[key].shape
    ]
    parts = {
        "missing": [key for key in own if key not in state_dict],
        "unexpected": [str(key) for key in state_dict if key not in own],
        "no tensor": [key for key, value in state_dict.items() if key in own and not isinstance(value, Tensor)],
        "other shape": shapes,
    }
    return "; ".join(f"{kind}: {first_of(keys)}" for kind, keys in parts.items() if keys)


def first_of(entries: list[str]) -> str:
    """The first entries, and how many more there are."""
    return ", ".join(entries[:SHOWN]) + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")


class Saver:
    """Saves the states of a run; keeps the newest `keep` and the best by `metric`, such as ("psnr", "max")."""

    def __init__(self, folder: Path, first_step: int, keep: int, metric: tuple[str, str] | None) -> None:
        self.folder = folder
        self.keep = max(1, keep)
        self.metric = metric
        self.kept = [checkpoint for checkpoint in checkpoints_in(folder) if checkpoint.step <= first_step]
        self.attempts = Attempts(folder.parent)  # for all that the run writes

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those that need not stay. A full disk is a warning until it repeats."""
        facts = {name: state[name] for name in MANIFEST_FACTS}
        saved: list[Checkpoint] = []
        self.attempts.attempt("checkpoint", lambda: saved.append(save_checkpoint(self.folder, state, facts)))
        if saved:
            self.kept = [saved[0], *(entry for entry in self.kept if entry.step != saved[0].step)]
            self.attempts.attempt("folder without the older checkpoints", self.thin_out)

    def thin_out(self) -> None:
        """Remove the checkpoints that need not stay. Raises OSError."""
        best = self.best()
        for checkpoint in self.kept[self.keep :]:
            if checkpoint is not best:  # the manifest goes first, so that none is ever without its file
                for path in (checkpoint.path.with_suffix(".json"), checkpoint.path, checkpoint.weights):
                    path.unlink(missing_ok=True)
        self.kept = [entry for number, entry in enumerate(self.kept) if number < self.keep or entry is best]

    def best(self) -> Checkpoint | None:
        """The kept checkpoint with the best metric, the earliest of equals."""
        scored = [(score, entry) for entry in reversed(self.kept) if (score := self.score(entry.manifest)) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def improves(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics beat those of all kept checkpoints."""
        score = self.score({"metrics": metrics, "metrics_step": 0, "step": 0})
        best = self.best()
        return score is not None and (best is None or score > self.score(best.manifest))

    def score(self, manifest: dict[str, Any]) -> float | None:
        """The metric as larger-is-better; None when it was not measured at the very step of the checkpoint."""
        if self.metric is None or manifest.get("metrics_step") != manifest["step"]:
            return None
        name, direction = self.metric
        value = manifest["metrics"].get(name)
        return None if value is None else (value if direction == "max" else -value)


def best_checkpoint(run_dir: str | Path, metric: tuple[str, str]) -> Path | None:
    """The checkpoint of a run folder with the best metric, such as ("psnr", "max"); None where none was measured."""
    best = Saver(Path(run_dir) / "checkpoints", 2**62, 1, metric).best()
    return best.path if best else None
