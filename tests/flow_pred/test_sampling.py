"""Sampling: parity with the original's runs, and what a sample may depend on."""

import pytest
import torch

from benchmarks.flow_pred_original import sample_as_the_original
from flow_pred import NeuralSDE, RiverPredictor, VectorFieldRegressor
from flow_pred.conv_backbone import ConvRegressor
from flow_pred.predict import CallCounter
from flow_pred.river import draw_conditions, path_times
from tests.flow_pred.fixture_files import Fixture, regressor
from videodata.errors import UserError

TINY = {"state_size": 2, "state_res": (2, 3), "inner_dim": 16, "depth": 1, "mid_depth": 1}
K = 3


def river() -> RiverPredictor:
    torch.manual_seed(0)
    return RiverPredictor(VectorFieldRegressor(**TINY))


def neural_sde(**options: object) -> NeuralSDE:
    torch.manual_seed(0)
    networks = [VectorFieldRegressor(**TINY, num_input_frames=K, role=role) for role in "fdg"]
    return NeuralSDE(*networks, num_input_frames=K, **options)


def context(batch: int = 3, frames: int = K) -> torch.Tensor:
    return torch.randn(batch, frames, 2, 2, 3, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("start", "warm_start"), [("cold", 0.0), ("warm", 0.25)])
def test_river_samples_equal_the_original(fixtures, start, warm_start):
    """With the original's noise and condition indices, on its grid, from noise and from a warm start."""
    fixture = Fixture(fixtures, "river_generate")
    predictor = RiverPredictor(regressor(fixtures, "river_vfr_ln"), sigma=fixture.metadata["sigma"])
    latents = predictor.sample(
        fixture["in.context_latents"],
        frames=2,
        steps=fixture.metadata[f"{start}_steps"],
        grid="reference",
        warm_start=warm_start,
        noise=fixture[f"in.{start}.noise"],
        condition_indices=fixture[f"in.{start}.context_indices"],
    )
    torch.testing.assert_close(latents, fixture[f"out.{start}.latents"], atol=1e-4, rtol=0)


def fixture_sde(fixtures, parts: str) -> NeuralSDE:
    networks = [regressor(fixtures, f"nsde_{role}") if role in parts else None for role in "fdg"]
    return NeuralSDE(*networks)


def test_neural_sde_fields_equal_the_original(fixtures):
    """Drift and diffusion of the context state, all of its frames."""
    fixture, sde = Fixture(fixtures, "nsde_generate"), fixture_sde(fixtures, "fdg")
    state = fixture["in.context_latents"]
    with torch.no_grad():
        torch.testing.assert_close(sde.drift(state, state).flatten(1), fixture["out.drift"], atol=1e-4, rtol=0)
        torch.testing.assert_close(sde.diffusion(state).flatten(1), fixture["out.diffusion"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("name", "parts"), [("euler_f", "f"), ("euler_fd", "fd"), ("em_fdg", "fdg")])
def test_neural_sde_fixed_steps_equal_the_original(fixtures, name, parts, steps):
    """Euler and Euler-Maruyama roll-outs with given Brownian increments."""
    fixture, sde = Fixture(fixtures, "nsde_generate"), fixture_sde(fixtures, parts)
    increments = fixture[f"in.dW.{steps}"] if "g" in parts else None
    latents = sde.sample(fixture["in.context_latents"], 2, steps=steps, increments=increments)
    torch.testing.assert_close(latents, fixture[f"out.{name}.{steps}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "parts"), [("adaptive_f", "f"), ("adaptive_fd_interp", "fd")])
def test_neural_sde_adaptive_steps_agree_with_the_original(fixtures, name, parts):
    """The original's step control on our networks gives its frames and its number of calls, and ours the same frames.

    Ours differs in between, where the original blends linearly; it must be nearer to the exact solution there.
    """
    fixture, sde = Fixture(fixtures, "nsde_generate"), fixture_sde(fixtures, parts)
    known, expected = fixture["in.context_latents"], fixture[f"out.{name}"]
    outputs = fixture.metadata["interp_resolution"] if name.endswith("interp") else 1
    counter = CallCounter(sde)
    original = sample_as_the_original(sde, known, 2, outputs)
    torch.testing.assert_close(original, expected, atol=1e-5, rtol=0)
    assert counter.drift / len(known) == fixture.metadata[f"{name}_drift_calls"]
    ours = sde.sample(known, 2, method="adaptive")
    torch.testing.assert_close(ours[:, 4:], expected[:, 3 + outputs :: outputs], atol=2e-2, rtol=0)
    if outputs > 1:
        dense = sde.sample(known, 2, method="adaptive", outputs_per_interval=outputs)
        exact = sde.sample(known, 2, steps=48, outputs_per_interval=outputs)
        assert (dense - exact).abs().max() < (expected - exact).abs().max()


@pytest.mark.parametrize(
    "sample",
    [
        lambda rows, where: river().sample(context()[rows], 3, steps=2, generator=seeded(), positions=where),
        lambda rows, where: river().sample(
            context()[rows], 2, grid="reference", steps=3, generator=seeded(), positions=where
        ),
        lambda rows, where: neural_sde().sample(context()[rows], 3, generator=seeded(), positions=where),
        lambda rows, where: neural_sde().sample(context()[rows], 2, method="heun", generator=seeded(), positions=where),
        lambda rows, where: neural_sde(diffusion_scale=0.3).sample(
            context()[rows], 2, method="adaptive", atol=3e-2, generator=seeded(), positions=where
        ),
    ],
    ids=["river", "river-reference", "sde-euler", "sde-heun", "sde-adaptive"],
)
def test_a_sample_does_not_change_with_its_batch(sample):
    """A sample alone equals the same sample among others, and other samples get other noise."""
    together = sample([0, 1, 2], None)
    torch.testing.assert_close(sample([1], [1]), together[1:2], atol=1e-5, rtol=1e-4)
    twice = sample([0, 0, 0], None)
    assert (twice[0, K:] - twice[1, K:]).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_samples_and_another_one_others():
    """Samples are a function of the generator's state; the training mode of the networks does not matter."""
    for predictor in (river(), neural_sde()):
        first = predictor.train().sample(context(), 2, generator=seeded())
        assert torch.equal(first, predictor.eval().sample(context(), 2, generator=seeded()))
        assert not torch.equal(first, predictor.sample(context(), 2, generator=seeded(6)))


def test_a_single_context_frame_is_enough_for_river():
    """One frame in, n + frames out, the context unchanged."""
    latents = river().sample(context(frames=1), 2, steps=1, generator=seeded())
    assert latents.shape == (3, 3, 2, 2, 3)
    assert torch.equal(latents[:, :1], context(frames=1))


def test_past_horizon_restricts_the_frames_that_are_looked_back_at():
    """Condition indices stay in max(0, L - horizon) .. L - 2, also where the context is shorter than the horizon."""
    uniform = torch.rand(50, 20)
    assert set(draw_conditions(uniform, 10, -1).unique().tolist()) == set(range(9))
    assert set(draw_conditions(uniform, 10, 3).unique().tolist()) == {7, 8}
    assert set(draw_conditions(uniform, 3, 5).unique().tolist()) == {0, 1}
    assert set(draw_conditions(uniform, 10, 1).unique().tolist()) == {8}
    far = context(frames=9)
    near = far.clone()
    near[:, :4] = 7.0  # beyond the horizon
    kwargs = {"steps": 2, "past_horizon": 5}
    a = river().sample(far, 1, generator=seeded(), **kwargs)
    assert torch.equal(a[:, -1], river().sample(near, 1, generator=seeded(), **kwargs)[:, -1])


def test_grids_have_the_documented_number_of_steps():
    """Uniform: intervals; reference: floor((1 - w) * steps) points, 396 evaluations by default."""
    times, method = path_times(None, "reference", 0.0, None)
    assert (len(times) - 1) * 4 == 396 and method == "rk4"
    assert len(path_times(12, "reference", 0.25, None)[0]) == 9
    assert len(path_times(10, "uniform", 0.5, None)[0]) == 11
    for wrong in ({"grid": "x"}, {"warm_start": 1.0}, {"steps": 1, "grid": "reference"}, {"method": "rk9"}):
        with pytest.raises(UserError):
            path_times(**{"steps": 2, "grid": "uniform", "warm_start": 0.0, "method": None, **wrong})


def test_interpolated_frames_are_steps_of_the_solver_and_not_blends():
    """Four outputs per interval are four Euler steps; the last one is the frame without interpolation."""
    sde = neural_sde(diffusion_scale=0.0)
    dense = sde.sample(context(), 2, steps=4, outputs_per_interval=4, generator=seeded())
    plain = sde.sample(context(), 2, steps=4, generator=seeded())
    assert dense.shape[1] == K + 8
    torch.testing.assert_close(dense[:, K + 3 :: 4], plain[:, K:])
    state = context()
    first = state + 0.25 * sde.eval().drift(state, state)
    torch.testing.assert_close(dense[:, K], first[:, -1], atol=1e-5, rtol=1e-4)
    blend = 0.5 * (state[:, -1] + plain[:, K])
    assert (dense[:, K + 1] - blend).abs().max() > 1e-3
    assert sde.sample(context(), 1, steps=2, outputs_per_interval=3).shape[1] == K + 3


def test_too_little_context_and_unknown_solvers_are_refused():
    """One line each."""
    with pytest.raises(UserError, match="at least 3"):
        neural_sde().sample(context(frames=2), 1)
    with pytest.raises(UserError, match="rk9"):
        neural_sde().sample(context(), 1, method="rk9")


def last_frames_river(prediction: str = "frame", classes: tuple[str, ...] = ()) -> RiverPredictor:
    torch.manual_seed(0)
    size = {key: value for key, value in TINY.items() if key != "mid_depth"}
    network = ConvRegressor(**size, condition="last", num_input_frames=K, classes=len(classes))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return RiverPredictor(network, prediction=prediction, classes=classes)


def test_river_of_the_last_frames_looks_at_no_others():
    """Older frames and the past horizon change nothing, each of the last K does; a shorter context is refused."""
    predictor = last_frames_river()
    known = context(frames=K + 1)
    expected = predictor.sample(known, 2, steps=1, method="euler", generator=seeded())
    for frame in range(K + 1):
        changed = known.clone()
        changed[:, frame] += 1
        found = predictor.sample(changed, 2, steps=1, method="euler", generator=seeded(), past_horizon=2)
        assert torch.equal(found[:, K + 1], expected[:, K + 1]) == (frame == 0), frame
    with pytest.raises(UserError, match="at least 3"):
        predictor.sample(known[:, :2], 1)


def test_one_euler_step_ends_on_the_predicted_frame():
    """The last frame plus the answer at time 0, wherever the noise was; further steps go on from there."""
    predictor, known = last_frames_river(), context()
    noise = torch.randn(1, 3, 2, 2, 3, generator=seeded(1))
    found = predictor.sample(known, 1, steps=1, method="euler", noise=noise)[:, -1]
    with torch.no_grad():
        answer = predictor.regressor.eval()(noise[0], known.flatten(1, 2), None, None, torch.zeros(3))
    torch.testing.assert_close(found, known[:, -1] + answer)
    four = predictor.sample(known, 1, steps=4, method="euler", noise=noise)[:, -1]
    assert torch.isfinite(four).all() and not torch.equal(four, found)


def test_guidance_1_is_the_plain_sampler_bit_for_bit():
    """It calls the network once; more guidance leads further away from what is said to no class, 0 says just that."""
    predictor, known = last_frames_river(classes=("a", "b")), context()
    torch.nn.init.normal_(predictor.regressor.class_code.table.weight)
    counter = CallCounter(predictor)

    def sampled(labels, guidance):
        before = counter.drift
        options = {"steps": 2, "method": "euler", "generator": seeded()}
        made = predictor.sample(known, 1, labels=labels, guidance=guidance, **options)[:, -1]
        return made, counter.drift - before

    a, none = torch.tensor([0, 0, 0]), torch.tensor([2, 2, 2])
    plain, calls = sampled(a, 1.0)
    guided, twice = sampled(a, 3.0)
    unasked, _ = sampled(None, 1.0)
    assert (calls, twice) == (6, 12)
    assert torch.equal(unasked, sampled(none, 1.0)[0]) and not torch.equal(plain, unasked)
    torch.testing.assert_close(sampled(a, 0.0)[0], unasked)
    assert (guided - unasked).abs().mean() > 1.5 * (plain - unasked).abs().mean()


def test_a_diffusion_scale_of_0_is_the_equation_without_noise():
    """The same frames as without the diffusion, and its network is not called."""
    noisy, still = neural_sde(), neural_sde()
    noisy.diffusion_scale, still.log_amplitude = 0.0, None
    counter = CallCounter(noisy)
    assert torch.equal(noisy.sample(context(), 2, generator=seeded()), still.sample(context(), 2, generator=seeded()))
    assert counter.total == 2 * counter.drift  # flow and denoiser
