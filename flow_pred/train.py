"""The training recipes: RIVER, and the flow, denoiser and diffusion of the neural SDE.

A batch is clips (B, 3, N, H, W), uint8 or float in [-1, 1], or {"latents": (B, N, C, h, w)} from a latent cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flow_pred import losses
from flow_pred.augmentation import jitter_colors
from flow_pred.config import FlowPredConfig
from flow_pred.latent_space import LatentSpace
from flow_pred.neural_sde import NeuralSDE
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.river import RiverPredictor
from flow_pred.sampling import decode_clip
from flow_pred.schedule import learning_rate
from flow_pred.targets import (
    StateDraw,
    StateTarget,
    draw_river,
    draw_state,
    pick_frames,
    river_path,
    state_target,
)
from training import Losses, Recipe, Step
from training.optim import Muon
from videodata.pixels import normalize

RIVER_FINAL_RATE = 1e-7
SDE_FINAL_SHARE = 1e-3  # of the learning rate
SHOWN = 4  # sequences in the pictures

Terms = dict[str, Tensor]  # per-sample values (B,); "loss" is what is minimised


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

    def learning_rate_scale(self, step: int) -> float:
        """The original's schedule."""
        settings = self.config.training.optimizer
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

    def all_latents(self, batch: Any, step: Step) -> Tensor:
        """Latents (B', N, C, h, w) of the first clips, for pictures."""
        part = {"latents": batch["latents"][:SHOWN]} if isinstance(batch, dict) else batch[:SHOWN]
        count = len(part["latents"] if isinstance(part, dict) else part)
        indices = torch.arange(self.frames_in(batch), device=step.device).expand(count, -1)
        return self.latents(part, indices, step)

    def shown_prediction(
        self, predictor: RiverPredictor | NeuralSDE, batch: Any, step: Step, **options: Any
    ) -> dict[str, Tensor]:
        """Clips above their continuations; the first `condition_frames` frames are given."""
        latents, settings = self.all_latents(batch, step), self.config.training
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
        return {"loss": losses.mean_square(predicted.float(), velocity)}

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
        error = losses.mean_square(predicted, goal.velocity)
        if self.config.model.func == "f_mse":
            return {"loss": error}
        return {"loss": losses.flow_nll(predicted, goal.velocity), "mse": error}

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
        return {"loss": losses.mean_square(predicted, -goal.perturbation)}

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
        amplitude = losses.log_diffusion(self.networks["regressor"](goal.state).float(), tuple(model.logit_range))
        first, second = losses.diffusion_reference(amplitude, residual)
        nll = losses.diffusion_nll(amplitude, residual)
        return {"loss": nll if model.diffusion_loss == "nll" else first + second, "nll": nll, "amplitude_mse": first}

    def pictures(self, batch: Any, step: Step) -> dict[str, Tensor]:
        """Clips and one draw of their continuation."""
        model = self.config.model
        sde = NeuralSDE(
            self.flow, self.denoiser, self.networks["regressor"], model.num_input_frames, tuple(model.logit_range)
        )
        return self.shown_prediction(sde, batch, step)
