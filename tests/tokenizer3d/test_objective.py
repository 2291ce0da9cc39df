"""The objective: equal to the published one where that computes, and silent before the discriminator starts."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from tests.vvae.parity_fixtures import made_up_weight
from tokenizer3d.objective import Objective, ObjectiveConfig, frames_of
from videodata.errors import UserError

REGULARIZERS = {"kl_loss": torch.tensor(1234.5), "aux_loss": torch.tensor(0.75), "indices": torch.zeros(3)}


@pytest.fixture(scope="module")
def stored(fixtures):
    """Tensors of the fixture, and its metadata."""
    path = str(fixtures / "tokenizer3d" / "loss_2d_io.safetensors")
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


@pytest.fixture
def game(stored):
    """The objective and the discriminator, in training mode, with the fixture's weights."""
    meta = stored[1]
    assert json.loads(meta["params"])["disc_weight"] == ObjectiveConfig.disc_weight
    discriminator = ObjectiveConfig().build_discriminator()
    running = ("running_mean", "running_var", "num_batches_tracked")
    weights = {
        key: made_up_weight(f"loss.discriminator.{key}", tuple(value.shape), int(meta["seed"]))
        for key, value in discriminator.state_dict().items()
        if not key.endswith(running)
    }
    discriminator.load_state_dict(weights, strict=False)
    return Objective(ObjectiveConfig()).train(), discriminator.train()


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found).detach().reshape(-1), expected, rtol=1e-4, atol=1e-6)


def generator_pass(game, tensors, step):
    """What the recipe does, with the fixture's perceptual distance: the mean squared difference of a frame."""
    objective, discriminator = game
    last_layer = tensors["last_layer"].clone().requires_grad_()
    x, made = tensors["x"], F.conv3d(tensors["feat"], last_layer)
    distance = (frames_of(x) - frames_of(made)).square().mean(dim=(1, 2, 3))
    nll, terms = objective(x, made, distance)
    total = nll + objective.regularization(REGULARIZERS)
    if objective.plays(step):
        share, added = objective.adversarial(nll, discriminator(objective.shown(made)), last_layer)
        total, terms = total + share, terms | added
    total.backward()
    return total, terms, last_layer.grad, made.detach()


@pytest.mark.parametrize(("tag", "logvar"), [("pre", 0.0), ("post", 0.0), ("post_lv", 3.0)])
def test_generator_and_discriminator_are_the_published_ones(stored, game, tag, logvar):
    tensors, objective, discriminator = stored[0], *game
    objective.logvar.data.fill_(logvar)
    close(objective.lecam.real, torch.zeros(1))
    step = ObjectiveConfig.disc_start - (tag == "pre")
    total, terms, gradient, made = generator_pass(game, tensors, step)
    close(total, tensors[f"{tag}.gen.total"])
    close(gradient, tensors[f"{tag}.gen.grad_last_layer"].flatten())
    close(objective.logvar.grad, tensors[f"{tag}.gen.grad_logvar"])
    # the original's rec_loss has the perceptual distance in it
    close(terms["rec_loss"] + terms["p_loss"], tensors[f"{tag}.gen.log.rec_loss"])
    for name in ("nll_loss", "p_loss", "logvar", *(("g_loss", "d_weight") if tag != "pre" else ())):
        close(terms[name], tensors[f"{tag}.gen.log.{name}"])
    if tag == "pre":
        return
    for call, x in (("disc1", tensors["x"]), ("disc2", 0.5 * tensors["x"])):
        discriminator.zero_grad()
        total, terms = objective.judged(discriminator(objective.shown(x)), discriminator(objective.shown(made)))
        total.backward()
        norm = torch.stack([p.grad.norm() for p in discriminator.parameters()]).norm()
        close(total, tensors[f"{tag}.{call}.total"])
        close(norm, tensors[f"{tag}.{call}.grad_norm"])
        close(torch.stack([objective.lecam.real, objective.lecam.fake]), tensors[f"{tag}.{call}.ema"])
        names = {"hinge_loss": "non_saturated_d_loss", **{n: n for n in ("lecam_loss", "logits_real", "logits_fake")}}
        for ours, theirs in names.items():
            close(terms[ours], tensors[f"{tag}.{call}.log.{theirs}"])


def test_logits_are_those_of_the_published_discriminator(stored, game):
    tensors, discriminator = stored[0], game[1]
    close(discriminator(frames_of(tensors["x"])), tensors["logits_train"].flatten())


def test_validation_does_not_move_the_means(game):
    """They are buffers that only a pass in training mode changes."""
    objective = game[0]
    objective.judged(torch.full((4,), 1.0), torch.full((4,), -1.0))
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    assert float(state["lecam.real"]) == pytest.approx(0.001)
    objective.eval().judged(torch.full((4,), 3.0), torch.full((4,), -3.0))
    assert all(torch.equal(value, state[key]) for key, value in objective.state_dict().items())
    other = Objective(ObjectiveConfig())
    other.load_state_dict(state)
    assert torch.equal(other.lecam.fake, objective.lecam.fake)


def test_what_cannot_be_is_one_line():
    for options in ({"pixel_loss": "l3"}, {"disc_type": "4d"}, {"generator_loss": "none"}, {"kl_weight": -1.0}):
        with pytest.raises(UserError):
            ObjectiveConfig(**options)
