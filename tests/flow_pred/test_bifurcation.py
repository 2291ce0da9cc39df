"""The fork in the plane: parity with the original, and the whole method end to end."""

import argparse
import errno
import os

import pytest
import torch
from PIL import Image

from flow_pred import objectives
from flow_pred.bifurcation import (
    PlaneField,
    denoiser_loss,
    distance_to_track,
    draw_bifurcation,
    flow_loss,
    judge,
    track,
    train_bifurcation,
)
from flow_pred.config import BifurcationSettings
from flow_pred.neural_sde import log_diffusion
from tests.flow_pred.fixture_files import Fixture
from videodata.errors import UserError


def test_networks_losses_and_tracks_equal_the_original(fixtures):
    """Outputs of all three networks, all losses, and the two trajectories."""
    fixture = Fixture(fixtures, "toy2d")
    networks = {}
    for name in "fdg":
        networks[name] = PlaneField(fixture.metadata["hidden_dim"], fixture.metadata["num_layers"]).eval()
        networks[name].load_state_dict(fixture.under(f"sd.{name}."))
    x, noise, velocity = (fixture[f"in.{name}"] for name in ("x", "noise", "target_velocity"))
    close = {"atol": 1e-5, "rtol": 1e-5}
    with torch.no_grad():
        flow = networks["f"](x + noise)
        amplitude = log_diffusion(networks["g"](x + noise), fixture.metadata["logit"])
        torch.testing.assert_close(flow, fixture["out.flow"], **close)
        torch.testing.assert_close(networks["d"](x + noise), fixture["out.denoiser"], **close)
        torch.testing.assert_close(amplitude, fixture["out.log_diffusion"], **close)
        arguments = (x, noise, velocity)
        torch.testing.assert_close(flow_loss(networks["f"], *arguments), fixture["out.loss_flow_mse"][0], **close)
        torch.testing.assert_close(denoiser_loss(networks["d"], *arguments), fixture["out.loss_denoiser"][0], **close)
        delta = fixture.metadata["desingularization"]
        log_loss = objectives.flow_nll(flow, velocity, delta).mean() + torch.tensor(delta).log()
        torch.testing.assert_close(log_loss, fixture["out.loss_flow_log_mse"][0], **close)
        residual = velocity - networks["f"](x)  # the original evaluates f at clean and g at perturbed positions
        first, second = objectives.diffusion_reference(amplitude, residual, fixture["in.delta_t"][:, None])
        torch.testing.assert_close((first + second).mean(), fixture["out.loss_diffusion"][0], **close)
    # The original's solver cuts the corner of the track by up to 0.0022.
    torch.testing.assert_close(track(1), fixture["out.trajectory_up"], atol=2.3e-3, rtol=0)
    torch.testing.assert_close(track(-1), fixture["out.trajectory_down"], atol=2.3e-3, rtol=0)


def test_distances_are_those_from_the_y():
    """Zero on both branches, and the height above the straight part."""
    assert distance_to_track(torch.cat([track(1), track(-1)])).max() < 1e-5
    assert distance_to_track(torch.tensor([[2.0, 0.5]])).item() == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))])
def test_the_neural_sde_branches_and_stays_on_the_track(seed):
    """From scratch: all three networks take both branches and stay near them, without g all go to one side."""
    sde = train_bifurcation(BifurcationSettings(), seed)
    full = judge(sde.sample(256, torch.Generator().manual_seed(seed)))
    assert 0.2 <= full.up_fraction <= 0.8
    assert full.end_error < 0.5
    assert full.track_distance < 0.05 and full.track_distance_p99 < 0.2
    assert judge(sde.sample(8, torch.Generator().manual_seed(seed), parts="fd")).up_fraction in (0.0, 1.0)


def test_the_picture_is_whole_or_absent(tmp_path, monkeypatch):
    """A name that is no PNG's is refused before the training; one that cannot be written leaves the one before."""
    place = tmp_path / "trajectories.png"
    arguments = argparse.Namespace(out=place, seed=0, steps=1, trajectories=2, substeps=1)
    with pytest.raises(UserError, match=r"a.jpg: the picture is a PNG"):
        draw_bifurcation(argparse.Namespace(**{**vars(arguments), "out": tmp_path / "a.jpg"}))
    draw_bifurcation(arguments)
    before = place.read_bytes()
    assert before.startswith(b"\x89PNG")

    def torn(image, file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space"):
        draw_bifurcation(arguments)
    assert place.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["trajectories.png"]
