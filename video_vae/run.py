"""From the arguments of main.py to a trained model and its documented files."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from training import derive_seed, distributed, settings_from, train
from training.checkpoint import load_checkpoint, strict_load
from training.files import sha256_of
from training.folder import FREE_KEYS
from training.settings import TrainSettings
from video_vae.clips import FRAMES, ClipSettings, open_training_clips, stored_shape
from video_vae.config import VideoVAEConfig, load_preset
from video_vae.epoch_files import (
    StoredModel,
    epoch_file,
    model_settings,
    read_model,
    split_model_path,
    write_epoch_file,
)
from video_vae.model import TransformerNetwork
from video_vae.train import LossConfig, VideoVAERecipe
from videodata.errors import UserError

logger = logging.getLogger(__name__)
RUNS = Path("runs")


def train_video_vae(args: argparse.Namespace) -> str:
    """Train, or continue, and give a summary of one line. Raises UserError for what the user can put right."""
    stem, offset = split_model_path(Path(args.model_path))
    stored = read_start(args) if args.load_model else None
    if stored and not offset:
        offset = stored.epoch or 0
    clip_settings, config = clips_and_model(args, stored)
    training, validation = open_training_clips(clip_settings)
    if len(training) < args.batch_size:
        raise UserError(
            f"{args.npy_file}: {len(training)} clips to train on are fewer than --batch_size {args.batch_size}; "
            "use a smaller batch, or --val_fraction 0"
        )
    recipe = build_recipe(args, config, stored, stem, offset)
    complete = complete_config(args, config, recipe, clip_settings)
    steps = args.num_epochs * -(-len(training) // args.batch_size)
    settings = settings_from(args, Path(), steps)
    settings.run_dir = run_folder(args, stem, complete, settings)
    result = train(recipe, training, settings, complete, validation)
    if not result.finished:
        return f"{settings.run_dir}: stopped at step {result.step} of {steps}; the same command continues"
    last = epoch_file(stem, offset + args.num_epochs)
    if distributed.is_main() and not last.exists():
        write_epoch_file(stem, offset + args.num_epochs, load_checkpoint(settings.run_dir))
    scores = "".join(f", {name} {value:.4g}" for name, value in result.metrics.items() if name in ("psnr", "kl_bits"))
    return f"{settings.run_dir}: finished after {result.step} steps{scores}; weights in {last}"


def read_start(args: argparse.Namespace) -> StoredModel:
    """The weights that --load_model starts from."""
    if not Path(args.model_path).exists():
        raise UserError(
            f"{args.model_path}: no such file; --load_model needs the exact name that training wrote, "
            "such as transformer_model_epoch_50.pth; python main.py without --load_model makes it"
        )
    return read_model(args.model_path)


def clips_and_model(args: argparse.Namespace, stored: StoredModel | None) -> tuple[ClipSettings, VideoVAEConfig]:
    """What to train on and what to train, from the flags, the data and the file that training starts from."""
    chosen = args.preset or args.config or args.set
    if stored and stored.config and not chosen:
        model = dict(stored.config["model"])
    else:
        model = load_preset(args.preset, args.config, args.set)
    frames, size = stored_shape(args.npy_file)
    if not args.npy_file.endswith(".npy"):
        frames, size = FRAMES, model["image_size"]
    size = tuple(args.size or size)
    clips = ClipSettings(
        args.npy_file, args.frames or frames, size, args.stride, args.flip, args.val_fraction, args.seed
    )
    return clips, VideoVAEConfig.from_dict({**model, "image_size": size})


def build_recipe(
    args: argparse.Namespace, config: VideoVAEConfig, stored: StoredModel | None, stem: Path, offset: int
) -> VideoVAERecipe:
    """The network, freshly initialised or loaded, with its losses and optimiser."""
    loss = LossConfig(**{entry.name: getattr(args, entry.name) for entry in fields(LossConfig)})
    torch.manual_seed(derive_seed(args.seed, "weights"))
    network = TransformerNetwork(config, checkpointing=not args.no_checkpointing)
    if stored:
        strict_load(network, stored.trained, args.model_path)
    files = {"epoch_stem": stem, "epoch_offset": offset, "epoch_every": args.epoch_every}
    recipe = VideoVAERecipe(
        network, loss, args.learning_rate, args.weight_decay, args.optimizer, args.vgg_weights, **files
    )
    if stored and stored.optimizer:
        load_moments(recipe.optimizers["vae"], stored.optimizer)
    if loss.perceptual_weight:
        try:
            recipe.perceptual.weights_file()  # now, and not after the data has been read
        except UserError as error:
            raise UserError(f"{error} (--perceptual_weight 0)") from error
    return recipe


def load_moments(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Take over the optimiser's moments; learning rate and weight decay stay those of this command.

    Raises UserError when they are of another optimiser.
    """
    own = [sorted(group) for group in optimizer.param_groups]
    if own != [sorted(group) for group in stored["param_groups"]]:
        raise UserError("the file to continue was trained with another --optimizer; name the same one")
    chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(stored)
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)


def complete_config(
    args: argparse.Namespace, config: VideoVAEConfig, recipe: VideoVAERecipe, clips: ClipSettings
) -> dict[str, Any]:
    """Everything that defines the run apart from the engine's settings."""
    return {
        "model": model_settings(config),
        "loss": asdict(recipe.loss),
        "optimizer": {
            "name": args.optimizer,
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
        },
        "data": {**asdict(clips), "size": list(clips.size)},
        "model_path": args.model_path,
        "starts_from": sha256_of(Path(args.model_path)) if args.load_model else None,
        "checkpointing": not args.no_checkpointing,
    }


def run_folder(args: argparse.Namespace, stem: Path, config: dict[str, Any], settings: TrainSettings) -> Path:
    """The folder that the flags name, or one whose name is a hash of what defines the run.

    So the same command continues its run, a longer run continues it too, and another configuration starts its own.
    """
    if args.run_dir:
        return Path(args.run_dir)
    if args.run_name:
        return RUNS / args.run_name
    defining = {**config, "training": asdict(settings)}
    return RUNS / f"{stem.name}-{hashlib.sha256(canonical(defining).encode()).hexdigest()[:8]}"


def canonical(config: dict[str, Any]) -> str:
    """Text that is equal for configurations of the same run."""
    free = FREE_KEYS | VideoVAERecipe.free_keys
    plain = {key: without(value, free) for key, value in config.items() if key not in free}
    return json.dumps(plain, sort_keys=True)


def without(value: Any, keys: frozenset[str]) -> Any:
    """Nested dicts without these keys."""
    if not isinstance(value, dict):
        return value
    return {key: without(entry, keys) for key, entry in value.items() if key not in keys}
