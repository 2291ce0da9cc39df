"""Solvers against closed-form solutions."""

import math

import pytest
import torch

from flow_pred import neural_sde, river
from flow_pred.neural_sde import BrownianPath
from training.randomness import SampleNoise


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_ode_solvers_converge_with_their_order(method, order):
    """Halving the step divides the error of dx/ds = s x by 2 to the order, with the documented evaluations."""
    calls = 0

    def velocity(x: torch.Tensor, s: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return s * x

    errors = []
    for steps in (8, 16):
        calls, times = 0, torch.linspace(0, 1, steps + 1).double().tolist()
        result = river.integrate(velocity, torch.ones(1, dtype=torch.float64), times, method)
        assert calls == steps * river.EVALUATIONS[method]
        errors.append(abs(result.item() - math.exp(0.5)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def geometric(method: str, steps: int, paths: int = 20_000) -> tuple[float, float]:
    """Mean and standard deviation of dX = 0.5 X dt + 0.3 X dW at t = 1 from X(0) = 1."""
    x, generator = torch.ones(paths, dtype=torch.float64), torch.Generator().manual_seed(0)
    for _ in range(steps):
        dw = torch.randn(paths, generator=generator, dtype=torch.float64) / math.sqrt(steps)
        x = neural_sde.METHODS[method](lambda x: 0.5 * x, lambda x: 0.3 * x, x, 1 / steps, dw)
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize(("method", "steps", "tolerance"), [("euler", 64, 0.02), ("heun", 8, 0.02)])
def test_sde_solvers_have_the_right_distribution(method, steps, tolerance):
    """Mean and spread of geometric Brownian motion; the two-stage solver needs an eighth of the steps."""
    mean, deviation = geometric(method, steps)
    assert mean == pytest.approx(math.exp(0.5), rel=tolerance)
    assert deviation == pytest.approx(math.exp(0.5) * math.sqrt(math.exp(0.09) - 1), rel=3 * tolerance)


def test_adaptive_steps_meet_their_tolerance_and_follow_the_path():
    """With additive noise the result is the path itself; a stiff sample takes its small steps alone."""
    noise = SampleNoise(0, range(3))
    path = BrownianPath(noise, (4,))
    solver = neural_sde.AdaptiveEuler(lambda x, rows: 0 * x, torch.ones_like, 1e-3)
    steps = torch.ones(3, dtype=torch.float64)
    end = solver.solve(torch.zeros(3, 4), 0.0, 1.0, steps, path)
    first, second = path.halves(torch.arange(3), torch.zeros(3).double(), torch.ones(3).double())
    torch.testing.assert_close(end, first + second, atol=1e-5, rtol=0)

    evaluations = torch.zeros(2)
    rates = torch.tensor([[-0.1], [-8.0]])

    def decay(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        evaluations[rows] += 1
        return rates[rows] * x

    solver = neural_sde.AdaptiveEuler(decay, None, 1e-3)
    end = solver.solve(torch.ones(2, 1), 0.0, 1.0, torch.ones(2, dtype=torch.float64), None)
    torch.testing.assert_close(end, rates.exp(), atol=5e-3, rtol=0)
    assert evaluations[1] > 4 * evaluations[0]


def test_a_brownian_path_has_the_right_covariance_and_never_changes():
    """Bridged values have the covariance min(s, t), and asking again gives the same."""
    path = BrownianPath(SampleNoise(0, [0]), (20_000,))
    row = torch.zeros(1, dtype=torch.long)
    first, second = path.halves(row, torch.tensor([0.0]).double(), torch.tensor([1.0]).double())
    again = path.halves(row, torch.tensor([0.0]).double(), torch.tensor([0.5]).double())
    torch.testing.assert_close(sum(again), first)
    assert first.var().item() == pytest.approx(0.5, rel=0.05)
    assert (first * second).mean().abs() < 0.02
