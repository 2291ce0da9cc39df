"""Optimisers and learning rates: Muon, and the rate as a function of the step alone, so that no scheduler is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, steepest at 0
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # of AdamW's updates, so that both share a learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with all singular values brought near 1 (Newton-Schulz iteration; Jordan et al. 2024, "Muon")."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices, AdamW for everything else.

    Every direction of a matrix moves equally far, where Adam moves far along the few with large gradients: a network
    learns from about half as many clips. `matrix_rate`: learning rate of the matrices, in units of `lr`.
    `convolutions`: kernels are matrices (out, in * taps) too. `tables`: matrices that are none, such as a codebook.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        matrix_rate: float = 2.5,
        convolutions: bool = False,
        tables: Iterable[nn.Parameter] = (),
    ) -> None:
        common = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        groups: list[dict] = [{"params": [], "matrix_rate": rate} for rate in (matrix_rate, 0.0)]
        no_matrices = {id(table) for table in tables}
        for parameter in parameters:
            matrix = parameter.ndim == 2 or (convolutions and parameter.ndim > 2)
            groups[0 if matrix and id(parameter) not in no_matrices else 1]["params"].append(parameter)
        super().__init__([group for group in groups if group["params"]], common)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self.update_matrix if group["matrix_rate"] else self.update_adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def update_matrix(self, parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        beta = group["betas"][0]
        momentum.lerp_(gradient, 1 - beta)
        update = orthogonalized(gradient.lerp(momentum, beta).flatten(1).float())  # (out, in)
        scale = UPDATE_RMS * max(update.shape) ** 0.5  # an orthogonal matrix has RMS 1 / sqrt(larger side)
        update = update.view_as(parameter).to(parameter.dtype)
        parameter.add_(update, alpha=-group["lr"] * group["matrix_rate"] * scale)

    def update_adamw(self, parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        first, second = group["betas"]
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        step = state["step"].item()
        root = (state["square"] / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**step))


def learning_rate_scale(step: int, total: int, warmup: int = 0, kind: str = "constant") -> float:
    """Factor on the base learning rate for optimiser step 0 .. total - 1.

    Linear warm-up over `warmup` steps, then constant, cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, one
    cycle to 0) or linear to 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return 1 - progress
    raise ValueError(f"unknown schedule {kind!r}")


def set_learning_rates(optimizer: torch.optim.Optimizer, base: list[float], scale: float) -> None:
    """Set each parameter group's learning rate to its base value times `scale`."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * scale
