"""How the two networks are trained: the VQ-VAE on frames, the transformer on slices of clips of codes."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses.perceptual import LPIPS
from lvt.config import is_transformer
from lvt.datasets import class_names, open_code_windows, open_frames, thinned, together
from lvt.evaluate import evaluate_lvt, evaluators_of
from lvt.files import (
    build_transformer,
    build_vqvae,
    load_sampler_vqvae,
    load_transformer,
    load_vqvae,
    original_groups,
    write_original,
)
from lvt.generate import generate_frames
from lvt.subscale import slice_frames, slice_of_position
from lvt.transformer import VideoTransformer, bits_per_code, bits_per_subpixel, clip_nats, cross_entropy
from lvt.vqvae import VQVAE, decode_clips
from training import TrainSettings, distributed, train
from training.randomness import seed_everything
from training.recipe import Losses, Recipe, Step
from videodata.errors import UserError

logger = logging.getLogger(__name__)
CLIPS_SHOWN = 4
FREE_KEYS = frozenset(
    {
        *("MAX_ITER", "DEVICE", "NUM_WORKERS", "OUTPUT_DIR", "CHECKPOINT_PERIOD", "EVAL_PERIOD", "VIS_PERIOD"),
        *("LOG_PERIOD", "MAX_MINUTES", "EVALUATORS", "N_SAMPLES", "TEST", "GRADIENT_CHECKPOINTING", "COMPILE", "CFG"),
        *("WEIGHTS", "ENCODER_WEIGHTS", "GENERATOR_WEIGHTS", "CODEBOOK_WEIGHTS", "NUM_SAMPLES", "TEMPERATURE"),
        *("TOP_K", "TOP_P", "EXPECTED_RESULTS"),
    }
)  # last parts of the configuration keys that a continued run may change


def train_lvt(config: dict[str, Any], resume: bool = True, allow_config_change: bool = False) -> dict[str, Any]:
    """Train the network of a configuration in OUTPUT_DIR, write it in the original's layout too, evaluate it.

    The run that the folder holds is continued; without `resume`, such a folder is refused. Gives the results by data
    set and task. Raises UserError.
    """
    seed_everything(max(config["SEED"], 0))
    evaluators_of(config)  # a mistake there shall not wait for the end of the training
    recipe, data, validation = build_run(config)
    chosen = settings(config, resume, allow_config_change)
    result = train(recipe, data, chosen, {**config, "model": shape_of_model(config)}, validation)
    if not result.finished:
        logger.info("stopped at step %d; the same command continues", result.step)
        return {}
    distributed.barrier()  # the main process has written the last checkpoint
    (model,) = recipe.networks.values()
    load = load_transformer if is_transformer(config) else load_vqvae
    load(model, chosen.run_dir)  # the averaged weights where there are any
    if distributed.is_main():
        write_original(chosen.run_dir, original_groups(model), result.step - 1, "model_final")
    return evaluate_lvt(config, model)


def build_run(config: dict[str, Any]) -> tuple[VQVAERecipe | TransformerRecipe, Any, Any]:
    """Recipe, training data and validation data of a configuration."""
    names = config["DATASETS"]
    if is_transformer(config):
        data = together([open_code_windows(config, name, training=True) for name in names["TRAIN"]])
        tests = [open_code_windows(config, name, training=False) for name in names["TEST"]]
        shows = config["VIS_PERIOD"] <= config["SOLVER"]["MAX_ITER"]
        shown = load_sampler_vqvae(config, torch.device("cpu")) if shows else None
        recipe = TransformerRecipe(build_transformer(config), config, shown)
    else:
        data = together([open_frames(config, name, training=True) for name in names["TRAIN"]])
        tests = [open_frames(config, name, training=False) for name in names["TEST"]]
        recipe = VQVAERecipe(build_vqvae(config), config)
    return recipe, data, thinned(together(tests), config["TEST"]["N_SAMPLES"]) if tests else None


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
    )


class VQVAERecipe(Recipe):
    """Trains a VQVAE on clips (B, 3, T, H, W) uint8, frame by frame. `config` is the whole configuration."""

    name = "lvt-vqvae"
    best_metric = ("mse", "min")
    ema_networks = ("vqvae",)
    free_keys = FREE_KEYS

    def __init__(self, model: VQVAE, config: dict[str, Any]) -> None:
        optimizer = build_optimizer(model, config["SOLVER"])
        super().__init__({"vqvae": model}, {"vqvae": optimizer})
        self.schedule = ScheduledOptimizers(config["SOLVER"], optimizer)
        self.first_quantized = int(config["SOLVER"]["MAX_ITER"] * model.config.codebook.start_after)  # step
        weight, file = config["LOSS"]["PERCEPTUAL"]["LAMBDA"], config["LOSS"]["PERCEPTUAL"]["WEIGHTS"]
        self.perceptual_weight = weight
        self.perceptual = LPIPS(weights=file or None) if weight > 0 else None

    def losses(self, batch: Tensor, step: Step) -> Iterator[Losses | None]:
        self.schedule.step = step.index
        model = self.bare["vqvae"]
        frames = model.normalize(frames_of(batch))
        out = self.networks["vqvae"](frames, step.index >= self.first_quantized)
        terms = model.losses(frames, out)
        if self.perceptual is not None:
            distance = self.perceptual(out.reconstruction, frames)
            terms["perceptual"] = self.perceptual_weight * distance.mean()
        logged = {name: value.detach() for name, value in terms.items()}
        usage = {} if out.codes is None else model.quantizer.usage(out.codes)
        yield Losses(sum(terms.values()), {**logged, **usage})

    def evaluate(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        original, shown, codes = self.reconstruct(batch)
        error = (shown - original).square().flatten(1).mean(1)  # (B * T,)
        per_clip = error.view(len(batch), -1).mean(1)
        usage = self.networks["vqvae"].quantizer.usage(codes)
        return {"mse": per_clip, **{name: value.expand(len(batch)) for name, value in usage.items()}}

    def pictures(self, batch: Tensor, step: Step) -> dict[str, Tensor]:
        original, shown, _ = self.reconstruct(batch[:8, :, :1])
        return {"original": 2 * original - 1, "reconstruction": 2 * shown - 1}

    def reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames and their reconstructions (B * T, 3, H, W) in [0, 1], and the codes."""
        model, frames = self.networks["vqvae"], frames_of(batch)
        codes = model.encode(frames)
        return frames / 255, model.denormalize(model.decode(codes)), codes


class TransformerRecipe(Recipe):
    """Trains a VideoTransformer on {"codes": (B, C, T, h, w), "class_index": (B,)}.

    SOLVER.SLICES_PER_CLIP different slices of each clip are trained in a step, -1: all that have anything to predict.
    `vqvae` decodes the samples of the log; None: no pictures.
    """

    name = "lvt-transformer"
    best_metric = ("bits_per_code", "min")
    ema_networks = ("transformer",)
    free_keys = FREE_KEYS

    def __init__(self, model: VideoTransformer, config: dict[str, Any], vqvae: VQVAE | None = None) -> None:
        optimizer = build_optimizer(model, config["SOLVER"])
        super().__init__({"transformer": model}, {"transformer": optimizer})
        self.schedule = ScheduledOptimizers(config["SOLVER"], optimizer)
        self.slices_per_clip = config["SOLVER"]["SLICES_PER_CLIP"]
        self.sampler = config["TEST"]["VT_SAMPLER"]
        self.vqvae = vqvae
        self.frozen = [] if vqvae is None else [vqvae]

    def losses(self, batch: dict[str, Tensor], step: Step) -> Iterator[Losses | None]:
        self.schedule.step = step.index
        model, (codes, classes) = self.bare["transformer"], self.unpack(batch)
        clip, stride = tuple(codes.shape[2:]), model.config.stride
        index = self.choose_slices(clip, len(codes), step)  # (B, slices)
        repeats = index.shape[1]
        codes, index = codes.repeat_interleave(repeats, 0), index.flatten()
        classes = None if classes is None else classes.repeat_interleave(repeats)
        context, slice_codes = model.slice_inputs(codes, index)
        ignore = slice_frames(index, clip, stride)[:, None] < model.config.n_prime
        logits = self.networks["transformer"](context, slice_codes, index, classes)
        loss = cross_entropy(logits, slice_codes, ignore) * share_of_all((~ignore).sum())
        yield Losses(loss, {"bits_per_code": bits_per_code(loss.detach(), 1)})

    def choose_slices(self, clip: tuple[int, int, int], batch: int, step: Step) -> Tensor:
        """Numbers of different slices with something to predict, drawn per sample: int64 (B, slices)."""
        config = self.bare["transformer"].config
        useful = slice_of_position(clip, config.stride)[config.n_prime :].unique().to(step.device)
        if not len(useful):
            raise UserError(f"clips of {clip[0]} frames have nothing after the first N_PRIME {config.n_prime}")
        count = len(useful) if self.slices_per_clip < 0 else min(self.slices_per_clip, len(useful))
        order = step.noise.uniform(len(useful)).argsort(1)
        return useful[order[:, :count]]

    def evaluate(self, batch: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        model, (codes, classes) = self.networks["transformer"], self.unpack(batch)
        bits = bits_per_code(*clip_nats(model, codes, model.config.n_prime, classes))
        return {"bits_per_code": bits, "bits_per_subpixel": bits_per_subpixel(bits, codes.shape[1])}

    def pictures(self, batch: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        if self.vqvae is None:
            return {}
        codes, classes = self.unpack(batch)
        codes, classes = codes[:CLIPS_SHOWN], None if classes is None else classes[:CLIPS_SHOWN]
        samples = generate_frames(
            self.networks["transformer"], self.vqvae, codes, self.sampler["N_PRIME"], codes.shape[2],
            seeds=range(len(codes)), class_idx=classes,
        )  # fmt: skip
        return {"codes decoded": decode_clips(self.vqvae, codes), "continuation": samples}

    def unpack(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Codes int64 (B, C, T, h, w), and the classes (B,) where the model is conditioned on them."""
        codes, classes = batch["codes"].long(), batch["class_index"]
        conditional = self.bare["transformer"].config.class_num > 0
        if conditional and int(classes.min()) < 0:
            raise UserError("VT.CLASS_NUM is set, but some videos of the data set have no class (the folder above)")
        return codes, classes if conditional else None


def share_of_all(count: Tensor) -> Tensor:
    """How a process's mean over `count` positions must be weighted for the mean over all processes to be exact."""
    return count * distributed.world_size() / distributed.all_sum(count)


def frames_of(clips: Tensor) -> Tensor:
    """uint8 clips (B, 3, T, H, W) -> frames (B * T, 3, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def build_optimizer(model: nn.Module, solver: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of a SOLVER node. Raises UserError for an unknown name."""
    decay = solver["WEIGHT_DECAY"]
    groups: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "NORM_G" if isinstance(module, nn.LayerNorm) else "BIAS_G" if name == "bias" else "BASE_G"
            groups.setdefault(decay[kind], []).append(parameter)
    parameters = [{"params": members, "weight_decay": amount} for amount, members in groups.items()]
    betas = (solver["ADAM"]["BETA1_G"], solver["ADAM"]["BETA2_G"])
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if solver["OPTIMIZER_NAME"] in kinds:
        return kinds[solver["OPTIMIZER_NAME"]](parameters, lr=solver["LR_G"], betas=betas, eps=1e-8)
    if solver["OPTIMIZER_NAME"] == "rmsprop":
        options = {"alpha": solver["RMSPROP"]["ALPHA_G"], "momentum": solver["RMSPROP"]["MOMENTUM_G"]}
        return torch.optim.RMSprop(parameters, lr=solver["LR_G"], eps=1e-8, **options)
    raise UserError(f"SOLVER.OPTIMIZER_NAME {solver['OPTIMIZER_NAME']!r}: use adam, adamw or rmsprop")


class ScheduledOptimizers:
    """Applies the schedule right before each step of an optimiser; `step` is set by the recipe."""

    def __init__(self, solver: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        learning_rate_factor(solver, 0)
        self.solver, self.step = solver, 0
        optimizer.register_step_pre_hook(self.scale)

    def scale(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Multiply the rates that the training loop has just set to their base values."""
        factor = learning_rate_factor(self.solver, self.step)
        for group in optimizer.param_groups:
            group["lr"] *= factor


def learning_rate_factor(solver: dict[str, Any], step: int) -> float:
    """Factor on LR_G at optimiser step 0, 1, ... for a SOLVER node. Raises UserError for an unknown schedule."""
    name = solver["LR_SCHEDULER_NAME"]
    if name == "Identity":
        return 1.0
    start = warmup(step, solver["WARMUP_ITERS"], solver["WARMUP_FACTOR"], solver["WARMUP_METHOD"])
    if name == "WarmupMultiStepLR":
        return start * solver["GAMMA"] ** bisect_right(solver["STEPS"], step)
    if name == "WarmupCosineLR":
        return start * 0.5 * (1 + math.cos(math.pi * step / solver["MAX_ITER"]))
    raise UserError(f"SOLVER.LR_SCHEDULER_NAME {name!r}: use Identity, WarmupMultiStepLR or WarmupCosineLR")


def warmup(step: int, steps: int, factor: float, method: str) -> float:
    """Factor during the first `steps` steps: `factor` itself ("constant") or from it to 1 ("linear")."""
    if step >= steps:
        return 1.0
    return factor if method == "constant" else factor * (1 - step / steps) + step / steps
