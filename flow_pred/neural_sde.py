"""Neural SDE: the last K latent frames are the state of a stochastic differential equation whose drift (flow and
denoiser) and diffusion are learned without simulating it (arXiv 2501.18871). The equation, its solvers, its noise.

Solvers are those of dx = drift(x) dt + diffusion(x) * dW (Ito, diagonal noise).

Axes: B batch, n context frames, K frames of the state, C H W one latent frame. One frame is one unit of time.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from flow_pred.conv_backbone import ConvRegressor
from flow_pred.latents import LatentPredictor, at_rest, sample_noise
from flow_pred.regressor import VectorFieldRegressor
from training.randomness import SampleNoise
from videodata.errors import UserError

Field = Callable[[Tensor], Tensor]
MINIMUM_STEP = 1e-6
SDE_STEPS = 2  # per frame, where nobody says otherwise


class NeuralSDE(LatentPredictor):
    """Continues latent clips with flow f, and where given with denoiser d and diffusion g (VectorFieldRegressor).

    alpha: weight of the denoiser in the drift. diffusion_scale: factor on the noise amplitude.
    """

    def __init__(
        self,
        flow: VectorFieldRegressor | ConvRegressor,
        denoiser: VectorFieldRegressor | ConvRegressor | None = None,
        diffusion: VectorFieldRegressor | ConvRegressor | None = None,
        num_input_frames: int = 4,
        logit_range: tuple[float, float] = (-9.0, 1.0),
        alpha: float = 1.0,
        autoencoder: nn.Module | None = None,
        diffusion_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.flow, self.denoiser, self.log_amplitude = flow, denoiser, diffusion
        self.num_input_frames, self.logit_range = num_input_frames, tuple(logit_range)
        self.alpha, self.diffusion_scale = alpha, diffusion_scale
        self.autoencoder = autoencoder

    @property
    def noisy(self) -> bool:
        """Whether samples differ."""
        return self.log_amplitude is not None and self.diffusion_scale > 0

    def drift(self, state: Tensor, known: Tensor) -> Tensor:
        """Drift of a state (B, K, C, H, W), the same shape.

        The older frames move at constant speed to their successors among the `known` latents (B, K, C, H, W), the
        newest one by the flow, and all of them by the denoiser.
        """
        flat = state.flatten(1, 2)
        drift = torch.cat([known[:, 1:] - known[:, :-1], self.flow(flat)[:, None]], dim=1)
        if self.denoiser is not None:
            drift = drift + self.alpha * self.denoiser(flat).view_as(state)
        return drift

    def diffusion(self, state: Tensor) -> Tensor:
        """Noise amplitude of a state (B, K, C, H, W), the same shape: 0 but for the newest frame."""
        logarithm = log_diffusion(self.log_amplitude(state.flatten(1, 2)), self.logit_range)
        amplitude = self.diffusion_scale * logarithm.exp()
        return torch.cat([torch.zeros_like(state[:, 1:]), amplitude[:, None]], dim=1)

    def sample(
        self,
        context_latents: Tensor,
        frames: int,
        steps: int = SDE_STEPS,
        outputs_per_interval: int = 1,
        increments: Tensor | None = None,
        generator: torch.Generator | None = None,
        method: str = "euler",
        atol: float = 1e-2,
        positions: Sequence[int] | None = None,
    ) -> Tensor:
        """Latents (B, n, C, H, W), n >= K -> (B, n + frames * outputs_per_interval, C, H, W).

        steps: solver steps per frame; they are spread evenly and one lands on every output time, so they are rounded
        up to a multiple of outputs_per_interval. method: "euler" (Euler-Maruyama), "heun", or "adaptive" with the
        tolerance `atol`. increments (frames, step, B, K * C * H * W) replace the Brownian increments of the fixed
        steps. positions: which stream of noise each sample gets (default 0 .. B - 1), so that a sample does not
        change with its batch.
        """
        count = self.num_input_frames
        if context_latents.shape[1] < count:
            raise UserError(f"the context has {context_latents.shape[1]} frames; the neural SDE needs at least {count}")
        if steps < 1 or outputs_per_interval < 1:
            raise UserError(f"steps and outputs per interval must be at least 1, found {steps}, {outputs_per_interval}")
        streams = sample_noise(len(context_latents), generator, positions, context_latents.device)
        known, outputs = context_latents[:, -count:], [context_latents]
        with at_rest(self.flow, self.denoiser, self.log_amplitude):
            for frame in range(frames):
                if method == "adaptive":
                    states = self.adaptive_interval(known, outputs_per_interval, atol, streams)
                else:
                    given = None if increments is None else increments[frame]
                    states = self.fixed_interval(known, steps, outputs_per_interval, method, streams, given)
                newest = [state[:, -1] for state in states]
                outputs.append(torch.stack(newest, dim=1))
                known = torch.cat([known[:, 1:], newest[-1][:, None]], dim=1)
        return torch.cat(outputs, dim=1)

    def fixed_interval(
        self, known: Tensor, steps: int, outputs: int, method: str, streams: SampleNoise, given: Tensor | None
    ) -> Iterator[Tensor]:
        """States at the output times of one frame interval, with steps of equal size."""
        step = method_named(method)
        per_output = math.ceil(steps / outputs)
        h = 1 / (per_output * outputs)
        diffusion = self.diffusion if self.noisy else None
        if given is not None and len(given) != per_output * outputs:
            raise UserError(f"{len(given)} increments per frame were given for {per_output * outputs} steps")
        state = known
        for number in range(per_output * outputs):
            dw = None
            if given is not None:
                dw = given[number].to(state).view_as(state)
            elif diffusion is not None:
                newest = streams.normal(*state.shape[2:])[:, None].to(state)
                dw = math.sqrt(h) * torch.cat([torch.zeros_like(state[:, 1:]), newest], dim=1)
            state = step(lambda x: self.drift(x, known), diffusion, state, h, dw)
            if (number + 1) % per_output == 0:
                yield state

    def adaptive_interval(self, known: Tensor, outputs: int, atol: float, streams: SampleNoise) -> Iterator[Tensor]:
        """States at the output times of one frame interval, with steps that each sample chooses for itself."""
        diffusion = self.diffusion if self.noisy else None
        path = None if diffusion is None else BrownianPath(streams, known.shape[1:])
        solver = AdaptiveEuler(lambda x, rows: self.drift(x, known[rows.to(x.device)]), diffusion, atol)
        step, state = torch.ones(len(known), dtype=torch.float64), known
        for number in range(outputs):
            state = solver.solve(state, number / outputs, (number + 1) / outputs, step, path)
            yield state


def log_diffusion(output: Tensor, logit_range: tuple[float, float]) -> Tensor:
    """The raw output of g as the logarithm of the noise amplitude, within its range."""
    low, high = logit_range
    return low + 0.5 * (output.tanh() + 1) * (high - low)


def euler_maruyama(drift: Field, diffusion: Field | None, x: Tensor, h: float, dw: Tensor | None) -> Tensor:
    """One step, weak order 1; dw: the Brownian increment, of the shape of x."""
    step = x + h * drift(x)
    return step if diffusion is None else step + diffusion(x) * dw


def heun(drift: Field, diffusion: Field | None, x: Tensor, h: float, dw: Tensor | None) -> Tensor:
    """One step: the drift averaged over both ends of the step, the noise amplitude at its start (Ito)."""
    f = drift(x)
    noise = 0 if diffusion is None else diffusion(x) * dw
    return x + h / 2 * (f + drift(x + h * f + noise)) + noise


METHODS = {"euler": euler_maruyama, "heun": heun}


def method_named(name: str) -> Callable[[Field, Field | None, Tensor, float, Tensor | None], Tensor]:
    """The step function of a fixed-step method. Raises UserError for an unknown one."""
    if name not in METHODS:
        raise UserError(f"unknown solver {name!r}: use one of {', '.join((*METHODS, 'adaptive'))}")
    return METHODS[name]


class AdaptiveEuler:
    """Euler-Maruyama with step doubling: a step and its two halves must agree to `atol` in the root mean square.

    Each sample has its own time and its own steps, so it does not depend on the rest of its batch.
    """

    SAFETY, SHRINK, GROW = 0.9, 0.2, 1.4

    def __init__(self, drift: Callable[[Tensor, Tensor], Tensor], diffusion: Field | None, atol: float) -> None:
        """drift(x, rows): rows are the numbers in the batch of the samples in x."""
        self.drift, self.diffusion, self.atol = drift, diffusion, atol

    def solve(self, x: Tensor, start: float, end: float, step: Tensor, path: BrownianPath | None) -> Tensor:
        """Integrate x (B, ...) from start to end; `step` (B,) is the step to try first and holds the next one after."""
        x, time = x.clone(), torch.full((len(x),), start, dtype=torch.float64)
        while (rows := (time < end - 1e-9).nonzero().flatten()).numel():
            h = torch.minimum(step[rows], end - time[rows])
            new, error = self.trial(x[rows], rows, time[rows], h, path)
            accepted = (error <= 1) | (h <= MINIMUM_STEP)
            x[rows[accepted].to(x.device)] = new[accepted.to(x.device)]
            time[rows] += torch.where(accepted, h, 0)
            step[rows] = self.next_step(h, error, accepted, step[rows])
        return x

    def trial(
        self, x: Tensor, rows: Tensor, time: Tensor, h: Tensor, path: BrownianPath | None
    ) -> tuple[Tensor, Tensor]:
        """The result of two half steps, and its distance from that of one whole step in units of atol, (b,)."""
        shape = (-1, *[1] * (x.ndim - 1))
        half = (h / 2).to(x).view(shape)
        first, second = (None, None) if path is None else path.halves(rows, time, h)
        f = self.drift(x, rows)
        middle, whole = x + half * f, x + 2 * half * f
        if self.diffusion is not None:
            g = self.diffusion(x)
            middle, whole = middle + g * first, whole + g * (first + second)
        new = middle + half * self.drift(middle, rows)
        if self.diffusion is not None:
            new = new + self.diffusion(middle) * second
        error = (new - whole).flatten(1).double().square().mean(1).sqrt() / self.atol
        return new, error.cpu()

    def next_step(self, h: Tensor, error: Tensor, accepted: Tensor, tried: Tensor) -> Tensor:
        """Step sizes to try next: larger after success, smaller after failure.

        A step that was only cut off by the end of the interval does not shrink the following ones.
        """
        order = torch.where(accepted, 1 / 4.5, 1 / 1.5)
        factor = (self.SAFETY / error.clamp_min(1e-12)).pow(order).clamp(self.SHRINK, self.GROW)
        grown = torch.maximum(h * factor.clamp_min(1), tried)
        return torch.where(accepted, grown, (h * factor).clamp_min(MINIMUM_STEP))


class BrownianPath:
    """One path per sample, W(0) = 0, that can be asked at any time, for solvers that take a step back.

    Asking twice gives the same value; values between known ones are bridged.
    """

    def __init__(self, noise: SampleNoise, shape: tuple[int, ...]) -> None:
        self._shape, self._device = shape, noise.device
        self._generators = [torch.Generator(noise.device).manual_seed(seed) for seed in noise.integers(2**62).tolist()]
        zero = torch.zeros(shape, device=self._device)
        self._times = [[0.0] for _ in range(len(noise))]
        self._values = [[zero] for _ in range(len(noise))]

    def halves(self, rows: Tensor, time: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Increments of the samples `rows` over the two halves of [time, time + h], (b, *shape) each."""
        start, end = self._at(rows, time), self._at(rows, time + h)
        middle = self._at(rows, time + h / 2)
        return middle - start, end - middle

    def _at(self, rows: Tensor, times: Tensor) -> Tensor:
        return torch.stack([self._value(row, time) for row, time in zip(rows.tolist(), times.tolist(), strict=True)])

    def _value(self, row: int, time: float) -> Tensor:
        times, values = self._times[row], self._values[row]
        place = bisect.bisect_left(times, time)
        if place < len(times) and times[place] == time:
            return values[place]
        normal = torch.randn(self._shape, generator=self._generators[row], device=self._device)
        left, before = times[place - 1], values[place - 1]
        if place == len(times):
            value = before + math.sqrt(time - left) * normal
        else:
            right, after = times[place], values[place]
            mean = before + (time - left) / (right - left) * (after - before)
            value = mean + math.sqrt((time - left) * (right - time) / (right - left)) * normal
        times.insert(place, time)
        values.insert(place, value)
        return value
