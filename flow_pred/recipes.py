"""The four recipes of video prediction: RIVER, and the flow, denoiser and diffusion of the neural SDE, over the
objectives of `objectives.py`.

A batch is clips (B, 3, N, H, W), uint8 or float in [-1, 1], or {"latents": (B, N, C, h, w)} from a latent cache; for a
model of classes (clips, class numbers (B,)).
Axes: B batch, N frames of a clip, C h w one latent frame.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flow_pred.config import FlowPredConfig
from flow_pred.conv_backbone import ConvBlock, ConvRegressor
from flow_pred.files import Regressor
from flow_pred.latents import LatentPredictor, LatentSpace, clock_of, decode_clip, pick_frames
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
from training import Losses, Networks, Recipe, Step
from training.attention import TransformerLayer
from training.cli import command_line
from training.conditions import drop_labels
from training.data import collate
from training.distributed import is_main
from training.optim import build_optimizer
from training.randomness import SampleNoise
from training.tokenizer import latent_frames
from videodata.pixels import as_float

logger = logging.getLogger(__name__)
STRENGTH, HUE = 0.1, 0.25  # of colour augmentation: brightness, contrast and saturation; hue
SHOWN = 4  # sequences in the pictures
START_BATCHES = 4  # that the diffusion's start is measured on
SATURATED = 0.99  # of tanh: almost no gradient comes back
NOTHING_LEARNED = 0.98  # of the loss of the answer 0
Terms = dict[str, Tensor]  # per-sample values (B,); "loss" is what is minimised


class PredictorRecipe(Recipe):
    """What all four trainings share; `terms` is what they differ in."""

    best_metric = ("loss", "min")
    free_keys = frozenset({"num_training_steps"})
    ema_networks = ("regressor",)
    shard_types = (TransformerLayer, ConvBlock)

    def __init__(self, config: FlowPredConfig, regressor: Regressor, latent_space: LatentSpace) -> None:
        settings = config.training.optimizer
        options = {"weight_decay": settings.weight_decay, "tables": regressor.tables()}
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
        return command_line([*words, "--out", str(run_dir / "videos")])

    def latents(self, batch: Any, indices: Tensor, step: Step) -> Tensor:
        """Normalised latents (B, M, C, h, w) of the frames at `indices` (B, M)."""
        if isinstance(batch, dict):
            return self.latent_space.normalize(pick_frames(batch["latents"], indices).float())
        whole = clock_of(self.latent_space).time_factor > 1  # no latent can be had without the frames around it
        frames = batch.transpose(1, 2)
        frames = as_float(frames if whole else pick_frames(frames, indices))  # (B, M, 3, H, W)
        if self.config.data.aug and step.training:
            frames = jitter_colors(frames, step.noise)
        with torch.no_grad():
            if whole:
                return pick_frames(self.latent_space.encode_clip(frames.transpose(1, 2)), indices)
            return self.latent_space.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def frames_in(self, batch: Any) -> int:
        """Number of latent frames N of the clips that a step may use."""
        if isinstance(batch, dict):
            available = batch["latents"].shape[1]
        else:
            available = latent_frames(clock_of(self.latent_space), batch.shape[2], "data.frames_per_sample: a clip")
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
        clock, asked = clock_of(self.latent_space), settings.condition_frames
        given = min(latent_frames(clock, asked), latents.shape[1] - 1)
        new = min(latent_frames(clock, asked + settings.frames_to_generate) - given, latents.shape[1] - given)
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
        count, ahead = model.num_input_frames, frames_ahead(model.unroll, step)
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


def frames_ahead(unroll: int, step: Step) -> int:
    """How many frames in a row a step predicts: at first at most two, and all `unroll` from half of the training on.

    A network that has learned little yet soon predicts from noise, which teaches nothing.
    """
    if not step.training:
        return 1
    share = min(1.0, 2 * step.index / max(step.total_steps, 1))
    return min(unroll, 2 + math.floor(share * (unroll - 1)))


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
    from torchvision.transforms.v2 import functional  # here: few data sets are augmented, and it takes a second

    pixels = (clip + 1) / 2
    pixels = functional.adjust_brightness(pixels, 1 + STRENGTH * brightness)
    pixels = functional.adjust_contrast(pixels, 1 + STRENGTH * contrast)
    pixels = functional.adjust_saturation(pixels, 1 + STRENGTH * saturation)
    return functional.adjust_hue(pixels, HUE * hue) * 2 - 1


RECIPES: dict[str, type[PredictorRecipe]] = {
    "river": RiverRecipe, "f": FlowRecipe, "d": DenoiserRecipe, "g": DiffusionRecipe,
}  # fmt: skip
