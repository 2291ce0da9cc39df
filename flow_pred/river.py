"""RIVER: each next latent frame is carried from noise by a flow that looks at the last frame and at a random earlier
one (Davtyan et al., ICCV 2023, arXiv 2211.14575), or at the last K frames. The flow's path, the sampler, and solvers
of dx/ds = velocity(x, s).

Axes: B batch, n context frames, C H W one latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flow_pred.conv_backbone import ConvRegressor
from flow_pred.latents import LatentPredictor, at_rest, below, sample_noise
from flow_pred.regressor import VectorFieldRegressor
from training.conditions import guided
from videodata.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]
LEAST_TIME = 0.02  # to the end of the path, that the way to a predicted frame is divided by
DEFAULTS = {"uniform": (10, "midpoint"), "reference": (100, "rk4")}  # grid -> steps, solver


class RiverPredictor(LatentPredictor):
    """Continues latent clips frame by frame with a network of role "river".

    prediction: what the network answers with, the velocity, or ("frame") how the next frame differs from the last one.
    classes: the names of the labels that it can be told.
    """

    def __init__(
        self,
        regressor: VectorFieldRegressor | ConvRegressor,
        autoencoder: nn.Module | None = None,
        sigma: float = 1e-7,
        prediction: str = "velocity",
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.regressor, self.autoencoder, self.sigma, self.prediction = regressor, autoencoder, sigma, prediction
        self.classes = tuple(classes)

    @property
    def frames_seen(self) -> int | None:
        """How many of the last frames the network reads; None: the last one and a random earlier one."""
        return self.regressor.num_input_frames if self.regressor.condition == "last" else None

    def sample(
        self,
        context_latents: Tensor,
        frames: int,
        steps: int | None = None,
        grid: str = "uniform",
        warm_start: float = 0.0,
        past_horizon: int = -1,
        noise: Tensor | None = None,
        condition_indices: Tensor | None = None,
        generator: torch.Generator | None = None,
        method: str | None = None,
        positions: Sequence[int] | None = None,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Latents (B, n, C, H, W), n >= 1 -> (B, n + frames, C, H, W).

        grid "uniform": `steps` intervals of `method` (10, midpoint). grid "reference": the original's
        floor((1 - warm_start) * steps) grid points with the 3/8 rule (100). warm_start in [0, 1): where on the path
        to start, from a mixture of noise and the last frame. past_horizon: how many of the last frames may be looked
        back at, the last one included; -1: all; a network that reads the last K frames needs n >= K and looks at no
        others. noise (frames, B, C, H, W) and condition_indices (frames, evaluation, B) replace the draws. positions:
        which stream of noise each sample gets (default 0 .. B - 1), so that a sample does not change with its batch.
        labels (B,): the class of each sample by its number; guidance: how far to lead to it (`training.conditions`).
        """
        times, method = path_times(steps, grid, warm_start, method)
        streams = sample_noise(len(context_latents), generator, positions, context_latents.device)
        seen, single = self.frames_seen, context_latents.shape[1] == 1 and self.frames_seen is None
        if seen and context_latents.shape[1] < seen:
            raise UserError(f"the context has {context_latents.shape[1]} frames; this RIVER needs at least {seen}")
        latents = context_latents.repeat(1, 2, 1, 1, 1) if single else context_latents
        evaluations = (len(times) - 1) * EVALUATIONS[method]
        with at_rest(self.regressor):
            for index in range(frames):
                epsilon = streams.normal(*latents.shape[2:]) if noise is None else noise[index]
                conditions = None
                if condition_indices is not None:
                    conditions = condition_indices[index].to(latents.device)
                elif seen is None:
                    conditions = draw_conditions(streams.uniform(evaluations), latents.shape[1], past_horizon)
                velocity = self.velocity(latents, conditions, labels, guidance)
                start, _ = river_path(
                    latents[:, -1], epsilon.to(latents), latents.new_full((len(latents),), times[0]), self.sigma
                )
                new = integrate(velocity, start, times, method)
                latents = torch.cat([latents, new[:, None]], dim=1)
        return latents[:, 1:] if single else latents

    def velocity(self, latents: Tensor, conditions: Tensor | None, labels: Tensor | None, guidance: float) -> Velocity:
        """The field that carries noise to the frame after `latents` (B, L, C, H, W).

        conditions: frames to look back at (evaluation, B), in call order; None for a network that reads the last ones.
        """
        last, length = latents[:, -1], latents.shape[1]
        batch = torch.arange(len(latents), device=latents.device)
        calls = None if conditions is None else iter(conditions)

        def velocity(x: Tensor, s: float) -> Tensor:
            if calls is None:
                given = (latents[:, -self.frames_seen :].flatten(1, 2), None, None)
            else:
                condition = next(calls)  # (B,)
                given = (last, latents[batch, condition], length - 1 - condition)
            answer = self.answer(x, given, x.new_full((len(x),), s), labels, guidance)
            if self.prediction == "velocity":
                return answer
            return (last + answer - x) / max(1 - s, LEAST_TIME)

        return velocity

    def answer(
        self, x: Tensor, given: tuple[Tensor | None, ...], time: Tensor, labels: Tensor | None, guidance: float
    ) -> Tensor:
        """What the network says at (x, time), led to the class where there is one."""
        if labels is None:
            return self.regressor(x, *given, time)
        none = len(self.classes)
        return guided(lambda told: self.regressor(x, *given, time, told), labels.to(x.device), none, guidance)


def path_times(steps: int | None, grid: str, warm_start: float, method: str | None) -> tuple[list[float], str]:
    """The grid from warm_start to 1 and the solver's name. Raises UserError for settings that give no grid."""
    if grid not in DEFAULTS:
        raise UserError(f"grid must be uniform or reference, found {grid!r}")
    if not 0 <= warm_start < 1:
        raise UserError(f"warm_start must be at least 0 and below 1, found {warm_start}")
    default_steps, default_method = DEFAULTS[grid]
    steps, method = steps or default_steps, method or default_method
    method_named(method)
    points = steps + 1 if grid == "uniform" else math.floor((1 - warm_start) * steps)
    if points < 2:
        raise UserError(f"steps={steps} with warm_start={warm_start} leaves no interval; take more steps")
    return torch.linspace(warm_start, 1, points, dtype=torch.float64).tolist(), method


def draw_conditions(uniform: Tensor, length: int, past_horizon: int) -> Tensor:
    """Frames to look back at, (evaluation, B) in max(0, length - horizon) .. length - 2, from uniform (B, evaluation).

    There is always at least the frame before the last one.
    """
    low = 0 if past_horizon < 0 else min(max(0, length - past_horizon), length - 2)
    return low + below(uniform.T, torch.tensor(length - 1 - low, device=uniform.device))


def river_path(latents: Tensor, noise: Tensor, time: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Point on the straight path from noise to latents at path time (B,), and its velocity, both (B, C, H, W).

    Conditional flow matching with the optimal-transport path (Lipman et al., arXiv 2210.02747, eq. 22). The velocity
    is in closed form: the quotient of differences that defines it is inaccurate near the end of the path and overflows
    in bfloat16.
    """
    s = time.view(-1, 1, 1, 1)
    return (1 - (1 - sigma) * s) * noise + s * latents, latents - (1 - sigma) * noise


def integrate(velocity: Velocity, x: Tensor, times: Sequence[float], method: str) -> Tensor:
    """Integrate from times[0] to times[-1] with one step per interval. Raises UserError for an unknown method."""
    step = method_named(method)
    for start, end in zip(times[:-1], times[1:], strict=True):
        x = step(velocity, x, start, end - start)
    return x


def method_named(name: str) -> Callable[[Velocity, Tensor, float, float], Tensor]:
    """The step function of a method. Raises UserError for an unknown one."""
    if name not in METHODS:
        raise UserError(f"unknown solver {name!r}: use one of {', '.join(METHODS)}")
    return METHODS[name]


def euler(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """One step, order 1."""
    return x + h * velocity(x, s)


def midpoint(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """One step, order 2."""
    return x + h * velocity(x + h / 2 * velocity(x, s), s + h / 2)


def heun(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """One step, order 2, evaluated at the ends of the interval."""
    k1 = velocity(x, s)
    return x + h / 2 * (k1 + velocity(x + h * k1, s + h))


def three_eighths(velocity: Velocity, x: Tensor, s: float, h: float) -> Tensor:
    """One step of Kutta's 3/8 rule, order 4: stages at 0, 1/3, 2/3 and 1."""
    k1 = velocity(x, s)
    k2 = velocity(x + h * k1 / 3, s + h / 3)
    k3 = velocity(x + h * (k2 - k1 / 3), s + 2 * h / 3)
    k4 = velocity(x + h * (k1 - k2 + k3), s + h)
    return x + h / 8 * (k1 + 3 * (k2 + k3) + k4)


METHODS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": three_eighths}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}  # of the velocity, per step
