"""The losses of both predictors, one value per sample (B,); the training loss is their mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DESINGULARISATION = 1e-3  # delta of the flow's log loss
FLOOR = 1e-6  # keeps the logarithm of a residual finite


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


def log_diffusion(output: Tensor, logit_range: tuple[float, float]) -> Tensor:
    """The raw output of g as the logarithm of the noise amplitude, within its range."""
    low, high = logit_range
    return low + 0.5 * (output.tanh() + 1) * (high - low)


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
