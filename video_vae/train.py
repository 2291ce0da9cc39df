"""How the video VAE is trained: its losses (10 MSE + beta KL + a perceptual term), and the command main.py."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from evaluation.metrics import SMALLEST_SIDE, psnr, ssim
from losses.kl import free_bits, linear_ramp
from losses.perceptual import build_perceptual, perceptual_loss
from training import derive_seed, distributed, settings_from, train
from training.checkpoint import checkpoints_in, load_checkpoint, strict_load
from training.cli import command_line
from training.folder import FREE_KEYS
from training.optim import build_optimizer
from training.recipe import Losses, Networks, Recipe, Step
from training.settings import TrainSettings
from training.writing import check_place
from video_vae.config import (
    LEARNING_RATE,
    MODEL_PATH,
    OPTIMIZERS,
    WEIGHT_DECAY,
    LossConfig,
    VideoVAEConfig,
    load_config,
)
from video_vae.files import Stored, epoch_file, read_weights, run_of, split_model_path, write_epoch_file
from video_vae.layers import ContextBlock
from video_vae.model import Moment, TransformerNetwork, all_moments, kept_bytes
from video_vae.scores import kl_bits
from videodata.clips import ClipDataset, open_clips
from videodata.errors import UserError
from videodata.files import sha256_of
from videodata.pixels import normalize
from videodata.sources import open_source
from videodata.splits import declared_splits

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.99)
LARGE = 50_000_000  # parameters, that a CPU is too slow for
SAMPLES_SHOWN = 4
FILLED = 0.5  # of the free memory, with what the activations of a step are kept in; losses and loaders need some, too
FRAMES = 16  # per clip, for sources of whole videos
RUNS = Path("runs")


class VideoVAERecipe(Recipe):
    """Trains a TransformerNetwork on clips, uint8 (B, 3, T, H, W).

    Writes `<stem>_epoch_<N>.pth` after each epoch where an `epoch_stem` is given. `epoch_offset`: epochs that earlier
    runs have trained, counted on in the file names. `epoch_every`: 1 in so many epochs leaves a file.
    """

    name = "video_vae"
    best_metric = ("psnr", "max")
    ema_networks = ("vae",)
    shard_types = (ContextBlock,)
    forward_methods = ("encode", "decode", "generate")
    free_keys = frozenset({"checkpointing"})

    def __init__(
        self,
        network: TransformerNetwork,
        loss: LossConfig,
        learning_rate: float = LEARNING_RATE,
        weight_decay: float = WEIGHT_DECAY,
        optimizer: str = OPTIMIZERS[0],
        vgg_weights: Path | str | None = None,
        epoch_stem: Path | None = None,
        epoch_offset: int = 0,
        epoch_every: int = 1,
    ) -> None:
        # a coherent step of all weights of a kernel, AdamW's, is too far for a path of convolutions alone
        kernels = network.config.clip_path.times > 0
        options = {"betas": BETAS, "weight_decay": weight_decay, "convolutions": kernels}
        built = build_optimizer(optimizer, network.parameters(), learning_rate, **options)
        super().__init__({"vae": network}, {"vae": built})
        self.loss = loss
        self.perceptual = build_perceptual(loss.perceptual, vgg_weights)
        self.epoch_stem, self.epoch_offset, self.epoch_every = epoch_stem, epoch_offset, epoch_every
        self.shown: list[str] = []  # flags that name clips, of the command that shows what was learnt
        # clips of one frame leave the generator's last states without influence
        self.find_unused_parameters = network.config.gen_iterations == 1

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        moments = self.moments(step, batch.shape[2])
        # the latents are those of the whole clip, however many of its frames a step shows
        pixel_values = batch[0].numel()
        whole = normalize(batch)
        batch = whole[:, :, [t for t, _ in moments]]
        reconstruction, terms = networks["vae"](batch, step.noise, moments, whole)
        error = squared_error(reconstruction, batch)
        nats = {name: kl / pixel_values for name, kl in terms.items()}  # per pixel value, (B,)
        paid = sum(free_bits(kl, self.loss.free_bits) for kl in terms.values()) / pixel_values
        similarity = perceptual_loss(
            self.perceptual, batch, reconstruction, self.loss.perceptual_weight, self.loss.perceptual_frames, step.noise
        )
        total = self.loss.recon_weight * error + self.kl_weight(step) * paid + similarity
        logged = {"mse": error, "kl": sum(nats.values()), **nats, "perceptual": similarity}
        yield Losses(total.mean(), {name: value.mean().detach() for name, value in logged.items()})

    def moments(self, step: Step, frames: int) -> list[Moment]:
        """The frames of each clip that this step uses: 1, 2, 4, ... of them, evenly spread, and after the warm-up all.

        Fewer frames cost less and show more scenes in the same time, so that space is learnt before time
        (curriculum over sequence length: Li et al. 2022, arXiv 2108.06084).
        """
        stages, warmup = (frames - 1).bit_length(), self.loss.frames_warmup_steps
        stage = stages if step.index >= warmup else step.index * stages // warmup
        apart = 2 ** (stages - stage)
        return all_moments(frames)[step.index % min(apart, frames) :: apart]

    def kl_weight(self, step: Step) -> float:
        """The weight of the KL at this step; without its ramp the posterior collapses before the decoder learns."""
        length = self.loss.kl_warmup_steps or max(100, step.total_steps // 10)
        return self.loss.kl_weight * linear_ramp(step.index, length=length)

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        batch = normalize(batch)
        reconstruction, terms = networks["vae"](batch, step.noise)
        scores = {"psnr": psnr(batch, reconstruction), "mse": squared_error(reconstruction, batch)}
        if min(batch.shape[-2:]) >= SMALLEST_SIDE:
            scores["ssim"] = ssim(batch, reconstruction)
        return {**scores, **kl_bits(terms)}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        batch = normalize(batch)
        reconstruction, _ = networks["vae"](batch, step.noise)
        generator = torch.Generator().manual_seed(0)
        frames, size = batch.shape[2], tuple(batch.shape[3:])
        samples = networks["vae"].generate(SAMPLES_SHOWN, frames, generator, size=size)
        return {"original": batch, "reconstruction": reconstruction, "samples": samples}

    def show_command(self, run_dir: Path) -> str:
        return command_line(["python", "scripts/generate_video_vae.py", "--checkpoint", str(run_dir), *self.shown])

    def writes_epoch(self, epoch: int) -> bool:
        return self.epoch_stem is not None and epoch % self.epoch_every == 0

    def on_epoch_end(self, epoch: int, checkpoint: Callable[[], dict[str, Any]]) -> None:
        if self.writes_epoch(epoch):
            write_epoch_file(self.epoch_stem, epoch + self.epoch_offset, checkpoint())


def squared_error(reconstruction: Tensor, clip: Tensor) -> Tensor:
    """Mean squared error per clip in [0, 1] units: (B, 3, T, H, W) in [-1, 1] -> (B,)."""
    return ((reconstruction - clip) / 2).pow(2).flatten(1).mean(dim=1)


def train_video_vae(args: argparse.Namespace) -> str:
    """Train, or continue, and give what is to be said at the end. Raises UserError for what the user can put right."""
    writes_epochs = args.model_path or not (args.run_dir or args.run_name)
    args.model_path = args.model_path or MODEL_PATH
    stem, offset = split_model_path(Path(args.model_path))
    stored = read_start(args.model_path) if args.load_model else None
    if stored and not offset:
        offset = stored.epoch or 0
    data, config = clips_and_model(args, stored)
    training, validation = open_data(data)
    per_epoch = -(-len(training) // args.batch_size)
    if len(training) < args.batch_size:
        raise UserError(
            f"{args.data}: {len(training)} clips to train on are fewer than --batch_size {args.batch_size}; "
            "use a smaller batch, or --val_fraction 0"
        )
    recipe = build_recipe(args, config, stored, stem if writes_epochs else None, offset)
    size = sum(parameter.numel() for parameter in recipe.networks["vae"].parameters())
    if size > LARGE and distributed.resolve_device(args.device).type == "cpu":
        recipe.notes.append(
            f"WARN {size // 1_000_000} million parameters on a CPU: a step takes many seconds; --preset small or tiny "
            "learns there in minutes"
        )
    recipe.shown = ["--data", args.data, *([] if validation else ["--split", "train"])]
    complete = run_config(args, config, recipe.loss, data)
    folder = run_folder(args, stem, complete)
    complete["checkpointing"] = recipe.networks["vae"].checkpointing = recomputes(args, recipe, data, folder)
    steps = args.steps or args.num_epochs * per_epoch
    if writes_epochs and not args.overwrite:
        check_epoch_files(stem, offset, -(-steps // per_epoch), folder)
    check_place(epoch_file(stem, offset + 1) if writes_epochs else folder / "config.yaml")
    result = train(recipe, training, settings_from(args, folder, steps), complete, validation)
    facts = result.scores("psnr", "kl_bits")
    if result.finished and writes_epochs:
        last = epoch_file(stem, offset + -(-steps // per_epoch))
        # the epoch may be broken off by --steps, not be one of --epoch_every, or its file have been removed since
        if distributed.is_main() and (steps % per_epoch or not last.exists()):
            write_epoch_file(stem, offset + -(-steps // per_epoch), load_checkpoint(folder))
        facts.append(f"weights in {last}")
    return result.told(*facts)


def check_epoch_files(stem: Path, offset: int, epochs: int, folder: Path) -> None:
    """Raises UserError where the files of the epochs would take the place of another run's.

    A run that continues has written its files before; one that was killed before its first checkpoint, too.
    """
    if checkpoints_in(folder / "checkpoints"):
        return
    for epoch in range(offset + 1, offset + epochs + 1):
        path = epoch_file(stem, epoch)
        if path.exists() and run_of(path) != str(folder):
            raise UserError(
                f"{path}: is of another run; name another --model_path, or write over its files with --overwrite"
            )


def read_start(path: str) -> Stored:
    """The weights that --load_model starts from."""
    if not Path(path).exists():
        raise UserError(
            f"{path}: no such file; --load_model needs the exact name that training wrote, "
            "such as transformer_model_epoch_50.pth; python main.py without --load_model makes it"
        )
    return read_weights(path)


def clips_and_model(args: argparse.Namespace, stored: Stored | None) -> tuple[dict[str, Any], VideoVAEConfig]:
    """What to train on and what to train, from the flags, the data and the file that training starts from."""
    chosen = args.preset or args.config or args.set
    if stored and stored.config and not chosen:
        model = dict(stored.config["model"])
    else:
        model = load_config(args.preset, args.config, args.set)
    stored_clips = args.data.endswith(".npy")  # whose own length and size are kept; others are whole videos
    frames, size = stored_shape(args.data) if stored_clips else (FRAMES, model["image_size"])
    size = list(args.size or size)  # (height, width)
    data = {"path": args.data, "frames": args.frames or frames, "size": size, "stride": args.stride}
    data |= {"flip": args.flip, "val_fraction": args.val_fraction, "seed": args.seed}
    return data, VideoVAEConfig.from_dict({**model, "image_size": size})


def stored_shape(path: str) -> tuple[int, tuple[int, int]]:
    """Frames and (height, width) of the clips in a .npy. Raises UserError, which names the command that makes one."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; make it with: python prepare_ucf101.py --output_npy_file {path}")
    source = open_source(path)
    if source.broken and not len(source):
        raise source.broken[0]
    if not len(source):
        raise UserError(f"{path}: holds no clip; see what the preparation skipped, or name another source")
    return source.length(0), source.size(0)


def open_data(data: dict[str, Any]) -> tuple[ClipDataset, ClipDataset | None]:
    """Clips to train on and to validate with, uint8 (3, T, H, W), by what the data declares (videodata/splits.py).

    `val_fraction` is held out of data that declares nothing; where it is 0 and nothing is declared, all is trained on.
    """
    shape = {name: data[name] for name in ("path", "frames", "size", "stride", "seed")}
    shape |= {"dtype": "uint8", "held_out": data["val_fraction"]}
    training = open_clips(split="train", flip=data["flip"], **shape)
    if not data["val_fraction"] and "val" not in declared_splits(data["path"]):
        return training, None
    try:
        return training, open_clips(split="val", **shape)
    except UserError as error:
        raise UserError(f"{error} (--val_fraction 0 trains without validation)") from error


def build_recipe(
    args: argparse.Namespace, config: VideoVAEConfig, stored: Stored | None, stem: Path | None, offset: int
) -> VideoVAERecipe:
    """The network, freshly initialised or loaded, with its losses and optimiser."""
    loss = LossConfig(**{entry.name: getattr(args, entry.name) for entry in fields(LossConfig)})
    torch.manual_seed(derive_seed(args.seed, "weights"))
    network = TransformerNetwork(config)
    if stored:
        strict_load(network, stored.trained, args.model_path)
    recipe = VideoVAERecipe(
        network, loss, args.learning_rate, args.weight_decay, args.optimizer, args.vgg_weights,
        epoch_stem=stem, epoch_offset=offset, epoch_every=args.epoch_every,
    )  # fmt: skip
    if stored and stored.optimizer:
        load_moments(recipe.optimizers["vae"], stored.optimizer)
    if loss.perceptual_weight:
        try:
            recipe.perceptual.weights_file()  # now, and not after the data has been read
        except UserError as error:
            raise UserError(f"{error} (--perceptual_weight 0)") from error
    return recipe


def recomputes(args: argparse.Namespace, recipe: VideoVAERecipe, data: dict[str, Any], folder: Path) -> bool:
    """Whether activations are computed again in the backward pass: what --checkpointing says, or where that is `auto`,
    what the folder's run did so far, as the results differ by rounding; else whether they would not fit.
    """
    if args.checkpointing != "auto":
        return args.checkpointing == "on"
    stored = folder / "config.yaml"
    before = yaml.safe_load(stored.read_text(encoding="utf-8")) if checkpoints_in(folder / "checkpoints") else {}
    if isinstance(before.get("checkpointing"), bool):
        return before["checkpointing"]
    world, here = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "LOCAL_RANK"))
    free = distributed.free_memory(distributed.resolve_device(args.device, here))
    network, share = recipe.networks["vae"], args.batch_size // (max(1, world) * args.accumulation)
    needed = kept_bytes(network.config, max(1, share), data["frames"], data["size"])
    state = 3 * sum(parameter.nbytes for parameter in network.parameters())  # gradients and moments
    fits = free is not None and needed + state < FILLED * free
    done, other = ("are kept", "on") if fits else ("are computed again in the backward pass", "off")
    told = "an unknown amount" if free is None else f"{free / 1e9:.1f} GB"
    if distributed.is_main():
        recipe.notes.append(
            f"activations {done}: {needed / 1e9:.2f} GB of them, {told} of memory free (--checkpointing {other} does "
            "the other)"
        )
    return not fits


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


def run_config(
    args: argparse.Namespace, config: VideoVAEConfig, loss: LossConfig, data: dict[str, Any]
) -> dict[str, Any]:
    """Everything that defines the run apart from the engine's settings."""
    return {
        "model": asdict(config),
        "loss": asdict(loss),
        "optimizer": {
            "name": args.optimizer,
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
        },
        "data": data,
        "model_path": args.model_path,
        "starts_from": sha256_of(Path(args.model_path)) if args.load_model else None,
    }


def run_folder(args: argparse.Namespace, stem: Path, config: dict[str, Any]) -> Path:
    """The folder that the flags name, or one whose name is a hash of what defines the run.

    So the same command continues its run, a longer run continues it too, and another configuration starts its own.
    """
    if args.run_dir:
        return Path(args.run_dir)
    if args.run_name:
        return RUNS / args.run_name
    engine = {entry.name: getattr(args, entry.name, None) for entry in fields(TrainSettings)}
    defining = without({**config, "engine": engine}, FREE_KEYS | VideoVAERecipe.free_keys)
    text = json.dumps(defining, sort_keys=True)
    return RUNS / f"{stem.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def without(value: Any, keys: frozenset[str]) -> Any:
    """Nested dicts without these keys."""
    if not isinstance(value, dict):
        return value
    return {key: without(entry, keys) for key, entry in value.items() if key not in keys}
