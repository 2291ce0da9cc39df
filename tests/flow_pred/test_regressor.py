"""The network: parity with the original, its keys, and what it refuses."""

import pytest
import torch

from flow_pred import VectorFieldRegressor
from flow_pred.regressor import time_embedding
from tests.flow_pred.fixture_files import Fixture, key_list, regressor, shapes_of
from videodata.errors import UserError

TINY = {"state_size": 2, "state_res": (2, 3), "inner_dim": 16, "depth": 1, "mid_depth": 1}


@pytest.mark.parametrize("name", ["river_vfr_ln", "river_vfr_bn", "river_vfr_noref"])
def test_the_river_field_equals_the_original(fixtures, name):
    """Same weights and inputs give the same velocity, position code, time code and gradients."""
    fixture, network = Fixture(fixtures, name), regressor(fixtures, name)
    velocity = network(**fixture.inputs())
    torch.testing.assert_close(velocity, fixture["out.vectors"], atol=1e-5, rtol=0)
    position = network.position_encoding(*network.state_res).T.unflatten(1, network.state_res)
    torch.testing.assert_close(position[None], fixture["aux.position"])
    times = time_embedding(fixture["in.timestamps"], network.inner_dim)
    torch.testing.assert_close(times, fixture["aux.timestamp_embedding"], atol=1e-5, rtol=0)
    velocity.square().mean().backward()
    gradients = dict(network.named_parameters())
    for key, expected in fixture.under("grad.").items():
        torch.testing.assert_close(gradients[key].grad[: len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["nsde_f", "nsde_d", "nsde_g"])
def test_the_neural_sde_networks_equal_the_original(fixtures, name):
    """Flow, denoiser and diffusion give the original's values."""
    fixture = Fixture(fixtures, name)
    output = regressor(fixtures, name)(fixture["in.state"])
    torch.testing.assert_close(output, fixture["out.vectors"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("keys", "options", "parameters"),
    [
        ("river_vfr_kth", {}, 98_084_868),
        ("river_vfr_bair256", {"state_size": 8, "state_res": (16, 16), "out_norm": "bn"}, None),
        ("nsde_f_kth", {"role": "f", "num_input_frames": 4}, 98_087_940),
        ("nsde_d_kth", {"role": "d", "num_input_frames": 4}, 98_170_896),
    ],
)
def test_the_official_sizes_have_the_published_keys(fixtures, keys, options, parameters):
    """Keys, shapes and the number of parameters of the full-size networks."""
    size = {"state_size": 4, "state_res": (8, 8), "inner_dim": 768, "depth": 4, "mid_depth": 5}
    with torch.device("meta"):
        network = VectorFieldRegressor(**{**size, **options})
    assert shapes_of(network) == key_list(fixtures, keys)
    if parameters:
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_gradient_checkpointing_changes_no_gradient():
    """Recomputed blocks give the gradients of stored ones."""
    torch.manual_seed(0)
    network = VectorFieldRegressor(**TINY, num_input_frames=2, role="f", dropout=0.0)
    gradients = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        network(torch.ones(1, 4, 2, 3)).square().sum().backward()
        gradients.append(network.project_in[1].weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_wrong_settings_and_sizes_are_refused_with_one_line():
    """Unknown roles and heads, a missing frame count and maps of another size."""
    for wrong in ({"role": "x"}, {"out_norm": "gn"}, {"role": "f"}, {"inner_dim": 12}):
        with pytest.raises(UserError):
            VectorFieldRegressor(**{**TINY, **wrong})
    network = VectorFieldRegressor(**TINY, num_input_frames=2, role="f")
    with pytest.raises(UserError, match="state_res"):
        network(torch.zeros(1, 4, 3, 3))
