"""Which slices a training makes itself, that they are what a sampler of one pass makes, and whose noise they are of."""

import pytest
import torch

from lvt.files import build_transformer
from lvt.generate import generate_codes
from lvt.masked import hide
from lvt.own_context import own_share, slices_in_a_row, with_own_codes
from lvt.subscale import slice_of_position, take_contexts
from lvt.train import MaskedTransformerRecipe
from tests.lvt.test_generate import STRIDES
from tests.lvt.test_masked import masked_model
from tests.lvt.test_masked_training import NODE, SIZES
from tests.lvt.test_train import tiny
from training.randomness import SampleNoise
from training.recipe import Step
from videodata.errors import UserError


def random_codes(count, clip):
    """Codes of the models of `masked_model`."""
    return torch.randint(11, (count, 2, *clip), generator=torch.Generator().manual_seed(4))


def sure_model(name, **options):
    """One whose likeliest code is drawn whatever the noise."""
    model, clip = masked_model(name, {"STEPS": 1}, **options)
    for layer in model.ch_predictor.P:
        layer.weight.data.mul_(10_000)
        layer.bias.data.mul_(10_000)
    return model, clip


def test_slices_follow_each_other():
    """From any one on, each as often, and the first after the last."""
    useful = torch.arange(3, 9)
    index = slices_in_a_row(useful, 4, SampleNoise(0, range(3000)))
    assert index.shape == (3000, 4) and (index[:, 1:] - index[:, :-1]).unique().tolist() == [-5, 1]
    assert (index.flatten().bincount(minlength=9)[3:] / 12_000 - 1 / 6).abs().max() < 0.01


def test_own_codes_are_those_of_a_sampler_of_one_pass():
    """Frame after frame, from what was made before; what lies outside the slices, and the last of them, is true."""
    model, clip = sure_model("single-frame", N_PRIME=3)
    codes = random_codes(3, clip)
    index = torch.arange(3, 7).expand(3, -1)
    made = with_own_codes(model, codes, index, 1.0, SampleNoise(0, range(3)))
    sampled = generate_codes(model, codes, 3, seeds=range(3))
    assert torch.equal(made[:, :, :6], sampled[:, :, :6]) and torch.equal(made[:, :, 6:], codes[:, :, 6:])
    assert not torch.equal(made[:, :, 3:6], codes[:, :, 3:6])


@pytest.mark.parametrize("name", STRIDES)
def test_only_the_slices_that_are_named_change(name):
    """In a share of the clips, after the given frames."""
    model, clip = masked_model(name, N_PRIME=2)
    codes, useful = random_codes(40, clip), torch.arange(model.config.n_slices)[-3:]
    index = slices_in_a_row(useful, 3, SampleNoise(1, range(40)))
    made = with_own_codes(model, codes, index, 0.5, SampleNoise(0, range(40)))
    changed = (made != codes).any(1)  # (B, T, H, W)
    assert 10 < changed.flatten(1).any(1).sum() < 30 and not changed[:, :2].any()
    owner = slice_of_position(clip, model.config.stride)
    for row, numbers in zip(changed, index[:, :-1], strict=True):
        assert set(owner[row].tolist()) <= set(numbers.tolist())
    assert with_own_codes(model, codes, index, 0.0, SampleNoise(0, range(40))) is codes


def test_own_codes_belong_to_each_clip():
    """Whatever else is in the batch."""
    model, clip = masked_model("single-frame", N_PRIME=1)
    codes, index = random_codes(4, clip), torch.tensor([[2, 3, 4]]).expand(4, -1)
    together = with_own_codes(model, codes, index, 0.7, SampleNoise(5, [9, 8, 7, 6]))
    for row, position in enumerate([9, 8, 7, 6]):
        alone = with_own_codes(model, codes[row : row + 1], index[:1], 0.7, SampleNoise(5, [position]))
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together, codes)


def test_own_codes_are_seen_and_true_ones_are_the_target(monkeypatch):
    """The encoder gets what the model made; what is predicted and what is visible of a slice are the true codes."""
    found = {}

    def spy(model, codes, index, noise, past=None):
        found.update(codes=codes, index=index, past=past, hidden=hide(model, codes, index, noise, past))
        return found["hidden"]

    monkeypatch.setattr("lvt.train.hide", spy)
    model, clip = masked_model("single-frame", {"OWN_CONTEXT": 1.0, "CONTEXT_DROP": 0.0, "TOKEN_DROPOUT": 0.0})
    recipe = MaskedTransformerRecipe(model, tiny("VT_masked_tiny.yaml", {"SOLVER": {"SLICES_PER_CLIP": 3}}))
    codes = random_codes(2, clip)
    step = Step(60, 100, SampleNoise(0, range(2)), torch.device("cpu"))
    (losses,) = recipe.losses({"codes": codes, "class_index": torch.zeros(2)}, step, {"transformer": model})
    assert torch.isfinite(losses.total) and losses.total.requires_grad
    hidden, index = found["hidden"], found["index"].flatten()
    assert torch.equal(found["codes"], codes) and not torch.equal(found["past"], codes)
    past = found["past"].repeat_interleave(3, 0)
    assert torch.equal(hidden.context, take_contexts(past, model.config.stride, model.config.kernel, index))
    true = codes.repeat_interleave(3, 0)
    for row, number in enumerate(index.tolist()):
        assert torch.equal(hidden.targets[row, :, 0], true[row, :, number])
        assert torch.equal(hidden.codes[row, :, 0], true[row, :, number])


def test_the_share_grows_in_the_first_half():
    """And stays then."""
    assert [own_share(0.8, step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0.0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize("changes", [{f"{NODE}.STRIDE": [1, 1, 1]}, {"SOLVER.SLICES_PER_CLIP": 1}])
def test_own_context_needs_slices_in_a_row(changes):
    """A clip that is one slice has none, nor has a training of one slice."""
    config = tiny("VT_masked_tiny.yaml", SIZES, **{f"{NODE}.MASKED.OWN_CONTEXT": 0.5, **changes})
    recipe = MaskedTransformerRecipe(build_transformer(config), config)
    codes = torch.zeros(2, 2, 4, 8, 8, dtype=torch.int64)
    step = Step(0, 1, SampleNoise(0, range(2)), torch.device("cpu"))
    with pytest.raises(UserError, match=r"VT\.MASKED\.OWN_CONTEXT"):
        next(recipe.losses({"codes": codes, "class_index": torch.zeros(2)}, step, recipe.networks))
