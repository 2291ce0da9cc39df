"""Targets and losses: parity with the original, and the properties that the closed forms and the likelihood have."""

import pytest
import torch

from flow_pred import train
from flow_pred.latents import pick_frames
from flow_pred.neural_sde import log_diffusion
from flow_pred.river import river_path
from tests.flow_pred.fixture_files import Fixture, regressor


def gradient_norms(network: torch.nn.Module) -> dict[str, float]:
    return {
        name: float(parameter.grad.norm())
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def check_gradients(network: torch.nn.Module, expected: dict[str, float]) -> None:
    norms = gradient_norms(network)
    for name, value in expected.items():
        assert norms[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_the_river_loss_equals_the_original(fixtures):
    """Target, prediction, loss and the gradient norm of every parameter for injected draws."""
    fixture, network = Fixture(fixtures, "river_loss"), regressor(fixtures, "river_vfr_ln")
    draw = train.RiverDraw(
        *(fixture[f"in.{name}"] for name in ("target_index", "condition_index", "noise", "timestamps"))
    )
    target, reference, condition = pick_frames(fixture["in.latents"], draw.frames).unbind(1)
    x, velocity = river_path(target, draw.noise, draw.time, fixture.metadata["sigma"])
    predicted = network(x, reference, condition, draw.distance, draw.time)
    loss = train.mean_square(predicted, velocity).mean()
    torch.testing.assert_close(velocity, fixture["out.target_vectors"], atol=1e-4, rtol=0)
    torch.testing.assert_close(predicted, fixture["out.predicted_vectors"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, fixture["out.loss"][0], rtol=1e-5, atol=0)
    loss.backward()
    check_gradients(network, fixture.metadata["grad_norms"])


@pytest.mark.parametrize("component", ["f_nll", "f_mse", "d", "g"])
def test_the_neural_sde_losses_equal_the_original(fixtures, component):
    """Target, prediction, loss, logged error and gradients of all four losses for injected draws."""
    fixture = Fixture(fixtures, "nsde_loss")
    network = regressor(fixtures, f"nsde_{component[0]}")
    draw = train.StateDraw(fixture["in.target_index"], fixture["in.timestamps"], fixture["in.unit_noise"])
    latents = pick_frames(fixture["in.latents"], draw.frames(4))
    goal = train.state_target(latents, draw, fixture.metadata["sigma"], fixture.metadata["noise_std"])
    predicted = network(goal.state)
    if component == "f_nll":
        target, loss, logged = goal.velocity, train.flow_nll(predicted, goal.velocity), None
    elif component == "f_mse":
        target, loss, logged = goal.velocity, train.mean_square(predicted, goal.velocity), None
    elif component == "d":
        target, loss, logged = -goal.perturbation, train.mean_square(predicted, -goal.perturbation), None
    else:
        with torch.no_grad():
            residual = goal.velocity - regressor(fixtures, "nsde_f")(goal.state)
        first, second = train.diffusion_reference(log_diffusion(predicted, fixture.metadata["logit_range"]), residual)
        target, loss, logged = residual.square(), first + second, first
    logged = train.mean_square(predicted, target) if logged is None else logged
    torch.testing.assert_close(target, fixture[f"out.{component}.target"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss.mean(), fixture[f"out.{component}.loss"][0], rtol=1e-4, atol=0)
    torch.testing.assert_close(logged.mean(), fixture[f"out.{component}.logged_mse"][0], rtol=1e-4, atol=0)
    loss.mean().backward()
    check_gradients(network, fixture.metadata[f"grad_norms_{component}"])


def test_closed_form_targets_stay_exact_in_bfloat16():
    """Near the end of the path, where the quotient form breaks, the target is finite and right to bfloat16."""
    latents, noise = torch.randn(2, 64, 4, 8, 8, dtype=torch.bfloat16).unbind(0)
    time = torch.linspace(0.9, 1, 64).bfloat16()
    _, velocity = river_path(latents, noise, time, 1e-7)
    assert (velocity.float() - (latents.float() - noise.float())).abs().max() < 0.05


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_likelihood_finds_the_noise_that_the_reference_loss_underestimates(sigma):
    """Minimiser over a constant amplitude for Gaussian residuals: sigma, and about half of it."""
    residual = sigma * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    candidates = torch.linspace(-6, 1, 281)[:, None]
    likelihood = torch.cat([train.diffusion_nll(c[None], residual) for c in candidates])
    reference = torch.cat([sum(train.diffusion_reference(c[None], residual)) for c in candidates])
    assert candidates[likelihood.argmin()].exp().item() == pytest.approx(sigma, rel=0.04)
    assert 0.5 < candidates[reference.argmin()].exp().item() / sigma < 0.65


def test_draws_cover_exactly_the_frames_that_exist():
    """Targets, conditions and states never leave the clip, and every frame is used."""
    from training.randomness import SampleNoise

    noise = SampleNoise(0, range(300))
    river = train.draw_river(noise, 5, (1, 1, 1))
    assert set(river.target.tolist()) == {2, 3, 4}
    assert set(river.distance.tolist()) == {1, 2, 3} and river.condition.min() == 0
    state = train.draw_state(noise, 6, 4, (1, 1, 1))
    assert set(state.target.tolist()) == {4, 5}
    assert state.frames(4).min() == 0 and state.frames(4).max() == 5
