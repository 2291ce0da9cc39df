"""How RIVER and the flow, denoiser and diffusion of the neural SDE are trained: the four recipes over the objectives of
`objectives.py`, and the command scripts/train_flow_pred.py: autoencoder, data, networks, run folder, and the original's
final file.

A batch is clips (B, 3, N, H, W), uint8 or float in [-1, 1], or {"latents": (B, N, C, h, w)} from a latent cache; for a
model of classes (clips, class numbers (B,)).
Axes: B batch, N frames of a clip, C h w one latent frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from flow_pred.autoencoder import build_autoencoder
from flow_pred.checkpoints import AUTOENCODER_PREFIX, REGRESSOR, Weights, read_weights
from flow_pred.config import RIVER_FINAL_RATE, SDE_FINAL_SHARE, FlowPredConfig, configure, plain_config
from flow_pred.conv_backbone import ConvBlock, ConvRegressor
from flow_pred.files import Regressor, build_regressor, default_run, inner, read_component
from flow_pred.latents import LatentClips, LatentPredictor, LatentSpace, decode_clip, moments_of, pick_frames
from flow_pred.neural_sde import SDE_STEPS, NeuralSDE, log_diffusion
from flow_pred.objectives import (
    RiverDraw,
    StateDraw,
    StateTarget,
    diffusion_nll,
    diffusion_reference,
    draw_river,
    draw_state,
    flow_nll,
    mean_square,
    state_target,
)
from flow_pred.river import RiverPredictor, river_path
from training import Losses, Networks, Recipe, Step, TrainSettings, settings_from, train
from training.checkpoint import checkpoints_in
from training.cli import relaunch
from training.conditions import drop_labels
from training.data import collate
from training.distributed import is_main, print0
from training.optim import build_optimizer
from training.randomness import SampleNoise
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.files import write_file
from videodata.labels import LabelledClips, classes_of
from videodata.pixels import as_float, normalize

logger = logging.getLogger(__name__)
MEASURED_CLIPS = 64  # for latent_mean and latent_std: auto
STRENGTH, HUE = 0.1, 0.25  # of colour augmentation: brightness, contrast and saturation; hue
SHOWN = 4  # sequences in the pictures
START_BATCHES = 4  # that the diffusion's start is measured on
SATURATED = 0.99  # of tanh: almost no gradient comes back
NOTHING_LEARNED = 0.98  # of the loss of the answer 0
Terms = dict[str, Tensor]  # per-sample values (B,); "loss" is what is minimised


class PredictorRecipe(Recipe):
    """What all four trainings share; `terms` is what they differ in."""

    best_metric = ("loss", "min")
    ema_networks = ("regressor",)
    shard_types = (torch.nn.TransformerEncoderLayer, ConvBlock)

    def __init__(self, config: FlowPredConfig, regressor: Regressor, latent_space: LatentSpace) -> None:
        settings = config.training.optimizer
        # fused: one pass over 98 M parameters where the default makes a dozen
        options = {"weight_decay": settings.weight_decay, "fused": True, "tables": regressor.tables()}
        options["convolutions"] = isinstance(regressor, ConvRegressor)
        optimizer = build_optimizer(settings.name, regressor.trained_parameters(), settings.learning_rate, **options)
        super().__init__({"regressor": regressor}, {"regressor": optimizer})
        self.config, self.latent_space = config, latent_space
        self.frozen = [latent_space]

    def losses(self, batch: Any, step: Step, networks: Networks) -> Iterator[Losses | None]:
        terms = self.terms(batch, step, networks)
        weight = self.config.training.loss_weights.flow_matching_loss
        means = {name: value.mean() for name, value in terms.items() if name != "loss"}
        yield Losses(weight * terms["loss"].mean(), means)

    def evaluate(self, batch: Any, step: Step, networks: Networks) -> Terms:
        """The loss and its parts at times and with noise that are fixed for each validation clip."""
        return self.terms(batch, step, networks)

    def terms(self, batch: Any, step: Step, networks: Networks) -> Terms:
        """Per-sample losses (B,)."""
        raise NotImplementedError

    def show_command(self, run_dir: Path) -> str:
        model = self.config.model
        under = {"d": {"f": "FLOW"}, "g": {"f": model.f_ckpt_path, "d": model.d_ckpt_path}}.get(model.role, {})
        words = ["python", "scripts/generate_flow_videos.py"]
        for part, path in {**under, model.role: run_dir}.items():
            words += [f"--ckpt-{part}" if part != "river" else "--checkpoint", str(path)] if path else []
        return shlex.join([*words, "--out", str(run_dir / "videos")])

    def latents(self, batch: Any, indices: Tensor, step: Step) -> Tensor:
        """Normalised latents (B, M, C, h, w) of the frames at `indices` (B, M)."""
        if isinstance(batch, dict):
            return self.latent_space.normalize(pick_frames(batch["latents"], indices).float())
        frames = pick_frames(batch.transpose(1, 2), indices)  # (B, M, 3, H, W)
        frames = as_float(frames)
        if self.config.data.aug and step.training:
            frames = jitter_colors(frames, step.noise)
        with torch.no_grad():
            return self.latent_space.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def frames_in(self, batch: Any) -> int:
        """Number of frames N of the clips that a step may use."""
        available = batch["latents"].shape[1] if isinstance(batch, dict) else batch.shape[2]
        return min(available, self.config.training.num_observations)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)"""
        size = self.config.model.vector_field_regressor
        return (size.state_size, *size.state_res)

    def shown_prediction(self, predictor: LatentPredictor, batch: Any, step: Step, **options: Any) -> dict[str, Tensor]:
        """The first clips above their continuations; the first `condition_frames` frames are given."""
        part = {"latents": batch["latents"][:SHOWN]} if isinstance(batch, dict) else batch[:SHOWN]
        count = len(part["latents"] if isinstance(part, dict) else part)
        indices = torch.arange(self.frames_in(batch), device=step.device).expand(count, -1)
        latents, settings = self.latents(part, indices, step), self.config.training
        given = min(settings.condition_frames, latents.shape[1] - 1)
        new = min(settings.frames_to_generate, latents.shape[1] - given)
        generator = torch.Generator().manual_seed(0)
        predicted = predictor.sample(latents[:, :given], new, generator=generator, **options)
        both = [decode_clip(self.latent_space, clip) for clip in (latents[:, : given + new], predicted)]
        return {"prediction": torch.cat(both, dim=3)}


class RiverRecipe(PredictorRecipe):
    """Conditional flow matching of the next frame given the last one and a random earlier one, or the last K."""

    name = "flow_pred_river"

    def terms(self, batch: Any, step: Step, networks: Networks) -> Terms:
        batch, labels = batch if self.config.model.classes else (batch, None)
        model, frames = self.config.model, self.frames_in(batch)
        if model.condition == "last":
            return {"loss": self.unrolled(batch, labels, step, networks)}
        draw = draw_river(step.noise, frames, self.latent_shape, model.start_share)
        target, last, condition = self.latents(batch, draw.frames, step).unbind(1)
        shown, told = (last, condition, draw.distance), self.told(labels, step)
        return {"loss": self.loss_and_frame(networks, draw, draw.noise, target, last, shown, told)[0]}

    def unrolled(self, batch: Any, labels: Tensor | None, step: Step, networks: Networks) -> Tensor:
        """The loss (B,) of the frame after the K that are shown, and in training of those after it, which are
        predicted from predicted frames as a sample's are: it sees its own faults, and learns to mend them.
        """
        model = self.config.model
        count, ahead = model.num_input_frames, model.unroll if step.training else 1
        draw = draw_state(step.noise, self.frames_in(batch), count, self.latent_shape, model.start_share, ahead, ahead)
        latents = self.latents(batch, draw.frames(count, ahead), step)
        seen, told, losses = self.perturbed(latents[:, :count], step), self.told(labels, step), []
        for target, noise in zip(latents[:, count:].unbind(1), draw.noise.chunk(ahead, dim=1), strict=True):
            shown = (seen.flatten(1, 2), None, None)
            loss, frame = self.loss_and_frame(networks, draw, noise, target, seen[:, -1], shown, told)
            losses.append(loss)
            seen = torch.cat([seen[:, 1:], frame.detach()[:, None]], dim=1)
        return torch.stack(losses).mean(0)

    def loss_and_frame(
        self, networks: Networks, draw: RiverDraw | StateDraw, noise: Tensor, target: Tensor, last: Tensor,
        shown: tuple[Tensor | None, ...], told: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The loss (B,) at a point of the path from noise to the target, and where a straight line ends from there."""
        model = self.config.model
        x, velocity = river_path(target, noise, draw.time, model.sigma)
        answer = networks["regressor"](x, *shown, draw.time, *told).float()
        if model.prediction == "frame":
            frame = last + answer
            return mean_square(frame, target), frame
        return mean_square(answer, velocity), x + (1 - draw.time.view(-1, 1, 1, 1)) * answer

    def told(self, labels: Tensor | None, step: Step) -> tuple[Tensor, ...]:
        """Labels (B,) where there are classes, in training without some: guidance compares with what no class gets."""
        if labels is None or not step.training:
            return () if labels is None else (labels,)
        model = self.config.model
        return (drop_labels(labels, len(model.classes), model.class_dropout, step.noise.uniform()),)

    def perturbed(self, seen: Tensor, step: Step) -> Tensor:
        """Frames (B, K, C, h, w) that are shown, in training with noise of random size, as a sample's own have."""
        most = self.config.model.context_noise
        if not (most and step.training):
            return seen
        size = most * step.noise.uniform().view(-1, 1, 1, 1, 1)
        return seen + size * step.noise.normal(*seen.shape[1:])

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Clips and what RIVER continues them with."""
        model, settings = self.config.model, self.config.evaluation
        predictor = RiverPredictor(
            networks["regressor"], sigma=model.sigma, prediction=model.prediction, classes=model.classes
        )
        options = {"past_horizon": settings.past_horizon, "warm_start": settings.warm_sampling}
        options |= {"steps": settings.steps, "method": settings.solver}
        if model.classes:
            batch, labels = batch
            options["labels"] = labels[:SHOWN]
        return self.shown_prediction(predictor, batch, step, **options)


class StateRecipe(PredictorRecipe):
    """What the three trainings of the neural SDE share: perturbed states between two observations."""

    def state(self, batch: Any, step: Step) -> StateTarget:
        """Draw intervals, times and perturbations for a batch."""
        model = self.config.model
        count = model.num_input_frames
        draw: StateDraw = draw_state(step.noise, self.frames_in(batch), count, self.latent_shape, model.start_share)
        return state_target(self.latents(batch, draw.frames(count), step), draw, model.sigma, model.noise_std)

    def solver(self) -> dict[str, Any]:
        """How `sample` is asked to solve the equation."""
        settings = self.config.evaluation
        return {"steps": settings.steps or SDE_STEPS, "method": settings.solver or "euler"}


class FlowRecipe(StateRecipe):
    """Drift of the newest frame: log loss (f_nll) or squared error (f_mse)."""

    name = "flow_pred_flow"

    def terms(self, batch: Any, step: Step, networks: Networks) -> Terms:
        goal = self.state(batch, step)
        predicted = networks["regressor"](goal.state).float()
        error = mean_square(predicted, goal.velocity)
        if self.config.model.func == "f_mse":
            return {"loss": error}
        return {"loss": flow_nll(predicted, goal.velocity), "mse": error}

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Clips and what the flow alone continues them with."""
        sde = NeuralSDE(networks["regressor"], num_input_frames=self.config.model.num_input_frames)
        return self.shown_prediction(sde, batch, step, **self.solver())


class DenoiserRecipe(StateRecipe):
    """Denoising score matching: the negative perturbation of the state."""

    name = "flow_pred_denoiser"

    def terms(self, batch: Any, step: Step, networks: Networks) -> Terms:
        goal = self.state(batch, step)
        predicted = networks["regressor"](goal.state).float()
        return {"loss": mean_square(predicted, -goal.perturbation)}

    def evaluate(self, batch: Any, step: Step, networks: Networks) -> Terms:
        """The loss, and beside it that of the answer 0."""
        goal = self.state(batch, step)
        loss = mean_square(networks["regressor"](goal.state).float(), -goal.perturbation)
        return {"loss": loss, "judged": torch.stack([loss, goal.perturbation.square().flatten(1).mean(1)], dim=1)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        loss, zero = sums["judged"].tolist()
        if loss > NOTHING_LEARNED * zero and is_main():
            logger.warning(
                "WARN the denoiser answers no better than 0 (%.3g of its loss): train it longer, or predict without it",
                loss / zero,
            )
        return {"loss_over_zero": loss / zero}

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Perturbed newest frames, and the same after one step of the denoiser."""
        goal = self.state(batch, step)
        state, channels = goal.state[:SHOWN], self.latent_shape[0]
        denoised = state + networks["regressor"](state)
        frames = [self.latent_space.decode(x[:, -channels:]).clamp(-1, 1) for x in (state, denoised)]
        return {"perturbed_denoised": torch.cat(frames, dim=2)}


class DiffusionRecipe(StateRecipe):
    """Noise amplitude: the spread of what the frozen flow leaves unexplained."""

    name = "flow_pred_diffusion"

    def __init__(
        self,
        config: FlowPredConfig,
        regressor: Regressor,
        latent_space: LatentSpace,
        flow: Regressor,
        denoiser: Regressor | None = None,
    ) -> None:
        super().__init__(config, regressor, latent_space)
        self.flow, self.denoiser = flow, denoiser
        self.frozen += [network for network in (flow, denoiser) if network is not None]

    @torch.no_grad()
    def residual(self, goal: StateTarget) -> Tensor:
        """What the flow leaves unexplained, (B, C, h, w)."""
        return goal.velocity - self.flow(goal.state).float()

    def terms(self, batch: Any, step: Step, networks: Networks) -> Terms:
        return self.judged(batch, step, networks)[0]

    def judged(self, batch: Any, step: Step, networks: Networks) -> tuple[Terms, Tensor]:
        """The losses, and for each sample (B, 3): NLL, mean squared residual, share of amplitudes at their limit."""
        goal, model = self.state(batch, step), self.config.model
        residual, answer = self.residual(goal), networks["regressor"](goal.state).float()
        amplitude = log_diffusion(answer, tuple(model.logit_range))
        first, second = diffusion_reference(amplitude, residual)
        nll = diffusion_nll(amplitude, residual)
        loss = nll if model.diffusion_loss == "nll" else first + second
        limit = (answer.detach().tanh().abs() > SATURATED).float()
        facts = torch.stack([x.flatten(1).mean(1) for x in (nll.detach()[:, None], residual.square(), limit)], dim=1)
        return {"loss": loss, "nll": nll, "amplitude_mse": first}, facts

    def evaluate(self, batch: Any, step: Step, networks: Networks) -> Terms:
        """The losses, and what `summarize` judges them by."""
        terms, facts = self.judged(batch, step, networks)
        return {**terms, "judged": torch.cat([facts, torch.ones_like(facts[:, :1])], dim=1)}

    def summarize(self, sums: dict[str, Tensor]) -> dict[str, float]:
        model = self.config.model
        nll, square, limit = (sums["judged"][:3] / sums["judged"][3]).tolist()
        constant = 0.5 * math.log(max(square, 1e-30)) + 0.5  # of the best amplitude that is the same everywhere
        if limit > 0.5 and is_main():
            logger.warning(
                "WARN %.0f %% of the noise amplitudes sit at a limit of model.logit_range %s and learn no more: start "
                "anew with model.diffusion_start: residual, or widen the range", 100 * limit, model.logit_range
            )  # fmt: skip
        elif nll > constant and is_main():
            logger.warning(
                "WARN the diffusion (NLL %.3f) is no better than one amplitude everywhere (%.3f): train it longer",
                nll, constant,
            )  # fmt: skip
        return {"nll_of_constant": constant, "at_limit": limit}

    @torch.no_grad()
    def start_at_residual(self, data: Dataset) -> None:
        """Start the network at the root mean square of the flow's residual in each channel, everywhere.

        Far above it the first gradients are thousands of times too large, and after them tanh is saturated for good.
        """
        size, squares = self.config.training.batching.batch_size, []
        for first in range(0, min(START_BATCHES * size, len(data)), size):
            items = range(first, min(first + size, len(data)))
            batch = collate([data[item] for item in items])
            step = Step(0, 1, SampleNoise(0, items), torch.device("cpu"), training=False)
            squares.append(self.residual(self.state(batch, step)).square().mean((2, 3)))  # (B, C)
        low, high = self.config.model.logit_range
        amplitude = 0.5 * torch.cat(squares).mean(0).clamp_min(1e-12).log()  # (C,)
        share = (2 * (amplitude - low) / (high - low) - 1).clamp(-SATURATED, SATURATED)
        last = self.networks["regressor"].last
        last.weight.zero_()
        last.bias.copy_(share.atanh())

    def pictures(self, batch: Any, step: Step, networks: Networks) -> dict[str, Tensor]:
        """Clips and one draw of their continuation."""
        model = self.config.model
        sde = NeuralSDE(
            self.flow, self.denoiser, networks["regressor"], model.num_input_frames, tuple(model.logit_range)
        )
        return self.shown_prediction(sde, batch, step, **self.solver())


def jitter_colors(clips: Tensor, noise: SampleNoise) -> Tensor:
    """Clips (B, T, 3, H, W) in [-1, 1] by draws of their own, all frames of a clip alike."""
    draws = 2 * noise.uniform(4) - 1  # (B, 4) in [-1, 1)
    return torch.stack([jittered(clip, *row.tolist()) for clip, row in zip(clips, draws, strict=True)])


def jittered(clip: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """One clip (T, 3, H, W) with draws in [-1, 1), in the original's order."""
    pixels = (clip + 1) / 2
    pixels = functional.adjust_brightness(pixels, 1 + STRENGTH * brightness)
    pixels = functional.adjust_contrast(pixels, 1 + STRENGTH * contrast)
    pixels = functional.adjust_saturation(pixels, 1 + STRENGTH * saturation)
    return functional.adjust_hue(pixels, HUE * hue) * 2 - 1


RECIPES: dict[str, type[PredictorRecipe]] = {
    "river": RiverRecipe, "f": FlowRecipe, "d": DenoiserRecipe, "g": DiffusionRecipe,
}  # fmt: skip


def train_flow_pred(args: argparse.Namespace) -> None:
    """What scripts/train_flow_pred.py does: train, or continue where the same command stopped."""
    config = configure(args)
    named = f"{config.name}_run-{args.run_name}" if args.run_name else default_run(config.name, args.config).name
    run_dir = args.run_dir or args.runs / named
    check_resume(run_dir, args.resume_step)
    if args.device == "auto":
        spread_over_gpus(args.num_gpus)
    recipe, data, validation = prepare(config, run_dir, args.seed)
    result = train(recipe, data, engine_settings(args, config, run_dir), plain_config(config), validation)
    if result.finished and is_main():
        print0(f"{write_final(run_dir, recipe, config, result.step)}: the same in the original's format")


def engine_settings(args: argparse.Namespace, config: FlowPredConfig, run_dir: Path) -> TrainSettings:
    """The training loop's settings: the flags', and those that the configuration decides."""
    batching, optimizer = config.training.batching, config.training.optimizer
    base = optimizer.learning_rate
    final = min(RIVER_FINAL_RATE, base) if config.model.role == "river" else SDE_FINAL_SHARE * base
    settings = settings_from(
        args,
        run_dir,
        optimizer.num_training_steps,
        batch_size=batching.batch_size,
        workers=batching.num_workers,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.num_warmup_steps,
        warmup_start=0.0,
        precision=precision_of(config.training.precision),
        clip=optimizer.clip,
        ema=optimizer.ema,
        **({"final_rate": final} if optimizer.schedule == "sqrt" else {}),
    )
    return dataclasses.replace(settings, device="cpu") if args.num_gpus == 0 else settings


def precision_of(name: str) -> str:
    """fp32, bf16 or fp16; auto is bf16 where the processor multiplies it in hardware."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch has no public name
    return "bf16" if fast else "fp32"


def check_resume(run_dir: Path, step: int | None) -> None:
    """Raises UserError when the checkpoint to continue from is not the one that the run would continue from."""
    if step is None:
        return
    found = [checkpoint.step for checkpoint in checkpoints_in(run_dir / "checkpoints")]
    if not found:
        raise UserError(f"{run_dir}: holds no checkpoint to resume from; leave --resume-step out to start")
    if step not in (-1, found[0]):
        there = "is there" if step in found else "is not there"
        raise UserError(f"{run_dir}: step {step} {there}, but the newest is {found[0]}; use --resume-step -1, or move "
                        "the newer checkpoints away")  # fmt: skip


def spread_over_gpus(count: int | None) -> None:
    """Start one process per GPU in place of this one, where there are several. Raises UserError for too many."""
    available = torch.cuda.device_count()
    if count is not None and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available}; --num-gpus 0 trains on the CPU")
    count = available if count is None else count
    if count > 1:
        relaunch(sys.argv[0], sys.argv[1:], count)


def open_data(config: FlowPredConfig, seed: int) -> tuple[Dataset, Dataset | None]:
    """What to train on and what to validate with; None: the data has no part for that."""
    training = open_part(config, "train", seed)
    try:
        return training, open_part(config, "val", seed)
    except UserError as error:
        logger.warning("no validation: %s", error)
        return training, None


def open_part(config: FlowPredConfig, split: str, seed: int) -> Dataset:
    """Clips of pictures, uint8, or of cached latents. Validation clips are fixed and not augmented."""
    data = config.data
    stride = data.skip_frames + 1
    if data.latents:
        if data.aug:
            raise UserError("data.aug needs pictures: cached latents cannot be augmented; set data.latents to null")
        return LatentClips(data.latents, split, data.frames_per_sample, stride, seed)
    return open_clips(
        data.data_root,
        frames=data.frames_per_sample,
        size=data.crop_size,
        short_side=data.input_size,
        stride=stride,
        split=split,
        seed=seed,
        flip=data.random_horizontal_flip and split == "train",
        dtype="uint8",
    )


def build_recipe(config: FlowPredConfig, latent_space: LatentSpace) -> PredictorRecipe:
    """The recipe of a configuration; the diffusion's loads its flow, and its denoiser where there is one."""
    model = config.model
    regressor, recipe = build_regressor(model), RECIPES[model.role]
    if model.role != "g":
        return recipe(config, regressor, latent_space)
    if not model.f_ckpt_path:
        raise UserError("training the diffusion needs model.f_ckpt_path: the run folder or file of a trained flow")
    parts = {"f": model.f_ckpt_path, "d": model.d_ckpt_path}
    networks = {role: frozen_part(path, role, config) for role, path in parts.items() if path}
    return DiffusionRecipe(config, regressor, latent_space, networks["f"], networks.get("d"))


def frozen_part(path: str, role: str, config: FlowPredConfig) -> Regressor:
    """The flow or the denoiser under a diffusion. Raises UserError if it was trained on other latents."""
    own = config.model
    part = read_component(path, role, dataclasses.replace(own, func={"f": "f_nll", "d": "d"}[role]))
    if part.stored.config is not None and part.moments != (own.latent_mean, own.latent_std):
        raise UserError(
            f"{path}: was trained on latents of mean {part.moments[0]} and std {part.moments[1]}, this run has "
            f"{own.latent_mean} and {own.latent_std}; give all components the same latent_mean and latent_std"
        )
    return part.network


def measure_latents(
    config: FlowPredConfig, autoencoder: nn.Module, data: Dataset, run_dir: Path
) -> tuple[list[float] | None, list[float] | None]:
    """latent_mean and latent_std as numbers. "auto" is measured once, and read from the run folder ever after."""
    wanted = (config.model.latent_mean, config.model.latent_std)
    if "auto" not in wanted:
        return wanted
    path = run_dir / "config.yaml"
    model = yaml.safe_load(path.read_text()).get("model", {}) if path.is_file() else {}
    stored = (model.get("latent_mean"), model.get("latent_std"))
    if not all(isinstance(value, list) for value in stored):
        if isinstance(data, LatentClips):
            stored = data.moments()
        else:
            first = islice(range(len(data)), MEASURED_CLIPS)
            moments = moments_of(autoencoder, (normalize(data[index]) for index in first))
            stored = moments.mean(), moments.std()
    return tuple(found if value == "auto" else value for value, found in zip(wanted, stored, strict=True))


def prepare(config: FlowPredConfig, run_dir: Path, seed: int) -> tuple[PredictorRecipe, Dataset, Dataset | None]:
    """Recipe, training data and validation data; sets the latent moments in `config`."""
    torch.manual_seed(seed)
    autoencoder = build_autoencoder(config.model.autoencoder)
    data, validation = open_data(config, seed)
    if isinstance(data, LatentClips):
        data.check(autoencoder)
    if config.model.classes == "auto":
        config.model.classes = list(classes_of(data))
    config.model.latent_mean, config.model.latent_std = measure_latents(config, autoencoder, data, run_dir)
    latent_space = LatentSpace(autoencoder, config.model.latent_mean, config.model.latent_std)
    check_latents(config, latent_space, data)
    texts = pooled_texts(config.data.texts, config.model.classes) if config.data.texts else None
    if texts is not None:
        config.model.text_width = texts.shape[1]
    recipe = build_recipe(config, latent_space)
    if config.model.classes:
        if config.data.texts:
            recipe.networks["regressor"].class_code.texts.copy_(texts)
        data = LabelledClips(data, config.model.classes)
        validation = None if validation is None else LabelledClips(validation, config.model.classes)
    if config.model.diffusion_start == "residual" and isinstance(recipe, DiffusionRecipe):
        recipe.start_at_residual(data)  # a run that continues loads its weights afterwards
    return recipe, data, validation


@torch.no_grad()
def check_latents(config: FlowPredConfig, latent_space: LatentSpace, data: Dataset) -> None:
    """Raises UserError before the training when latents and network do not fit together."""
    first, size = data[0], config.model.vector_field_regressor
    if isinstance(first, dict):
        shape = tuple(first["latents"].shape[1:])
    else:
        shape = tuple(latent_space.encode(normalize(first[:, :1].transpose(0, 1))).shape[1:])
    expected = (size.state_size, *size.state_res)
    if shape != expected:
        raise UserError(
            f"the autoencoder's latents are {shape} and the network is made for {expected}: "
            "set model.vector_field_regressor.state_size and state_res"
        )


def pooled_texts(folder: str, captions: Sequence[str]) -> Tensor:
    """The mean of each caption's cached embeddings (captions, width), over the tokens that its mask keeps.

    The files are those that trainings of vvae cache (`CaptionCache`). Raises UserError for a caption that has none.
    """
    from vvae.src.modules.t5 import CaptionCache, VVAEError

    rows = []
    for caption in captions:
        try:
            embeddings, mask = CaptionCache(folder).get(caption)  # (L, width), (L,)
        except VVAEError as error:
            raise UserError(f"caption {caption!r}: {error}") from error
        weight = mask.to(embeddings)[:, None]
        rows.append((embeddings * weight).sum(0) / weight.sum().clamp_min(1))
    return torch.stack(rows).float()


def write_final(run_dir: Path, recipe: PredictorRecipe, config: FlowPredConfig, step: int) -> Path:
    """Write checkpoints/final_step_<step>.pth: {"model", "global_step"}, averaged weights where there are any.

    "model" holds the trained network, the frozen autoencoder, and the frozen networks under a diffusion.
    """
    model = prefixed(REGRESSOR, read_weights(run_dir).network("regressor"))
    kind = config.model.autoencoder.get("type", "")
    model |= prefixed(AUTOENCODER_PREFIX.get(kind, "ae."), inner(recipe.latent_space.autoencoder).state_dict())
    if isinstance(recipe, DiffusionRecipe):
        for letter, network in (("f", recipe.flow), ("d", recipe.denoiser)):
            if network is not None:
                model |= prefixed(f"{letter}.{REGRESSOR}", network.state_dict())
    path = run_dir / "checkpoints" / f"final_step_{step}.pth"
    state = {"model": {key: value.cpu() for key, value in model.items()}, "global_step": step}
    write_file(path, lambda file: torch.save(state, file))
    return path


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}
