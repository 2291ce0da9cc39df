"""The two recipes: the contract of all models, the terms, and who learns from what."""

import copy

import pytest
import torch
import torch.nn.functional as F

from evaluation.codebook_usage import CodebookUsage
from losses.adversarial import generator_loss
from tests.contract import ModelContract
from tests.vqgan.tiny import TINY_LDM, Stripes, stage1, stage2, tiny_model
from training.randomness import SampleNoise
from training.recipe import Step
from videodata.errors import UserError
from vqgan import LDMVQModel
from vqgan.config import Objective
from vqgan.model import Reconstruction
from vqgan.train import ReconstructionRecipe, reconstruction_error


class TestStage1(ModelContract):
    checkpointing_override = {"checkpointing": True}
    tolerance = 1e-5  # the codebook holds sums over all latents of a code

    def build_recipe(self, **overrides):
        return stage1(**overrides)

    def dataset(self):
        return Stripes()


class TestStage1WithMuon(TestStage1):
    def build_recipe(self, **overrides):
        return stage1(optimizer="muon", **overrides)


class TestStage2(TestStage1):
    def build_recipe(self, **overrides):
        return stage2(**overrides)


class TestStage1OfLDM(TestStage1):
    def build_recipe(self, **overrides):
        return stage1(ldm=True, **overrides)


class TestStage2OfLDM(TestStage1):
    def build_recipe(self, **overrides):
        return stage2(ldm=True, **overrides)


def batch_and_step(index, count=4):
    frames = torch.stack([Stripes()[number] for number in range(count)])
    return frames, Step(index, 10, SampleNoise(0, range(count)), torch.device("cpu"))


def run_step(recipe, index=5):
    """Losses of all optimisers in one step, with each phase's gradients alone, as the loop does it."""
    frames, step = batch_and_step(index)
    optimizers = list(recipe.optimizers.values())
    owned = [{p for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    items = recipe.losses(frames, step)
    found = []
    for mine in owned:
        for parameter in set().union(*owned):
            parameter.requires_grad_(parameter in mine)
        losses = next(items)
        losses.total.backward()
        found.append(losses)
    return found


def test_stage_1_is_reconstruction_and_commitment():
    """The total is the mean squared error of [0, 1] pixels plus the quantiser's loss, and nothing else."""
    (losses,) = run_step(stage1())
    terms = {name: value.item() for name, value in losses.terms.items()}
    assert 0 < terms.pop("code_usage") <= 1  # of the log alone
    assert set(terms) == {"reconstruction", "quantizer"}
    assert losses.total.item() == pytest.approx(sum(terms.values()))


def test_perceptual_and_adversarial_weights_are_honoured(monkeypatch):
    """Each weight multiplies its own term in the total."""
    for perceptual, adversarial in ((0.1, 0.1), (0.7, 0.1), (0.1, 0.9)):
        recipe = stage2(perceptual_weight=perceptual, adv_weight=adversarial, adaptive_weight=False)
        recipe.perceptual = lambda x, y: (x - y).abs().mean(dim=(1, 2, 3))
        generator, _ = run_step(recipe)
        terms = {name: value.item() for name, value in generator.terms.items()}
        assert terms["adversarial_weight"] == pytest.approx(adversarial)
        expected = terms["reconstruction"] + terms["quantizer"] + perceptual * terms["perceptual"]
        assert generator.total.item() == pytest.approx(expected + adversarial * terms["adversarial"], rel=1e-5)


def test_weight_zero_needs_no_weights(monkeypatch):
    """With perceptual weight 0 nothing looks for the perceptual network."""
    monkeypatch.setattr("losses.weights.find_weights", lambda *_, **__: pytest.fail("looked for weights"))
    monkeypatch.setattr("losses.perceptual.find_weights", lambda *_, **__: pytest.fail("looked for weights"))
    recipe = stage1()
    run_step(recipe)
    recipe.evaluate(*batch_and_step(0))


def test_each_network_learns_from_its_own_loss():
    """The generator's phase leaves the discriminator without gradient, and the other way round."""
    recipe = stage2()
    frames, step = batch_and_step(5)
    items = recipe.losses(frames, step)
    recipe.discriminator.requires_grad_(False)
    next(items).total.backward()
    assert all(parameter.grad is None for parameter in recipe.discriminator.parameters())
    recipe.discriminator.requires_grad_(True)
    recipe.model.zero_grad()
    next(items).total.backward()
    assert all(parameter.grad is None for parameter in recipe.model.parameters())
    assert all(parameter.grad is not None for parameter in recipe.discriminator.parameters())


def test_one_generator_pass_and_one_codebook_update_per_step(monkeypatch):
    """A step of stage 2 runs the generator once and moves the codebook exactly as one pass does."""
    recipe = stage2()
    once = copy.deepcopy(recipe.model)
    calls = []
    recipe.model.register_forward_hook(lambda *_: calls.append(1))
    run_step(recipe)
    frames, _ = batch_and_step(5)
    once(frames)
    assert len(calls) == 1
    assert torch.equal(recipe.model.quantizer.codebook, once.quantizer.codebook)


def test_adaptive_weight_is_the_ratio_of_gradients():
    """The weight equals |grad of reconstruction| / |grad of adversarial| at the last layer, times adv_weight."""
    recipe = stage2(adv_weight=0.5)
    model, discriminator = copy.deepcopy(recipe.model), copy.deepcopy(recipe.discriminator)
    frames, _ = batch_and_step(5)
    out = model(frames)
    last = model.decoder.output.weight
    error = F.mse_loss(out.frames / 2, frames / 2)
    (first,) = torch.autograd.grad(error, last, retain_graph=True)
    (second,) = torch.autograd.grad(generator_loss(discriminator(out.frames)), last)
    generator, _ = run_step(recipe)
    expected = 0.5 * (first.norm() / (second.norm() + 1e-4)).clamp(max=10)
    assert generator.terms["adversarial_weight"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_discriminator_learns_before_the_generator_listens():
    """Before disc_start the generator's loss has no adversarial term, but the discriminator has its loss."""
    generator, discriminator = run_step(stage2(disc_start=8), index=5)
    assert "adversarial" not in generator.terms and discriminator.total.requires_grad
    objective = Objective(disc_start=10, disc_ramp=10)
    assert [objective.adversarial_share(step) for step in (9, 15, 40)] == [0.0, 0.5, 1.0]


def test_discriminator_rests_while_it_is_right_too_often():
    """Above disc_limit its phase has no loss, but its accuracy is still counted; below, it learns again."""
    recipe = stage2(disc_limit=0.8)
    frames, step = batch_and_step(5)
    recipe.networks["referee"].accuracy.fill_(0.95)
    _, resting = recipe.losses(frames, step)
    assert resting is None and recipe.networks["referee"].accuracy < 0.95
    recipe.networks["referee"].accuracy.fill_(0.5)
    _, learning = recipe.losses(frames, step)
    assert learning.total.requires_grad


def test_quantiser_starts_after_the_warm_up():
    """In the warm-up the decoder gets the latents; then the codebook starts among them, with the fast decay."""
    recipe = stage1()
    start = recipe.model.quantizer.codebook.clone()
    for index in range(2):
        run_step(recipe, index)
    assert torch.equal(recipe.model.quantizer.codebook, start) and not recipe.networks["reservoir"].used
    run_step(recipe, 2)
    assert recipe.networks["reservoir"].used and not torch.equal(recipe.model.quantizer.codebook, start)
    decays = [Objective(vq_warmup=2, decay_ramp=4).codebook_decay(step, 0.99) for step in (2, 4, 6, 100)]
    assert decays == pytest.approx([0.8, 0.895, 0.99, 0.99])


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_every_quantiser_trains(kind):
    """A step gives finite gradients to encoder and decoder with each kind of codebook, in and after the warm-up."""
    for index in (0, 5):
        recipe = stage1(kind)
        run_step(recipe, index)
        for network in (recipe.model.encoder, recipe.model.decoder):
            assert all(torch.isfinite(p.grad).all() for p in network.parameters())
            assert sum(float(p.grad.abs().sum()) for p in network.parameters()) > 0


def test_reconstruction_errors_are_of_unit_pixels():
    """Black against white is an error of 1, by either measure."""
    black, white = torch.full((2, 3, 4, 4), -1.0), torch.ones(2, 3, 4, 4)
    assert reconstruction_error(black, white, "mse").tolist() == reconstruction_error(black, white, "l1").tolist()
    assert reconstruction_error(black, white, "mse").tolist() == [1.0, 1.0]


def test_validation_counts_codes_over_the_whole_set():
    """`summarize` gives the usage of all batches since the last one."""
    recipe = stage1()
    recipe.model.eval()
    indices = []
    for start in (0, 4):
        frames = torch.stack([Stripes()[number] for number in range(start, start + 4)])
        with torch.no_grad():
            recipe.evaluate(frames, batch_and_step(0)[1])
            indices.append(recipe.model(frames).indices)
    used = len(torch.cat(indices).unique())
    assert recipe.summarize()["codes_used"] == used
    assert recipe.summarize() == {"codes_used": 0.0, "perplexity": 0.0}


def test_unknown_losses_are_one_line():
    """A mistyped loss names the known ones."""
    with pytest.raises(UserError, match="mse, l1"):
        Objective(recon="l2")
    with pytest.raises(UserError, match="hinge, bce"):
        Objective(gan_loss="wasserstein")
    with pytest.raises(UserError, match="unknown optimizer"):
        Objective(optimizer="sgd")


def test_ldm_and_vqgan_have_the_interface_of_the_recipes():
    """Both give the same kind of result from one call."""
    frames, _ = batch_and_step(0)
    for model in (tiny_model(), tiny_model(ldm=True)):
        out = model.train()(frames)
        assert out.frames.shape == frames.shape and out.indices.shape == (4, 8, 8) and out.loss.requires_grad


def test_a_collapsed_ldm_codebook_comes_back_to_life():
    """After a collapse to 3 of 128 codes, 90 % of a learned embedding are in use within 200 steps."""
    torch.manual_seed(0)
    model = LDMVQModel(TINY_LDM, 128, 4).train()
    recipe = ReconstructionRecipe(model, Objective(perceptual_weight=0.0, vq_warmup=0))
    embedding = model.quantize.embedding.weight
    with torch.no_grad():
        embedding.fill_(50.0)
        embedding[:3] = torch.randn(3, 4)
    usage = CodebookUsage(128)
    for index in range(200):
        latents = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            quantized = model.quantize.with_loss(latents)
        model.quantizer.seed = index
        recipe.revive(Reconstruction(latents, latents, quantized.indices, quantized.loss))
        if index == 0:
            assert len(quantized.indices.unique()) <= 3
        elif index >= 150:
            usage.update(quantized.indices)
    assert usage.used >= 0.9 * 128
