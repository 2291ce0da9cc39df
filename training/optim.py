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
from torch.optim.adamw import adamw

from videodata.errors import UserError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, steepest at 0
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # of AdamW's updates, so that both share a learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4)
STACKED = 1 << 22  # numbers of the matrices that are orthogonalised together: the small ones, without much memory
FUSED = ("cpu", "cuda")  # devices on which torch updates all parameters in one pass
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
    stack = matrix if matrix.ndim == 3 else matrix[None]
    x = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):  # x <- (a + b x x' + c (x x')^2) x, the sums inside the products
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if stack.shape[-2] > stack.shape[-1] else x
    return x if matrix.ndim == 3 else x[0]


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices, AdamW for everything else.

    Every direction of a matrix moves equally far, where Adam moves far along the few with large gradients: a network
    learns from about half as many clips. `matrix_rate`: learning rate of the matrices, in units of `lr`.
    `convolutions`: kernels are matrices (out, in * taps) too. `tables`: matrices that are none, such as a codebook.
    `heads`: stacks (heads, in, width of a head) of projections, which are one matrix (in, heads * width) each. `half`:
    orthogonalise in bfloat16, which pays where the processor multiplies that faster; None: where the run is in it.
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
        half: bool | None = None,
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
            if not group["matrix_rate"]:
                self.update_adamw(moved, group)
                continue
            alike: dict[Any, list[Tensor]] = {}
            for parameter in moved:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for matrices in alike.values():
                at_once = max(1, STACKED // matrices[0].numel())
                for start in range(0, len(matrices), at_once):
                    self.update_matrices(matrices[start : start + at_once], group)
        return loss

    def update_matrices(self, alike: list[Tensor], group: dict) -> None:
        """Move parameters of one shape, orthogonalised together."""
        directions = torch.stack([self.direction(parameter, group) for parameter in alike])  # (count, out, in)
        updates = orthogonalized(directions.bfloat16() if self.half else directions).float().unbind()
        scale = UPDATE_RMS * max(directions.shape[1:]) ** 0.5  # an orthogonal matrix has RMS 1 / sqrt(larger side)
        for parameter, update in zip(alike, updates, strict=True):
            if group.get("heads"):
                update = update.unflatten(1, (len(parameter), -1)).transpose(0, 1)
            update = update.reshape(parameter.shape).to(parameter.dtype)
            parameter.add_(update, alpha=-group["lr"] * group["matrix_rate"] * scale)

    def direction(self, parameter: Tensor, group: dict) -> Tensor:
        """The Nesterov momentum of a parameter as the matrix (out, in) that it is, after taking in its gradient."""
        beta = group["betas"][0]
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - beta)
        direction = parameter.grad.lerp(momentum, beta).float()
        return (direction.transpose(0, 1) if group.get("heads") else direction).flatten(1)

    def update_adamw(self, parameters: list[Tensor], group: dict) -> None:
        """Move them as AdamW does, all in one call."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] = state["step"].to(parameter.device)  # that of a file is on the CPU
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        means, squares, steps = ([state[key] for state in states] for key in ("mean", "square", "step"))
        adamw(
            parameters, gradients, means, squares, [], steps, fused=fusible(parameters), amsgrad=False, maximize=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"],
        )  # fmt: skip


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
    dropped, so that a recipe names what it wants of each and leaves the choice to its configuration. Adam and AdamW
    are fused where torch can: one pass over the weights where the default makes a dozen.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if not 0 <= lr < math.inf:
        raise UserError(f"the learning rate must be a finite number of at least 0, found {lr}")
    parameters = [
        {**entry, "params": list(entry["params"])} if isinstance(entry, dict) else entry for entry in parameters
    ]
    options.setdefault("fused", fusible(parameters))
    foreign = set().union(*OWN_OPTIONS.values()) - set(OWN_OPTIONS[name])
    return OPTIMIZERS[name](parameters, lr=lr, **{key: value for key, value in options.items() if key not in foreign})


def fusible(parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> bool:
    """Whether torch has a fused step for all of these parameters, or groups of parameters."""
    groups = (entry["params"] if isinstance(entry, dict) else [entry] for entry in parameters)
    members = [parameter for group in groups for parameter in group]
    return all(parameter.device.type in FUSED and parameter.is_floating_point() for parameter in members)


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
