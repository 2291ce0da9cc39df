"""Neural SDE: the last K latent frames are the state of a stochastic differential equation whose drift (flow and
denoiser) and diffusion are learned without simulating it (arXiv 2501.18871).

Axes: B batch, n context frames, K frames of the state, C H W one latent frame. One frame is one unit of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from flow_pred import sde_solvers
from flow_pred.brownian import BrownianPath
from flow_pred.losses import log_diffusion
from flow_pred.regressor import VectorFieldRegressor
from flow_pred.sampling import at_rest, decode_clip, encode_clip, sample_noise
from training.randomness import SampleNoise
from videodata.errors import UserError


class NeuralSDE(nn.Module):
    """Continues latent clips with flow f, and where given with denoiser d and diffusion g (VectorFieldRegressor).

    alpha: weight of the denoiser in the drift. diffusion_scale: factor on the noise amplitude.
    """

    def __init__(
        self,
        flow: VectorFieldRegressor,
        denoiser: VectorFieldRegressor | None = None,
        diffusion: VectorFieldRegressor | None = None,
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
        amplitude = (
            self.diffusion_scale * log_diffusion(self.log_amplitude(state.flatten(1, 2)), self.logit_range).exp()
        )
        return torch.cat([torch.zeros_like(state[:, 1:]), amplitude[:, None]], dim=1)

    def predict(self, clip: Tensor, frames: int, **options: object) -> Tensor:
        """Context clip (B, 3, n, H, W) in [-1, 1] -> clip with `frames * outputs_per_interval` more frames.

        Options as for `sample`.
        """
        with at_rest(self):
            return decode_clip(self.autoencoder, self.sample(encode_clip(self.autoencoder, clip), frames, **options))

    def sample(
        self,
        context_latents: Tensor,
        frames: int,
        steps: int = 2,
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
        step = sde_solvers.method_named(method)
        per_output = math.ceil(steps / outputs)
        h = 1 / (per_output * outputs)
        diffusion = None if self.log_amplitude is None else self.diffusion
        if given is not None and len(given) != per_output * outputs:
            raise UserError(f"{len(given)} increments per frame were given for {per_output * outputs} steps")
        state = known
        for number in range(per_output * outputs):
            dw = None
            if given is not None:
                dw = given[number].to(state).view_as(state)
            elif diffusion is not None:
                dw = math.sqrt(h) * self.newest_only(streams.normal(*state.shape[2:]), state)
            state = step(lambda x: self.drift(x, known), diffusion, state, h, dw)
            if (number + 1) % per_output == 0:
                yield state

    def adaptive_interval(self, known: Tensor, outputs: int, atol: float, streams: SampleNoise) -> Iterator[Tensor]:
        """States at the output times of one frame interval, with steps that each sample chooses for itself."""
        diffusion = None if self.log_amplitude is None else self.diffusion
        path = None if diffusion is None else BrownianPath(streams, known.shape[1:])
        solver = sde_solvers.AdaptiveEuler(lambda x, rows: self.drift(x, known[rows.to(x.device)]), diffusion, atol)
        step, state = torch.ones(len(known), dtype=torch.float64), known
        for number in range(outputs):
            state = solver.solve(state, number / outputs, (number + 1) / outputs, step, path)
            yield state

    @staticmethod
    def newest_only(values: Tensor, state: Tensor) -> Tensor:
        """Values (B, C, H, W) for the newest frame and 0 for the others, (B, K, C, H, W)."""
        return torch.cat([torch.zeros_like(state[:, 1:]), values[:, None].to(state)], dim=1)
