"""From the arguments of scripts/train_vqgan.py to trained models and their documented files."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from training import TrainSettings, derive_seed, settings_from, train
from training.checkpoint import load_checkpoint
from training.config import load_config
from training.distributed import barrier, is_main, join_processes
from training.loop import TrainResult
from training.saving import best_checkpoint
from videodata.errors import UserError
from vqgan.config import Objective, VQGANConfig, check_range
from vqgan.data import PatchDataset, open_frames
from vqgan.evaluate import write_test_scores
from vqgan.files import Model, build_model, load_discriminator, load_model, model_config, save_model, settle_device
from vqgan.ldm import LDM_CONFIGS
from vqgan.model import Discriminator
from vqgan.train import AdversarialRecipe, ReconstructionRecipe

logger = logging.getLogger(__name__)
JITTER = 0.05  # brightness, contrast, saturation, hue
OF_STAGE1 = ("lr", "vq_warmup", "decay_ramp")
OF_STAGE2 = (
    *("adv_weight", "gan_loss", "adaptive_weight", "adaptive_max"),
    *("disc_start", "disc_ramp", "disc_limit", "lr_g", "lr_d"),
)
OF_OTHER = {1: OF_STAGE2, 2: OF_STAGE1}  # not in a stage's configuration: a resumed run may change the other's part
STAGE1_FILE, GAN_FILE, DISCRIMINATOR_FILE = "best_model_stage1.pt", "best_model_gan.pt", "best_discriminator.pt"


def train_vqgan(args: argparse.Namespace) -> str:
    """Train both stages, or continue them, and give a summary of one line. Raises UserError."""
    check(args)
    settle_device(args)
    settle_precision(args)
    join_processes(args.device, args.process_timeout)
    training, validation, testing = (open_patches(args, split) for split in ("train", "val", "test"))
    per_epoch = -(-len(training) // args.batch_size)
    steps = args.steps or args.num_epoch * args.epochs_per_batch * per_epoch
    gan_steps = max(1, args.num_epoch - 1) * args.gan_epochs_per_batch * per_epoch
    gan_steps = gan_steps if args.gan_steps is None else args.gan_steps
    objective = build_objective(args, steps, gan_steps, per_epoch)

    summary = []
    if not args.gan_mode:
        recipe = ReconstructionRecipe(start_model(args), objective, *recipe_options(args))
        result = run_stage(args, 1, recipe, training, validation, steps, per_epoch)
        if not result.finished:
            return f"{args.checkpoint_dir}: stage 1 stopped at step {result.step}; the same command continues"
        summary.append(describe("stage 1", result))
    if gan_steps:
        recipe = adversarial_recipe(args, objective)
        result = run_stage(args, 2, recipe, training, validation, gan_steps, per_epoch)
        if not result.finished:
            return f"{args.checkpoint_dir}: stage 2 stopped at step {result.step}; the same command continues"
        summary.append(describe("stage 2", result))
    best = args.checkpoint_dir / (GAN_FILE if gan_steps else STAGE1_FILE)
    if is_main():
        write_test_scores(best, testing, args.results_dir / "test_scores.json", args.device)
    return f"{best}: {'; '.join(summary)}"


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, and for numbers out of range that no configuration checks."""
    if args.cache_mode:
        logger.info("--cache_mode: no effect; data files are memory-mapped anyway")
    if args.gan_mode and args.resume in ("auto", "never") and not (args.checkpoint_dir / STAGE1_FILE).is_file():
        raise UserError(
            f"--gan_mode needs a model of stage 1: name it with --resume FILE, or train {STAGE1_FILE} in "
            f"{args.checkpoint_dir} first"
        )
    check_range(args, ("patch_size", "num_patches_h", "num_patches_w"), 1)
    check_range(args, ("steps", "num_epoch", "epochs_per_batch", "batch_size", "accumulation"), 1)
    check_range(args, ("gan_steps", "gan_epochs_per_batch", "test_batch", "checkpoint_freq", "vis_freq"))


def settle_precision(args: argparse.Namespace) -> None:
    """Let --fp16 have its say: mixed precision on a GPU, in bf16, whose range the adaptive weight's gradients need."""
    if args.fp16 and args.precision == "fp32":
        on_gpu = args.device != "cpu" and torch.cuda.is_available()
        args.precision = "bf16" if on_gpu else "fp32"
        logger.info("--fp16: %s", "mixed precision in bf16" if on_gpu else "no effect on a CPU")


def open_patches(args: argparse.Namespace, split: str) -> PatchDataset:
    """The patches of one split; only training patches are augmented."""
    augment = args.augment and split == "train"
    size = args.num_patches_h * args.patch_size, args.num_patches_w * args.patch_size
    clips = open_frames(args.data_path, split, size, test_batch=args.test_batch, seed=args.seed, flip=augment)
    return PatchDataset(clips, args.num_patches_h, args.num_patches_w, JITTER if augment else 0.0)


def build_objective(args: argparse.Namespace, steps: int, gan_steps: int, per_epoch: int) -> Objective:
    """The objective that the flags describe, with schedules that fit into the run."""
    chosen = {entry.name: getattr(args, entry.name) for entry in fields(Objective) if hasattr(args, entry.name)}
    # The defaults are for long runs: in a short one the quantiser would never start, nor the adversarial term.
    limits = {"vq_warmup": steps // 5, "decay_ramp": steps // 2, "disc_ramp": gan_steps // 5}
    for name, limit in limits.items():
        if chosen[name] > limit:
            logger.info("%s is %d in this short run, not %d", name, limit, chosen[name])
            chosen[name] = limit
    if args.disc_start is None:
        chosen["disc_start"] = min(per_epoch, gan_steps // 10)
    return Objective(**chosen)


def start_model(args: argparse.Namespace) -> Model:
    """The generator before stage 1: new, or with the weights that --resume names."""
    if args.resume not in ("auto", "never"):
        return load_model(args.resume, flags_config(args)).train()
    torch.manual_seed(derive_seed(args.seed, "weights"))
    return build_model(flags_config(args))


def flags_config(args: argparse.Namespace) -> dict[str, Any]:
    """The model's configuration as the flags describe it."""
    if args.ldm in LDM_CONFIGS:
        return {"type": "ldm", **LDM_CONFIGS[args.ldm], "commitment_cost": args.commitment_cost}
    if args.ldm:
        return {"type": "ldm", **load_config(args.ldm)}
    config = {entry.name: getattr(args, entry.name) for entry in fields(VQGANConfig) if hasattr(args, entry.name)}
    return {"type": "vqgan", **config, "dead_code_fraction": dead_code_fraction(args)}


def dead_code_fraction(args: argparse.Namespace) -> float:
    """Share of the mean usage below which a code is revived; 0 under --no-restart_unused."""
    return args.dead_code_fraction if args.restart_unused else 0.0


def recipe_options(args: argparse.Namespace) -> tuple[str | None, int, float]:
    """What both recipes are told beside model and objective."""
    return args.vgg_weights, args.accumulation, dead_code_fraction(args)


def adversarial_recipe(args: argparse.Namespace, objective: Objective) -> AdversarialRecipe:
    """Stage 2 on the best model of stage 1, or on the one that --resume names under --gan_mode."""
    named = args.gan_mode and args.resume not in ("auto", "never")
    model = load_model(args.resume if named else args.checkpoint_dir / STAGE1_FILE, flags_config(args)).train()
    torch.manual_seed(derive_seed(args.seed, "discriminator"))
    discriminator = Discriminator(args.hidden_dims)
    if args.resume_disc:
        load_discriminator(args.resume_disc, discriminator)
    return AdversarialRecipe(model, discriminator, objective, *recipe_options(args))


def run_stage(
    args: argparse.Namespace, stage: int, recipe: ReconstructionRecipe, training: PatchDataset,
    validation: PatchDataset, steps: int, per_epoch: int,
) -> TrainResult:  # fmt: skip
    """Train one stage to its end, or to the next stop, and write its best model."""
    if recipe.objective.perceptual_weight > 0:
        find_perceptual_weights(recipe)
    recipe.model.set_checkpointing(args.checkpointing)
    settings = stage_settings(args, stage, steps, per_epoch)
    grid = {name: getattr(args, name) for name in ("patch_size", "num_patches_h", "num_patches_w")}
    config = {
        "model": model_config(recipe.model),
        "objective": {name: value for name, value in asdict(recipe.objective).items() if name not in OF_OTHER[stage]},
        "data": {"data_path": str(args.data_path), "test_batch": args.test_batch, "augment": args.augment, **grid},
        "stage": stage,
    }
    if is_main():
        link(settings.run_dir / "log", args.log_dir / f"stage{stage}")
        link(settings.run_dir / "samples", args.results_dir / f"stage{stage}")
    logger.info("stage %d: %d steps, %d patches, %d to validate", stage, steps, len(training), len(validation))
    result = train(recipe, training, settings, config, validation)
    if result.finished and is_main():
        write_best(args.checkpoint_dir, settings.run_dir, recipe, stage)
    barrier()
    return result


def find_perceptual_weights(recipe: ReconstructionRecipe) -> None:
    """Look for LPIPS's weights now and not after the first step. Raises UserError."""
    try:
        recipe.perceptual.weights_file()
    except UserError as error:
        raise UserError(f"{error} (--perceptual_weight 0)") from error


def stage_settings(args: argparse.Namespace, stage: int, steps: int, per_epoch: int) -> TrainSettings:
    """The loop's settings for one stage."""
    values = argparse.Namespace(**vars(args))
    values.resume = "never" if args.resume == "never" else "auto"
    values.save_every = args.checkpoint_freq * per_epoch or args.save_every
    values.pictures_every = args.vis_freq * per_epoch or args.pictures_every
    del values.steps
    return settings_from(values, args.checkpoint_dir / f"stage{stage}", steps)


def write_best(folder: Path, run_dir: Path, recipe: ReconstructionRecipe, stage: int) -> None:
    """Write the best checkpoint's networks under their documented names."""
    best = best_checkpoint(run_dir, recipe.best_metric)
    checkpoint = load_checkpoint(best or run_dir)
    facts = {"config": checkpoint["config"], "step": checkpoint["step"], "metrics": checkpoint["metrics"]}
    networks = {**checkpoint["networks"], **checkpoint["ema"]}
    recipe.model.load_state_dict(networks["model"])
    save_model(folder / (STAGE1_FILE if stage == 1 else GAN_FILE), recipe.model, stage=stage, **facts)
    if isinstance(recipe, AdversarialRecipe):
        recipe.discriminator.load_state_dict(networks["discriminator"])
        save_model(folder / DISCRIMINATOR_FILE, recipe.discriminator, stage=stage, **facts)


def link(inner: Path, outer: Path) -> None:
    """Make `outer`, and let the run folder's `inner` lead there, so that the loop writes to the documented place."""
    if inner.is_symlink() or inner.exists():
        return
    outer.mkdir(parents=True, exist_ok=True)
    inner.parent.mkdir(parents=True, exist_ok=True)
    inner.symlink_to(os.path.relpath(outer.resolve(), inner.parent.resolve()), target_is_directory=True)


def describe(name: str, result: TrainResult) -> str:
    """The last validation of a stage in a few words."""
    shown = ("psnr", "lpips", "codes_used", "perplexity", "discriminator_accuracy")
    scores = ", ".join(f"{key} {result.metrics[key]:.4g}" for key in shown if key in result.metrics)
    return f"{name} {result.step} steps, {scores}"
