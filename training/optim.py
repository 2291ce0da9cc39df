"""Optimisers and learning rates: `build_optimizer`, Muon, and the rate as a function of the step alone, so that no
scheduler is saved.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videodata.errors import UserError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, steepest at 0
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # of AdamW's updates, so that both share a learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4)
DECAYS = {  # what is left of the way to the final rate at a progress in [0, 1]
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: (1 - progress) ** 0.5,
}
OWN_OPTIONS = {  # options that not every optimiser has
    "adam": ("betas", "eps", "fused"),
    "adamw": ("betas", "eps", "fused"),
    "muon": ("betas", "eps", "matrix_rate", "convolutions", "tables", "heads", "half"),
    "rmsprop": ("eps", "alpha", "momentum"),
}


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix (or each of a stack) with all singular values brought near 1 (Newton-Schulz iteration; Jordan et al.
    2024, "Muon").
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices, AdamW for everything else.

    Every direction of a matrix moves equally far, where Adam moves far along the few with large gradients: a network
    learns from about half as many clips. `matrix_rate`: learning rate of the matrices, in units of `lr`.
    `convolutions`: kernels are matrices (out, in * taps) too. `tables`: matrices that are none, such as a codebook.
    `heads`: stacks (heads, in, width of a head) of projections, which are one matrix (in, heads * width) each. `half`:
    orthogonalise in bfloat16, all matrices of a shape at once, which pays where the processor multiplies that faster.
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
        heads: Iterable[nn.Parameter] = (),
        half: bool = False,
    ) -> None:
        common = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        groups: list[dict] = [{"params": [], "matrix_rate": rate} for rate in (matrix_rate, 0.0)]
        groups.append({"params": [], "matrix_rate": matrix_rate, "heads": True})
        no_matrices, stacks = {id(table) for table in tables}, {id(stack) for stack in heads}
        for parameter in parameters:
            matrix = parameter.ndim == 2 or (convolutions and parameter.ndim > 2)
            number = 0 if matrix and id(parameter) not in no_matrices else 1
            groups[2 if id(parameter) in stacks else number]["params"].append(parameter)
        self.half = half
        super().__init__([group for group in groups if group["params"]], common)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if not group["matrix_rate"]:
                    self.update_adamw(parameter, parameter.grad, self.state[parameter], group)
            if group["matrix_rate"]:
                self.update_matrices(moved, group)
        return loss

    def update_matrices(self, parameters: list[Tensor], group: dict) -> None:
        """Orthogonalise one by one, or with `half` by shape."""
        together: dict[Any, list[Tensor]] = {}
        for number, parameter in enumerate(parameters):
            together.setdefault(parameter.shape if self.half else number, []).append(parameter)
        for alike in together.values():
            directions = [self.direction(parameter, group) for parameter in alike]  # (out, in) each
            if self.half:
                updates = orthogonalized(torch.stack(directions).bfloat16()).float().unbind()
            else:
                updates = [orthogonalized(direction) for direction in directions]
            for parameter, update in zip(alike, updates, strict=True):
                scale = UPDATE_RMS * max(update.shape) ** 0.5  # an orthogonal matrix has RMS 1 / sqrt(larger side)
                if group.get("heads"):
                    update = update.unflatten(1, (len(parameter), -1)).transpose(0, 1)
                update = update.reshape(parameter.shape).to(parameter.dtype)
                parameter.add_(update, alpha=-group["lr"] * group["matrix_rate"] * scale)

    def direction(self, parameter: Tensor, group: dict) -> Tensor:
        """The Nesterov momentum of a parameter as the matrix (out, in) that it is, after taking in its gradient."""
        beta = group["betas"][0]
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - beta)
        direction = parameter.grad.lerp(momentum, beta).float()
        return (direction.transpose(0, 1) if group.get("heads") else direction).flatten(1)

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


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, **options: Any
) -> torch.optim.Optimizer:
    """The optimiser of that name (a key of OPTIMIZERS) over parameters or parameter groups. Raises UserError.

    `options` are torch's own (betas, eps, weight_decay, fused) and Muon's. Those that an optimiser does not have are
    dropped, so that a recipe names what it wants of each and leaves the choice to its configuration.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if not 0 <= lr < math.inf:
        raise UserError(f"the learning rate must be a finite number of at least 0, found {lr}")
    foreign = set().union(*OWN_OPTIONS.values()) - set(OWN_OPTIONS[name])
    return OPTIMIZERS[name](parameters, lr=lr, **{key: value for key, value in options.items() if key not in foreign})


def learning_rate_scale(
    step: int,
    total: int,
    warmup_steps: int = 0,
    schedule: str = "constant",
    *,
    warmup: str = "linear",
    warmup_start: float | None = None,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    final_rate: float = 0.0,
    base: float = 1.0,
) -> float:
    """Factor on the rate `base` of a parameter group for optimiser step 0 .. total - 1.

    constant; multistep: times `gamma` at each of `milestones`; and from 1 to `final_rate` after the warm-up: cosine
    (Loshchilov and Hutter 2017, arXiv 1608.03983, one cycle), linear, sqrt (the square root of the share of steps that
    are left). cosine_full is a cosine over all steps, the warm-up among them (Detectron2's WarmupCosineLR).
    """
    warm = warmup_scale(step, warmup_steps, warmup, warmup_start, base) if step < warmup_steps else 1.0
    if schedule == "multistep":
        return warm * gamma ** bisect_right(milestones, step)
    if schedule == "cosine_full":
        share = 0.5 * (1 + math.cos(math.pi * step / total))
    elif schedule == "constant" or step < warmup_steps:
        return warm
    else:
        progress = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
        share = DECAYS[schedule](progress)
    return warm * (((base - final_rate) * share + final_rate) / base if final_rate else share)


def warmup_scale(step: int, steps: int, kind: str, start: float | None, base: float) -> float:
    """Factor during the first `steps` steps: `start` itself ("constant"), or linear from it to 1."""
    if kind == "constant":
        return start
    if start is None:  # the first step moves already, and step `steps - 1` has the whole rate
        return (step + 1) / steps
    if start == 0:
        return base * step / steps / base  # in this order, so that flow_pred's rates are the original's to the last bit
    return start * (1 - step / steps) + step / steps
