"""Kullback-Leibler divergence of diagonal Gaussians in nats, and the ramp by which a weight grows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
) -> Tensor:
    """KL(N(mean, exp(log_var)) || prior) per sample: (B, ...) -> float32 or float64 (B,), summed over all else.

    The prior is N(0, 1), or N(prior_mean, exp(prior_log_var)) when both are given. Kingma and Welling 2014, appendix B.
    """
    return elementwise_gaussian_kl(mean, log_var, prior_mean, prior_log_var).flatten(1).sum(dim=1)


def elementwise_gaussian_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
) -> Tensor:
    """The same divergence for each element, before any sum."""
    mean, log_var = _full_precision(mean), _full_precision(log_var)
    if prior_mean is None or prior_log_var is None:
        if prior_mean is not prior_log_var:
            raise ValueError("give both the mean and the log-variance of the prior, or neither")
        return 0.5 * (mean**2 + torch.exp(log_var) - 1 - log_var)
    prior_mean, prior_log_var = _full_precision(prior_mean), _full_precision(prior_log_var)
    squared_distance = (mean - prior_mean) ** 2 * torch.exp(-prior_log_var)
    log_ratio = log_var - prior_log_var
    return 0.5 * (squared_distance + torch.exp(log_ratio) - 1 - log_ratio)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def free_bits(kl: Tensor, bits: float) -> Tensor:
    """A KL (B,) in nats, replaced per sample by a constant wherever it is below `bits` bits.

    So there is no reward for pushing it lower (Kingma et al. 2016, arXiv 1606.04934, section 4.3). The bound is
    taken per sample and not per batch mean, because a sample's loss must not depend on what else is in its batch.
    """
    return kl.clamp(min=bits * math.log(2)) if bits > 0 else kl


def linear_ramp(step: int, start: int = 0, length: int = 0) -> float:
    """0 before step `start`, then linear to 1 over `length` steps, then 1. A length of 0 is a switch at `start`."""
    if step < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (step - start) / length)
