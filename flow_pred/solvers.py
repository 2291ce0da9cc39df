"""Fixed-step solvers of ordinary differential equations dx/ds = velocity(x, s)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from videodata.errors import UserError

Velocity = Callable[[Tensor, float], Tensor]


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
