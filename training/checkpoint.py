"""Checkpoints on disk: each is complete and verified, or ignored.

run_dir/checkpoints/step-0001000.pt               training state: tensors and plain types, read with weights_only=True
run_dir/checkpoints/step-0001000.json             manifest, written last: SHA-256, step, metrics; without it the .pt
                                                  does not count
run_dir/checkpoints/weights-0001000.safetensors   weights alone (averaged where there are averages), keys
                                                  "<network>.<key>", metadata recipe, step, config (JSON)

Of a run with --fsdp, a folder step-0001000 is in place of the first two: training/sharded.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from training import distributed, sharded
from training.tensors import DAMAGE, check_form, read_tensors, write_tensors
from training.writing import Attempts
from videodata.errors import UserError, said_by
from videodata.files import parse_json, replace, sha256_of, sync_folder, write_file, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # format n -> function to format n + 1
METADATA = "run"  # the one entry of the file's metadata: a JSON object
FACTS = ("recipe", "step", "config")
PARTS = {"recipe": str, "step": int, "config": dict, "networks": dict, "ema": dict}  # of every state, for who reads it
MANIFEST_FACTS = ("recipe", "torch", "device_type", "world_size", "metrics", "metrics_step", "samples_seen")


@dataclass
class Checkpoint:
    """A checkpoint that has its manifest; `damage` tells whether the bytes are still those that were written."""

    path: Path  # a file, or the folder of one in parts
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def weights(self) -> Path:
        return weights_path(self.path.parent, self.step)

    @property
    def files(self) -> sharded.Files:
        """Where it is in parts, their names."""
        if not self.path.is_dir():
            return {self.path.name: self.manifest}
        return self.manifest["files"]

    def damage(self, share: int = 0, shares: int = 1) -> str | None:
        """What is wrong with the file, or with a share of the files of one in parts; None where nothing is."""
        for name, facts in sorted(self.files.items())[share::shares]:
            file = self.path / name if self.path.is_dir() else self.path
            found = difference(file, facts)
            if found is not None:
                return f"{found}" if file == self.path else f"has a file {name} that {found}"
        return None

    def remove(self) -> None:
        """Remove it. Raises OSError. The manifest goes first, or with a whole folder: none is ever without its file."""
        if self.path.is_dir():
            gone = sharded.unfinished(self.path.parent, self.path.name)
            shutil.rmtree(gone, ignore_errors=True)  # what an attempt before has left
            replace(self.path, gone)
            shutil.rmtree(gone)
        else:
            manifest_path(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def difference(path: Path, facts: Mapping[str, Any]) -> str | None:
    """How a file differs from its size and SHA-256, or None."""
    try:
        size = path.stat().st_size
        if size != facts["size"]:
            return f"has {size} bytes in place of {facts['size']}"
        return None if sha256_of(path) == facts["sha256"] else "does not have its SHA-256"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def weights_path(folder: Path, step: int) -> Path:
    return folder / f"weights-{step:07d}.safetensors"


def manifest_path(path: Path) -> Path:
    """The manifest of a checkpoint, which is a file or a folder."""
    return path / sharded.MANIFEST if path.is_dir() else path.with_suffix(".json")


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


def publish_shards(
    unfinished: Path,
    path: Path,
    state: dict[str, Any],
    facts: dict[str, Any],
    index: sharded.Index,
    files: sharded.Files,
) -> None:
    """Complete the folder of a checkpoint whose shards are written, and give it its name. Raises OSError.

    `state` has meta tensors in place of the divided ones; the weights file gets each of these from the shards, one at
    a time.
    """
    step, content = state["step"], canonical({"format": FORMAT, **state})
    write_weights(weights_path(path.parent, step), state, lambda key: sharded.whole_tensor(unfinished, key, index))
    files[sharded.STATE] = sharded.written(unfinished / sharded.STATE, lambda file: torch.save(content, file))
    sums = json.dumps([[name, files[name]["sha256"]] for name in sorted(files)])
    manifest = {"format": FORMAT, "file": path.name, "step": step, "files": files}
    manifest["sha256"] = hashlib.sha256(sums.encode()).hexdigest()  # what identifies it
    manifest["size"] = sum(file["size"] for file in files.values())
    write_json(unfinished / sharded.MANIFEST, {**manifest, **facts})
    before = sharded.unfinished(path.parent, f"{path.name}.old")
    if path.is_dir():  # one of the same step, which is damaged, or lacks the last evaluation
        replace(path, before)
    replace(unfinished, path)
    sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


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
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.suffix != ".pt" and not path.is_dir():
            continue
        try:
            found.append(checkpoint_at(path))
        except FileNotFoundError:
            logger.warning("%s: ignored, its saving was interrupted (no manifest)", path)
        except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError):
            logger.warning("%s: ignored, its manifest is damaged", path)
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def checkpoint_at(path: Path) -> Checkpoint:
    """A checkpoint by its file or folder. Raises FileNotFoundError without a manifest, and others for a damaged one."""
    manifest = parse_json(manifest_path(path).read_text(encoding="utf-8"))
    numbers = {"step": int(manifest["step"]), "size": int(manifest["size"])}
    checkpoint = Checkpoint(path, {**manifest, **numbers, "sha256": str(manifest["sha256"])})
    for name, facts in checkpoint.files.items():
        if Path(name).name != name or not isinstance(facts["size"], int):
            raise ValueError(f"{name} is no file of the checkpoint")
        str(facts["sha256"])
    return checkpoint


def newest_checkpoint(folder: Path, together: bool = False) -> Checkpoint | None:
    """The newest checkpoint that is undamaged; damaged ones are reported.

    together: all processes of the run ask, each looks at its share of the files, and all get the same answer.
    """
    shares = distributed.world_size() if together else 1
    for checkpoint in checkpoints_in(folder):
        if shares > 1:
            damage = distributed.first_found(checkpoint.damage(distributed.rank(), shares))
        else:
            damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        logger.warning("WARN %s: damaged, it %s; the previous checkpoint is used", checkpoint.path, damage)
    return None


def checkpoint_of(path: Path) -> Checkpoint | None:
    """What a folder stands for: the newest undamaged checkpoint of a run, or a checkpoint in parts that is named."""
    if sharded.is_sharded(path):
        return next((checkpoint for checkpoint in checkpoints_in(path.parent) if checkpoint.path == path), None)
    return newest_checkpoint(path / "checkpoints")


def newest_weights(folder: Path) -> Path | None:
    """The weights of the last step in a folder that never had a training state, as of a trained model."""
    return None if any(folder.glob("step-*")) else max(folder.glob("weights-*.safetensors"), default=None)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The training state of a checkpoint, or of the newest valid checkpoint of a run folder.

    Keys: format, recipe, step, samples_seen, networks {name: state dict}, optimizers, ema {name: state dict}, config
    and more; tensors whole and on the CPU. A weights .safetensors, also the one of a run folder without training
    states, gives recipe, step, networks and config alone.
    Raises UserError for a missing, damaged, foreign or newer file.
    """
    path = Path(path)
    if path.is_dir() and not sharded.is_sharded(path):
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        newest = newest_checkpoint(folder)
        weights = newest_weights(folder)
        if newest is None and weights is None:
            raise UserError(f"{path}: holds no valid checkpoint; train first, or name a checkpoint file")
        if newest is None:
            return load_weights(weights)
        path = newest.path
    elif not path.exists():
        raise UserError(f"{path}: no such checkpoint; train first, or name another file")
    elif path.suffix == ".safetensors":
        return load_weights(path)
    else:
        check_manifest(path)
    return read_state(path)


def read_state(path: Path, example: Callable[[sharded.Key], Tensor | None] | None = None) -> dict[str, Any]:
    """The training state of a checkpoint, which is not verified. Raises UserError.

    example: gives the sharded tensors of this run, whose processes all read together. Of a checkpoint in parts, each
    reads its own shards; what a file holds stays on the disk until it is used.
    """
    if not path.is_dir():
        return migrate(read_tensors(path, mapped=example is not None), path)
    if example is None:
        return migrate(sharded.read_whole(path), path)
    from training.shard_storage import read_sharded

    return migrate(read_sharded(path, example), path)


def check_manifest(path: Path) -> None:
    """Compare a checkpoint with its manifest, where there is one."""
    manifest = manifest_path(path)
    if not manifest.is_file():
        return
    try:
        damage = checkpoint_at(path).damage()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{manifest}: damaged; remove it to read {path.name} unverified") from error
    if damage:
        raise UserError(f"{path}: damaged, it {damage}; use another checkpoint of {path.parent}")


def consolidate(path: str | Path, out: str | Path | None = None) -> Path:
    """Write a checkpoint in parts as one file, beside it under the name of its step unless `out` is given, with its
    manifest; gives its path. The whole state must fit in memory.

    path: the folder of the checkpoint, or a run folder, for its newest one. Raises UserError.
    """
    path = Path(path)
    if path.is_dir() and not sharded.is_sharded(path):
        newest = newest_checkpoint(path / "checkpoints")
        path = path if newest is None else newest.path
    if not sharded.is_sharded(path):
        raise UserError(f"{path}: is no checkpoint in parts; name a folder such as runs/NAME/checkpoints/step-0001000")
    out = path.with_suffix(".pt") if out is None else Path(out)
    if out.suffix != ".pt":
        raise UserError(f"{out}: a checkpoint of one file is a .pt; name it so")
    check_manifest(path)
    state = read_state(path)
    digest = write_file(out, lambda file: torch.save(canonical(state), file))
    manifest = {"format": FORMAT, "file": out.name, "step": state["step"], "sha256": digest, "size": out.stat().st_size}
    write_json(manifest_path(out), {**manifest, **{name: state[name] for name in MANIFEST_FACTS}})
    return out


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


def write_weights(path: Path, state: dict[str, Any], load: Callable[[str], Tensor] | None = None) -> None:
    """Write the weights of a training state atomically, the averaged ones where there are averages.

    load: gives what meta tensors stand for, by the key "<networks or ema>/<network>/<key>". Raises OSError when the
    disk refuses.
    """
    facts = {"averaged": sorted(state["ema"]), **{key: state.get(key) for key in FACTS}}
    metadata = {METADATA: json.dumps(facts)}
    kinds = {name: "ema" if name in state["ema"] else "networks" for name in state["networks"]}
    keys = {f"{name}.{key}": f"{kinds[name]}/{name}/{key}" for name, own in state["networks"].items() for key in own}
    loaded = None if load is None else (lambda name: load(keys[name]))
    write_file(path, lambda file: write_tensors(file, tensors_to_share(state), metadata, loaded))


def tensors_to_share(state: dict[str, Any]) -> dict[str, Tensor]:
    """ "<network>.<key>" -> tensor. Tied weights are stored once per key, because the format knows no sharing."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weights in {**state["networks"], **state["ema"]}.items():
        for key, value in weights.items():
            if value.is_meta:
                tensors[f"{name}.{key}"] = value
                continue
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
    own = module.state_dict()
    placed = {key: distributed.like(value, own[key]) for key, value in state_dict.items()}
    bad = [key for key, value in placed.items() if not distributed.is_finite(value)]
    if bad:  # a clamp behind the last layer can hide them, and a training that starts from them learns nothing
        raise UserError(
            f"{source}: {len(bad)} of {len(state_dict)} weights are not finite, first {bad[0]}: the file is damaged, "
            "or its training has diverged; use another checkpoint"
        )
    with torch.no_grad():
        module.load_state_dict(placed)


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
            self.take(saved[0])

    def take(self, saved: Checkpoint) -> None:
        """Keep a new checkpoint, and remove those that need not stay."""
        other_forms = [entry for entry in self.kept if entry.step == saved.step and entry.path != saved.path]
        self.kept = [saved, *(entry for entry in self.kept if entry.step != saved.step)]
        self.attempts.attempt("folder without the older checkpoints", lambda: self.thin_out(other_forms))

    def settle(self) -> None:
        """Wait for what is still being written."""

    def close(self) -> None:
        """Let nothing go on in the background, whatever ends the run."""

    def finish(self) -> None:
        """Raises UserError when the last attempt to write something failed."""
        self.settle()
        self.attempts.finish()

    def thin_out(self, replaced: Sequence[Checkpoint] = ()) -> None:
        """Remove the checkpoints that need not stay, and the other forms of the newest one. Raises OSError."""
        for checkpoint in replaced:
            checkpoint.remove()
        best = self.best()
        for checkpoint in self.kept[self.keep :]:
            if checkpoint is not best:
                checkpoint.remove()
                checkpoint.weights.unlink(missing_ok=True)
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


class ShardedSaver(Saver):
    """Saves the states of a run whose networks are sharded: every process writes its shards, while the training goes
    on. All processes have one, and save together; the main one alone removes and reports.
    """

    def __init__(self, folder: Path, first_step: int, keep: int, metric: tuple[str, str] | None) -> None:
        from training import shard_storage  # here: sharded trainings alone wait for its imports

        super().__init__(folder, first_step, keep, metric)
        self.storage = shard_storage
        self.attempts.quiet = not distributed.is_main()
        self.group = dist.new_group(backend="gloo", timeout=shard_storage.PATIENCE)  # they meet in the background
        self.pending: tuple[Path, Any] | None = None  # the checkpoint that is being written, and its future

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before is written: then the state may change."""
        self.settle()
        path = self.folder / f"step-{state['step']:07d}"
        unfinished = sharded.unfinished(self.folder, path.name)
        shards: dict[str, Any] = {}
        rest = sharded.divide(state, shards)
        facts = {name: rest[name] for name in MANIFEST_FACTS}
        end = partial(publish_shards, unfinished, path, rest, facts)  # in the main process
        self.pending = (path, self.storage.save(shards, unfinished, self.group, end))

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, and keep it."""
        if self.pending is None:
            return
        (path, future), self.pending = self.pending, None
        unfinished = sharded.unfinished(self.folder, path.name)
        saved = self.attempts.attempt("checkpoint", lambda: self.storage.result_of(future, unfinished))
        if saved and distributed.is_main():
            self.take(checkpoint_at(path))

    def close(self) -> None:
        """Let the checkpoint that is being written come to its end: the processes need each other for it."""
        if self.pending is not None:
            self.pending[1].exception()

    def improves(self, metrics: dict[str, float]) -> bool:
        self.settle()  # what is being written may be the best so far
        return super().improves(metrics)


def best_checkpoint(run_dir: str | Path, metric: tuple[str, str]) -> Path | None:
    """The checkpoint of a run folder with the best metric, such as ("psnr", "max"); None where none was measured."""
    best = Saver(Path(run_dir) / "checkpoints", 2**62, 1, metric).best()
    return best.path if best else None
