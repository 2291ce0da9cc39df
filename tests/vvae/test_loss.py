"""The training objective: the original's numbers, and the order in which the discriminator joins."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from losses.adversarial import PatchGAN2D, PatchGAN3D, adaptive_weight, discriminator_loss, generator_loss
from tests.vvae.parity_fixtures import made_up_weight
from vvae.src.distributions import DiagonalGaussianDistribution
from vvae.src.modules.losses import LPIPSWithDiscriminator, LPIPSWithDiscriminator3D
from vvae.train import VVAERecipe

OBJECTIVES = {"2d": LPIPSWithDiscriminator, "3d": LPIPSWithDiscriminator3D}


class StoredDecoder(nn.Module):
    """Stands for the autoencoder: its reconstruction is one 1x1x1 convolution, its posterior is given."""

    def __init__(self, stored: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.last_layer = nn.Parameter(stored["last_layer"].clone())
        self.stored = stored

    def forward(self) -> tuple[torch.Tensor, DiagonalGaussianDistribution]:
        return F.conv3d(self.stored["feat"], self.last_layer), DiagonalGaussianDistribution(self.stored["moments"])


def stored_recipe(kind: str, fixtures, logvar: float | None = None) -> tuple[VVAERecipe, dict[str, torch.Tensor]]:
    """A recipe with the weights of a loss fixture; the perceptual distance is the squared error, as in the fixture."""
    path = str(fixtures / "vvae" / f"loss{kind}_io.safetensors")
    stored = load_file(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    logvar = float(stored["logvar"]) if logvar is None else logvar
    objective = OBJECTIVES[kind](disc_start=50001, kl_weight=0.01, disc_weight=0.5, logvar_init=logvar)
    recipe = VVAERecipe(StoredDecoder(stored), objective)
    recipe.perceptual = lambda x, y: (x - y).square().mean(dim=(1, 2, 3))
    state = recipe.bare["discriminator"].state_dict()
    for key, shape in json.loads(meta["keys"]).items():
        name = key.removeprefix("discriminator.")
        if key != "logvar" and "running" not in key and "tracked" not in key:
            assert tuple(state[name].shape) == tuple(shape)
            state[name] = made_up_weight(f"loss.{key}", tuple(shape), int(meta["seed"]))
    recipe.bare["discriminator"].load_state_dict(state)
    return recipe, stored


def same(actual, expected, rtol=1e-4):
    torch.testing.assert_close(torch.as_tensor(actual).detach().reshape(-1), expected.reshape(-1), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_discriminators_give_the_stored_logits(kind, fixtures):
    """The patch discriminators agree with the original's, in training and in evaluation mode."""
    recipe, stored = stored_recipe(kind, fixtures)
    discriminator, shown = recipe.bare["discriminator"], recipe.objective.shown(stored["x"])
    assert isinstance(discriminator, PatchGAN3D if kind == "3d" else PatchGAN2D)
    with torch.no_grad():
        same(discriminator.train()(shown), stored["logits_real_map"])
        same(discriminator.eval()(shown), stored["logits_real_map_eval"])  # with the statistics of the first call


@pytest.mark.parametrize("kind", ["2d", "3d"])
@pytest.mark.parametrize(("phase", "logvar"), [("pre", None), ("post", None), ("post_logvar5", 5.0)])
def test_losses_and_gradients_are_the_stored_ones(kind, phase, logvar, fixtures):
    """Terms, adaptive weight, totals and gradients are the original's, before and after the discriminator starts."""
    recipe, stored = stored_recipe(kind, fixtures, logvar)
    autoencoder, video = recipe.bare["autoencoder"], stored["x"]
    reconstruction, posterior = autoencoder()
    total, terms = recipe.likelihood(video, reconstruction, posterior)
    if phase != "pre":
        share, added = recipe.adversarial(terms["nll_loss"], reconstruction)
        total, terms = total + share, terms | added
    same(total, stored[f"{phase}.opt0.total"])
    for name in ("nll_loss", "kl_loss", "rec_loss", *(("g_loss", "d_weight") if phase != "pre" else ())):
        same(terms[name], stored[f"{phase}.opt0.{name}"])
    same(torch.autograd.grad(total, autoencoder.last_layer)[0], stored[f"{phase}.opt0.grad_last_layer"], rtol=1e-3)
    if phase != "pre":
        losses = recipe.discriminator_losses(video, reconstruction.detach())
        same(losses.total, stored[f"{phase}.opt1.total"])
        same(losses.terms["logits_fake"], stored[f"{phase}.opt1.logits_fake"])
        gradients = torch.autograd.grad(losses.total, list(recipe.bare["discriminator"].parameters()))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        same(norm, stored[f"{phase}.opt1.disc_grad_norm"], rtol=1e-3)


def test_kl_is_one_number_per_clip(fixtures):
    """kl() sums over everything but the batch, also for latents with a time axis."""
    stored = load_file(str(fixtures / "vvae" / "loss3d_io.safetensors"))
    posterior = DiagonalGaussianDistribution(stored["moments"])
    same(posterior.kl(), stored["kl_per_batch"])


def test_adversarial_terms_are_those_of_the_formulas():
    """Hinge and vanilla losses of two logits, by hand."""
    real, fake = torch.tensor([0.5]), torch.tensor([-0.25])
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx(0.5 * (0.5 + 0.75))
    assert float(generator_loss(fake, "hinge")) == pytest.approx(0.25)
    parameter = torch.tensor(2.0, requires_grad=True)
    weight = adaptive_weight(3 * parameter, parameter, parameter)
    assert float(weight) == pytest.approx(3.0, rel=1e-3)
