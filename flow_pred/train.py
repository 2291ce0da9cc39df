"""What RIVER and the flow, denoiser and diffusion of the neural SDE learn: the draws of frames, times and noise, the
targets there, the losses, and the four recipes.

A batch is clips (B, 3, N, H, W), uint8 or float in [-1, 1], or {"latents": (B, N, C, h, w)} from a latent cache. A loss
has one value per sample (B,); the training loss is their mean.
Axes: B batch, N frames of a clip, K frames of a state, C H W one latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from flow_pred.config import FlowPredConfig
from flow_pred.latents import LatentPredictor, LatentSpace, below, decode_clip, pick_frames
from flow_pred.neural_sde import NeuralSDE, log_diffusion
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import RiverPredictor, river_path
from training import Losses, Recipe, Step
from training.muon import Muon
from training.randomness import SampleNoise
from videodata.pixels import normalize

DESINGULARISATION = 1e-3  # delta of the flow's log loss
FLOOR = 1e-6  # keeps the logarithm of a residual finite
RIVER_FINAL_RATE = 1e-7
SDE_FINAL_SHARE = 1e-3  # of the learning rate
STRENGTH, HUE = 0.1, 0.25  # of colour augmentation: brightness, contrast and saturation; hue
SHOWN = 4  # sequences in the pictures
Terms = dict[str, Tensor]  # per-sample values (B,); "loss" is what is minimised


class RiverDraw(NamedTuple):
    """Which frames a RIVER step trains on, and where on the path."""

    target: Tensor  # (B,) frame to generate, in 2 .. N - 1
    condition: Tensor  # (B,) frame to look back at, in 0 .. target - 2
    noise: Tensor  # (B, C, H, W)
    time: Tensor  # (B,) in [0, 1)

    @property
    def frames(self) -> Tensor:
        """Indices (B, 3) of target, reference and condition."""
        return torch.stack([self.target, self.target - 1, self.condition], dim=1)

    @property
    def distance(self) -> Tensor:
        """Frames (B,) between reference and condition, at least 1."""
        return self.target - 1 - self.condition


class StateDraw(NamedTuple):
    """Which interval a neural-SDE step trains on, where in it, and the perturbation in units of noise_std."""

    target: Tensor  # (B,) frame at the end of the interval, in K .. N - 1
    time: Tensor  # (B,) in [0, 1)
    noise: Tensor  # (B, K * C, H, W), standard normal

    def frames(self, count: int) -> Tensor:
        """Indices (B, K + 1) of the K frames before the target and of the target itself."""
        return self.target[:, None] + torch.arange(-count, 1, device=self.target.device)


class StateTarget(NamedTuple):
    """A perturbed state and what can be learned there."""

    state: Tensor  # (B, K * C, H, W), perturbed
    velocity: Tensor  # (B, C, H, W) of the newest frame
    perturbation: Tensor  # (B, K * C, H, W)


def draw_river(noise: SampleNoise, frames: int, shape: tuple[int, ...]) -> RiverDraw:
    """Draw for clips of `frames` frames with latents of `shape` (C, H, W)."""
    target = 2 + noise.integers(frames - 2)
    condition = below(noise.uniform(), target - 1)
    return RiverDraw(target, condition, noise.normal(*shape), noise.uniform())


def draw_state(noise: SampleNoise, frames: int, count: int, shape: tuple[int, ...]) -> StateDraw:
    """Draw for clips of `frames` frames, states of `count` of them, with latents of `shape` (C, H, W)."""
    channels, height, width = shape
    target = count + noise.integers(frames - count)
    return StateDraw(target, noise.uniform(), noise.normal(count * channels, height, width))


def state_target(latents: Tensor, draw: StateDraw, sigma: float, noise_std: float) -> StateTarget:
    """From the latents (B, K + 1, C, H, W) of an interval: the perturbed state between its ends, and its velocity.

    Neural SDE, arXiv 2501.18871: linear interpolation of the state, Gaussian noise on top, one frame per unit time.
    """
    start, end = latents[:, :-1].flatten(1, 2), latents[:, 1:].flatten(1, 2)  # (B, K * C, H, W)
    t = draw.time.view(-1, 1, 1, 1)
    perturbation = noise_std * draw.noise
    state = (1 - (1 - sigma) * t) * start + t * end + perturbation
    return StateTarget(state, latents[:, -1] - (1 - sigma) * latents[:, -2], perturbation)


def mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


def flow_nll(prediction: Tensor, velocity: Tensor, delta: float = DESINGULARISATION) -> Tensor:
    """Negative log-likelihood of the flow with the noise minimised out (arXiv 2501.18871), 0 for a perfect one.

    Up to a constant that of a Cauchy distribution of scale sqrt(delta): robust, and it picks one of several branches
    where the squared error would take their mean.
    """
    residual = (prediction - velocity).square()
    return ((residual + delta).log() - math.log(delta)).flatten(1).mean(1)


def diffusion_nll(log_amplitude: Tensor, residual: Tensor) -> Tensor:
    """Negative log-likelihood of the residual of the flow under N(0, amplitude^2), without its constant."""
    return (log_amplitude + 0.5 * residual.square() * (-2 * log_amplitude).exp()).flatten(1).mean(1)


def diffusion_reference(
    log_amplitude: Tensor, residual: Tensor, interval: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """The original's two terms: amplitude and log-amplitude against those of the residual over a time `interval`.

    Their minimiser is about 0.55 of the true amplitude, because |r| and log|r| are smaller than sigma and log sigma
    on average; `diffusion_nll` has no such bias.
    """
    interval = torch.as_tensor(interval, device=residual.device)
    amplitude_error = (log_amplitude.exp() - residual.abs() * interval.sqrt()).square()
    log_error = (log_amplitude - 0.5 * torch.log(residual.square() + FLOOR) - 0.5 * interval.log()).square()
    return amplitude_error.flatten(1).mean(1), log_error.flatten(1).mean(1)


class PredictorRecipe(Recipe):
    """What all four trainings share; `terms` is what they differ in."""

    best_metric = ("loss", "min")
    ema_networks = ("regressor",)
    shard_types = (torch.nn.TransformerEncoderLayer,)

    def __init__(self, config: FlowPredConfig, regressor: VectorFieldRegressor, latent_space: LatentSpace) -> None:
        settings = config.training.optimizer
        # fused: one pass over 98 M parameters where the default makes a dozen
        kind = Muon if settings.name == "muon" else partial(torch.optim.AdamW, fused=True)
        optimizer = kind(regressor.trained_parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        super().__init__({"regressor": regressor}, {"regressor": optimizer})
        self.config, self.latent_space = config, latent_space
        self.frozen = [latent_space]

    def learning_rate_scale(self, step: int) -> float | None:
        """The original's schedule, or None for one of the engine's."""
        settings = self.config.training.optimizer
        if settings.schedule != "sqrt":
            return None
        base = settings.learning_rate
        rate = learning_rate(step, base, self.final_rate(base), settings.num_warmup_steps, settings.num_training_steps)
        return rate / base

    def final_rate(self, base: float) -> float:
        """Learning rate after the last step."""
        return SDE_FINAL_SHARE * base

    def losses(self, batch: Any, step: Step) -> Iterator[Losses | None]:
        """One loss."""
        terms = self.terms(batch, step)
        weight = self.config.training.loss_weights.flow_matching_loss
        means = {name: value.mean() for name, value in terms.items() if name != "loss"}
        yield Losses(weight * terms["loss"].mean(), means)

    def evaluate(self, batch: Any, step: Step) -> Terms:
        """The loss and its parts at times and with noise that are fixed for each validation clip."""
        return self.terms(batch, step)

    def terms(self, batch: Any, step: Step) -> Terms:
        """Per-sample losses (B,)."""
        raise NotImplementedError

    def latents(self, batch: Any, indices: Tensor, step: Step) -> Tensor:
        """Normalised latents (B, M, C, h, w) of the frames at `indices` (B, M)."""
        if isinstance(batch, dict):
            return self.latent_space.normalize(pick_frames(batch["latents"], indices).float())
        frames = pick_frames(batch.transpose(1, 2), indices)  # (B, M, 3, H, W)
        frames = normalize(frames) if frames.dtype == torch.uint8 else frames
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
    """Conditional flow matching of the next frame given the last one and a random earlier one."""

    name = "flow_pred_river"

    def final_rate(self, base: float) -> float:
        return min(RIVER_FINAL_RATE, base)

    def terms(self, batch: Any, step: Step) -> Terms:
        draw = draw_river(step.noise, self.frames_in(batch), self.latent_shape)
        target, reference, condition = self.latents(batch, draw.frames, step).unbind(1)
        x, velocity = river_path(target, draw.noise, draw.time, self.config.model.sigma)
        predicted = self.networks["regressor"](x, reference, condition, draw.distance, draw.time)
        return {"loss": mean_square(predicted.float(), velocity)}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Clips and what RIVER continues them with."""
        predictor = RiverPredictor(self.networks["regressor"], sigma=self.config.model.sigma)
        settings = self.config.evaluation
        options = {"past_horizon": settings.past_horizon, "warm_start": settings.warm_sampling}
        return self.shown_prediction(predictor, batch, step, steps=settings.steps, **options)


class StateRecipe(PredictorRecipe):
    """What the three trainings of the neural SDE share: perturbed states between two observations."""

    def state(self, batch: Any, step: Step) -> StateTarget:
        """Draw intervals, times and perturbations for a batch."""
        model = self.config.model
        count = model.num_input_frames
        draw: StateDraw = draw_state(step.noise, self.frames_in(batch), count, self.latent_shape)
        return state_target(self.latents(batch, draw.frames(count), step), draw, model.sigma, model.noise_std)


class FlowRecipe(StateRecipe):
    """Drift of the newest frame: log loss (f_nll) or squared error (f_mse)."""

    name = "flow_pred_flow"

    def terms(self, batch: Any, step: Step) -> Terms:
        goal = self.state(batch, step)
        predicted = self.networks["regressor"](goal.state).float()
        error = mean_square(predicted, goal.velocity)
        if self.config.model.func == "f_mse":
            return {"loss": error}
        return {"loss": flow_nll(predicted, goal.velocity), "mse": error}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Clips and what the flow alone continues them with."""
        sde = NeuralSDE(self.networks["regressor"], num_input_frames=self.config.model.num_input_frames)
        return self.shown_prediction(sde, batch, step)


class DenoiserRecipe(StateRecipe):
    """Denoising score matching: the negative perturbation of the state."""

    name = "flow_pred_denoiser"

    def terms(self, batch: Any, step: Step) -> Terms:
        goal = self.state(batch, step)
        predicted = self.networks["regressor"](goal.state).float()
        return {"loss": mean_square(predicted, -goal.perturbation)}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Perturbed newest frames, and the same after one step of the denoiser."""
        goal = self.state(batch, step)
        state, channels = goal.state[:SHOWN], self.latent_shape[0]
        denoised = state + self.networks["regressor"](state)
        frames = [self.latent_space.decode(x[:, -channels:]).clamp(-1, 1) for x in (state, denoised)]
        return {"perturbed_denoised": torch.cat(frames, dim=2)}


class DiffusionRecipe(StateRecipe):
    """Noise amplitude: the spread of what the frozen flow leaves unexplained."""

    name = "flow_pred_diffusion"

    def __init__(
        self,
        config: FlowPredConfig,
        regressor: VectorFieldRegressor,
        latent_space: LatentSpace,
        flow: VectorFieldRegressor,
        denoiser: VectorFieldRegressor | None = None,
    ) -> None:
        super().__init__(config, regressor, latent_space)
        self.flow, self.denoiser = flow, denoiser
        self.frozen += [network for network in (flow, denoiser) if network is not None]

    def terms(self, batch: Any, step: Step) -> Terms:
        goal, model = self.state(batch, step), self.config.model
        with torch.no_grad():
            residual = goal.velocity - self.flow(goal.state).float()
        amplitude = log_diffusion(self.networks["regressor"](goal.state).float(), tuple(model.logit_range))
        first, second = diffusion_reference(amplitude, residual)
        nll = diffusion_nll(amplitude, residual)
        return {"loss": nll if model.diffusion_loss == "nll" else first + second, "nll": nll, "amplitude_mse": first}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Clips and one draw of their continuation."""
        model = self.config.model
        sde = NeuralSDE(
            self.flow, self.denoiser, self.networks["regressor"], model.num_input_frames, tuple(model.logit_range)
        )
        return self.shown_prediction(sde, batch, step)


def learning_rate(step: int, base: float, end: float, warmup: int, total: int) -> float:
    """Rate at optimiser step 0, 1, ...: linear from 0 to `base` after `warmup` steps, then with the square root of the
    steps that are left down to `end` at `total`.
    """
    if step < warmup:
        return base * step / warmup
    if step >= total:
        return end
    return (base - end) * (1 - (step - warmup) / (total - warmup)) ** 0.5 + end


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
