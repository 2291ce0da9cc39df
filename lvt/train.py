"""How the two networks are trained: the VQ-VAE on frames, the transformer on slices of clips of codes; and the command
scripts/train_lvt.py.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from losses.perceptual import LPIPS
from lvt.config import configure, is_transformer
from lvt.datasets import class_names, open_code_windows, open_frames, thinned, together
from lvt.evaluators import evaluate_lvt, evaluators_of, missed_expectations
from lvt.files import (
    build_transformer,
    build_vqvae,
    find_sampler_vqvae,
    load_transformer_weights,
    load_vqvae_weights,
    write_original,
)
from lvt.generate import generate_frames
from lvt.subscale import slice_frames, slice_of_position
from lvt.transformer import VideoTransformer, bits_per_code, bits_per_subpixel, clip_nats, cross_entropy
from lvt.vqvae import VQVAE, decode_clips
from training import TrainSettings, distributed, optim, train
from training.randomness import seed_everything
from training.recipe import Losses, Networks, Recipe, Step
from videodata import pixels
from videodata.clips import provenance_of
from videodata.errors import UserError

logger = logging.getLogger(__name__)
CLIPS_SHOWN, FRAMES_SHOWN = 4, 8  # in the log's pictures
FREE_KEYS = frozenset(
    {
        *("MAX_ITER", "DEVICE", "NUM_WORKERS", "OUTPUT_DIR", "CHECKPOINT_PERIOD", "EVAL_PERIOD", "VIS_PERIOD"),
        *("LOG_PERIOD", "MAX_MINUTES", "EVALUATORS", "N_SAMPLES", "TEST", "GRADIENT_CHECKPOINTING", "COMPILE", "CFG"),
        *("WEIGHTS", "ENCODER_WEIGHTS", "GENERATOR_WEIGHTS", "CODEBOOK_WEIGHTS", "NUM_SAMPLES", "TEMPERATURE"),
        *("TOP_K", "TOP_P", "EXPECTED_RESULTS"),
    }
)  # last parts of the configuration keys that a continued run may change


class LVTRecipe(Recipe):
    """What both networks have in common."""

    free_keys = FREE_KEYS
    held_out: str | None = None  # flags of evaluate.py for clips that are not trained on

    def show_command(self, run_dir: Path) -> str | None:
        if self.held_out is None:
            return None
        return f"python scripts/evaluate.py lvt --checkpoint {run_dir} {self.held_out} --clips_dir {run_dir}/clips"


class VQVAERecipe(LVTRecipe):
    """Trains a VQVAE on clips (B, 3, T, H, W) uint8, frame by frame. `config` is the whole configuration."""

    name = "lvt-vqvae"
    best_metric = ("mse", "min")
    ema_networks = ("vqvae",)

    def __init__(self, model: VQVAE, config: dict[str, Any]) -> None:
        super().__init__({"vqvae": model}, {"vqvae": optimizer_of(model, config["SOLVER"])})
        self.first_quantized = int(config["SOLVER"]["MAX_ITER"] * model.config.codebook.start_after)  # step
        weight, file = config["LOSS"]["PERCEPTUAL"]["LAMBDA"], config["LOSS"]["PERCEPTUAL"]["WEIGHTS"]
        self.perceptual_weight = weight
        self.perceptual = LPIPS(weights=file or None) if weight > 0 else None

    def losses(self, batch: Tensor, step: Step, networks: Networks) -> Iterator[Losses | None]:
        model = self.networks["vqvae"]
        frames = model.normalize(frames_of(batch))
        out = networks["vqvae"](frames, step.index >= self.first_quantized)
        terms = model.losses(frames, out)
        if self.perceptual is not None:
            distance = self.perceptual(out.reconstruction, frames)
            terms["perceptual"] = self.perceptual_weight * distance.mean()
        logged = {name: value.detach() for name, value in terms.items()}
        usage = {} if out.codes is None else model.quantizer.usage(out.codes)
        yield Losses(sum(terms.values()), {**logged, **usage})

    def evaluate(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        model, frames = networks["vqvae"], pixels.normalize(frames_of(batch))
        codes = model.encode(frames)
        shown = model.denormalize(model.decode(codes))
        error = ((shown - frames) / 2).square().flatten(1).mean(1)  # (B * T,), of values in [0, 1]
        usage = model.quantizer.usage(codes)
        per_clip = error.view(len(batch), -1).mean(1)
        return {"mse": per_clip, **{name: value.expand(len(batch)) for name, value in usage.items()}}

    def pictures(self, batch: Tensor, step: Step, networks: Networks) -> dict[str, Tensor]:
        model, frames = networks["vqvae"], pixels.normalize(frames_of(batch[:FRAMES_SHOWN, :, :1]))
        return {"original": frames, "reconstruction": model.denormalize(model.decode(model.encode(frames)))}


class TransformerRecipe(LVTRecipe):
    """Trains a VideoTransformer on {"codes": (B, C, T, h, w), "class_index": (B,)}.

    SOLVER.SLICES_PER_CLIP different slices of each clip are trained in a step, -1: all that have anything to predict.
    `vqvae` decodes the samples of the log; None: no pictures.
    """

    name = "lvt-transformer"
    best_metric = ("bits_per_code", "min")
    ema_networks = ("transformer",)

    def __init__(self, model: VideoTransformer, config: dict[str, Any], vqvae: VQVAE | None = None) -> None:
        super().__init__({"transformer": model}, {"transformer": optimizer_of(model, config["SOLVER"])})
        self.slices_per_clip = config["SOLVER"]["SLICES_PER_CLIP"]
        self.sampler = config["TEST"]["VT_SAMPLER"]
        self.vqvae = vqvae
        self.frozen = [] if vqvae is None else [vqvae]

    def losses(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> Iterator[Losses | None]:
        model, (codes, classes) = self.networks["transformer"], self.unpack(batch)
        clip, stride = tuple(codes.shape[2:]), model.config.stride
        index = self.choose_slices(clip, len(codes), step)  # (B, slices)
        repeats = index.shape[1]
        codes, index = codes.repeat_interleave(repeats, 0), index.flatten()
        classes = None if classes is None else classes.repeat_interleave(repeats)
        context, slice_codes = model.slice_inputs(codes, index)
        ignore = slice_frames(index, clip, stride)[:, None] < model.config.n_prime
        logits = networks["transformer"](context, slice_codes, index, classes)
        # Processes differ in how many positions count: weighted so that their mean is the mean over all positions.
        count = (~ignore).sum()
        share = count * distributed.world_size() / distributed.all_sum(count)
        loss = cross_entropy(logits, slice_codes, ignore) * share
        yield Losses(loss, {"bits_per_code": bits_per_code(loss.detach(), 1)})

    def choose_slices(self, clip: tuple[int, int, int], batch: int, step: Step) -> Tensor:
        """Numbers of different slices with something to predict, drawn per sample: int64 (B, slices)."""
        config = self.networks["transformer"].config
        useful = slice_of_position(clip, config.stride)[config.n_prime :].unique().to(step.device)
        if not len(useful):
            raise UserError(f"clips of {clip[0]} frames have nothing after the first N_PRIME {config.n_prime}")
        count = len(useful) if self.slices_per_clip < 0 else min(self.slices_per_clip, len(useful))
        order = step.noise.uniform(len(useful)).argsort(1)
        return useful[order[:, :count]]

    def evaluate(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        model, (codes, classes) = networks["transformer"], self.unpack(batch)
        bits = bits_per_code(*clip_nats(model, codes, model.config.n_prime, classes))
        return {"bits_per_code": bits, "bits_per_subpixel": bits_per_subpixel(bits, codes.shape[1])}

    def pictures(self, batch: dict[str, Tensor], step: Step, networks: Networks) -> dict[str, Tensor]:
        if self.vqvae is None:
            return {}
        codes, classes = self.unpack(batch)
        codes, classes = codes[:CLIPS_SHOWN], None if classes is None else classes[:CLIPS_SHOWN]
        samples = generate_frames(
            networks["transformer"], self.vqvae, codes, self.sampler["N_PRIME"], codes.shape[2],
            seeds=range(len(codes)), class_idx=classes,
        )  # fmt: skip
        return {"codes decoded": decode_clips(self.vqvae, codes), "continuation": samples}

    def unpack(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Codes int64 (B, C, T, h, w), and the classes (B,) where the model is conditioned on them."""
        codes, classes = batch["codes"].long(), batch["class_index"]
        conditional = self.networks["transformer"].config.class_num > 0
        if conditional and int(classes.min()) < 0:
            raise UserError("VT.CLASS_NUM is set, but some videos of the data set have no class (the folder above)")
        return codes, classes if conditional else None


def frames_of(clips: Tensor) -> Tensor:
    """uint8 clips (B, 3, T, H, W) -> frames (B * T, 3, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def optimizer_of(model: nn.Module, solver: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of a SOLVER node. Raises UserError for an unknown name."""
    decay = solver["WEIGHT_DECAY"]
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "NORM_G" if isinstance(module, nn.LayerNorm) else "BIAS_G" if name == "bias" else "BASE_G"
            groups.setdefault(decay[kind], []).append(parameter)
    parameters = [{"params": members, "weight_decay": amount} for amount, members in groups.items()]
    if solver["OPTIMIZER_NAME"] not in ("adam", "adamw", "rmsprop"):
        raise UserError(f"SOLVER.OPTIMIZER_NAME {solver['OPTIMIZER_NAME']!r}: use adam, adamw or rmsprop")
    options = {
        "betas": (solver["ADAM"]["BETA1_G"], solver["ADAM"]["BETA2_G"]),
        "alpha": solver["RMSPROP"]["ALPHA_G"],
        "momentum": solver["RMSPROP"]["MOMENTUM_G"],
    }
    return optim.build_optimizer(solver["OPTIMIZER_NAME"], parameters, solver["LR_G"], eps=1e-8, **options)


def train_lvt(args: argparse.Namespace) -> list[str]:
    """The command scripts/train_lvt.py: train and evaluate, or with --eval-only evaluate.

    Gives what of TEST.EXPECTED_RESULTS is missed, by line. Raises UserError.
    """
    config = configure(args)
    if args.eval_only:
        results = evaluate_lvt(config)
    else:
        results = train_network(config, args.resume == "auto", args.allow_config_change)
    return missed_expectations(config, results)


def train_network(config: dict[str, Any], resume: bool = True, allow_config_change: bool = False) -> dict[str, Any]:
    """Train the network of a configuration in OUTPUT_DIR, write it in the original's layout too, evaluate it.

    The run that the folder holds is continued; without `resume`, such a folder is refused. Gives the results by data
    set and task. Raises UserError.
    """
    seed_everything(max(config["SEED"], 0))
    evaluators_of(config)  # a mistake there shall not wait for the end of the training
    training, validation = open_data(config)
    recipe = build_recipe(config)
    recipe.held_out = flags_of(validation)
    chosen = settings(config, resume, allow_config_change)
    result = train(recipe, training, chosen, {**config, "model": shape_of_model(config)}, validation)
    if not result.finished:
        logger.info("stopped at step %d; the same command continues", result.step)
        return {}
    distributed.barrier()  # the main process has written the last checkpoint
    (model,) = recipe.networks.values()
    load = load_transformer_weights if is_transformer(config) else load_vqvae_weights
    load(model, chosen.run_dir)  # the averaged weights where there are any
    if distributed.is_main():
        write_original(chosen.run_dir, model.original_state(), result.step - 1, "model_final")
    return evaluate_lvt(config, model)


def open_data(config: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """What to train on, and TEST.N_SAMPLES items to validate with; None: DATASETS.TEST is empty."""
    names, opened = config["DATASETS"], open_code_windows if is_transformer(config) else open_frames
    training = together([opened(config, name, training=True) for name in names["TRAIN"]])
    tests = [opened(config, name, training=False) for name in names["TEST"]]
    return training, thinned(together(tests), config["TEST"]["N_SAMPLES"]) if tests else None


def build_recipe(config: dict[str, Any]) -> VQVAERecipe | TransformerRecipe:
    """The network of a configuration, freshly initialised, with its losses and optimiser."""
    if not is_transformer(config):
        return VQVAERecipe(build_vqvae(config), config)
    shows = config["VIS_PERIOD"] <= config["SOLVER"]["MAX_ITER"]
    shown = find_sampler_vqvae(config, torch.device("cpu")) if shows else None
    return TransformerRecipe(build_transformer(config), config, shown)


def flags_of(validation: Dataset | None) -> str | None:
    """Flags of evaluate.py for the clips of the first validation set; None: it does not say where they are from."""
    while isinstance(validation, (Subset, ConcatDataset)):
        validation = validation.dataset if isinstance(validation, Subset) else validation.datasets[0]
    videos = provenance_of(validation)
    return videos and f"--data {videos['source']} --split {videos['split'] or 'all'}"


def shape_of_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the configuration that a continued run must share."""
    model = config["MODEL"]
    if is_transformer(config):
        shape = {"META_ARCHITECTURE": model["META_ARCHITECTURE"], "VT": model["AUTOREGRESSIVE"]["VT"]}
        classes = class_names(config)
        return shape if classes is None else {**shape, "CLASSES": classes}
    return {name: model[name] for name in ("META_ARCHITECTURE", "ENCODER", "GENERATOR", "CODEBOOK")}


def settings(config: dict[str, Any], resume: bool, allow_config_change: bool) -> TrainSettings:
    """The settings of the training loop."""
    solver = config["SOLVER"]
    return TrainSettings(
        run_dir=Path(config["OUTPUT_DIR"]),
        steps=solver["MAX_ITER"],
        batch_size=solver["IMS_PER_BATCH"],
        accumulation=solver["ACCUMULATION_STEPS"],
        seed=max(config["SEED"], 0),
        device=config["MODEL"]["DEVICE"],
        precision=solver["PRECISION"],
        compile=solver["COMPILE"],
        clip=solver["CLIP_NORM"],
        ema=solver["EMA"],
        resume="auto" if resume else "never",
        allow_config_change=allow_config_change,
        save_every=solver["CHECKPOINT_PERIOD"],
        log_every=config["LOG_PERIOD"],
        evaluate_every=config["TEST"]["EVAL_PERIOD"] or solver["MAX_ITER"],
        pictures_every=config["VIS_PERIOD"],
        max_minutes=config["MAX_MINUTES"],
        workers=config["DATALOADER"]["NUM_WORKERS"],
        **schedule(solver),
    )


def schedule(solver: dict[str, Any]) -> dict[str, Any]:
    """The engine's settings of the learning rate for a SOLVER node. Raises UserError for an unknown schedule."""
    kinds: dict[str, dict[str, Any]] = {
        "WarmupMultiStepLR": {
            "schedule": "multistep", "milestones": tuple(solver["STEPS"]), "gamma": solver["GAMMA"],
        },
        "WarmupCosineLR": {"schedule": "cosine_full"},
    }  # fmt: skip
    name = solver["LR_SCHEDULER_NAME"]
    if name == "Identity":  # without warm-up, as the original has it
        return {}
    if name not in kinds:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: use Identity, WarmupMultiStepLR or WarmupCosineLR")
    if solver["WARMUP_ITERS"] < 1:
        return kinds[name]
    kind = "constant" if solver["WARMUP_METHOD"] == "constant" else "linear"
    warmup = {"warmup_steps": solver["WARMUP_ITERS"], "warmup": kind, "warmup_start": solver["WARMUP_FACTOR"]}
    return {**kinds[name], **warmup}
