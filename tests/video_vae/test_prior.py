"""The second stage: a Gaussian with the latents' moments, and a flow that knows what the Gaussian lacks, by class."""

import pytest
import torch
from torch.utils.data import TensorDataset

from scripts import train_video_vae_prior
from tests.video_vae.tiny import tiny_network
from training import TrainSettings, train
from training.randomness import SampleNoise
from video_vae.config import PriorConfig
from video_vae.prior import FlowBlock, LatentPrior, interpolate
from video_vae.sampler import Sampler
from video_vae.train_prior import PriorRecipe
from videodata.errors import UserError

LEVELS = [(2, 2, 3), (3, 1, 1)]  # 15 numbers
DRAWS = 4000


def prior_of(levels=LEVELS, **changes) -> LatentPrior:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "directions": 8, "class_dropout": 0.1, **changes}
    return LatentPrior(PriorConfig(levels, 3, (16, 16), **sizes))


def correlated(count: int, seed: int = 0) -> torch.Tensor:
    """Rows (count, 15) of four strong directions and some noise, far from 0 and of unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 15, generator=torch.Generator().manual_seed(9))
    rows = torch.randn(count, 4, generator=generator) @ mixing + 0.3 * torch.randn(count, 15, generator=generator)
    return rows * torch.linspace(0.1, 3, 15) + 5


def draws_of(prior: LatentPrior, count: int = DRAWS) -> torch.Tensor:
    levels = prior.split(prior.start(SampleNoise(0, range(count))))
    return torch.cat([level.flatten(1) for level in levels], dim=1)


def test_the_gaussian_has_the_moments_of_the_latents():
    """Mean and full covariance of its draws are those of the posteriors' means; their noise sets the units alone."""
    rows = correlated(DRAWS)
    prior = prior_of()
    prior.fit(rows, torch.full((15,), 0.04))
    drawn = draws_of(prior)
    expected = torch.cov(rows.T)
    scale = expected.diag().sqrt()
    assert (drawn.mean(0) - rows.mean(0)).div(scale).abs().max() < 0.08
    assert (torch.cov(drawn.T) - expected).div(scale[:, None] * scale).abs().max() < 0.12


def test_channels_of_noise_are_constants():
    """In the flow's units a channel that the encoder does not use stays near 0, as its mean does; the others do not."""
    rows = correlated(DRAWS)
    rows[:, :4] *= 1e-3
    prior = prior_of([(1, 2, 2), (11, 1, 1)])
    prior.fit(rows, torch.cat([torch.ones(4), torch.full((11,), 1e-3)]))
    known = prior.start(SampleNoise(0, range(DRAWS))).std(0)
    assert known[:4].max() < 0.02 and known[4:].min() > 0.9


def test_the_gaussian_of_few_clips_keeps_full_rank_and_the_variances():
    """Of 6 clips at most 3 directions are taken for real, and each number keeps its own variance."""
    rows = correlated(6)
    prior = prior_of()
    prior.fit(rows, torch.zeros(15))
    drawn = draws_of(prior)
    assert prior.directions.abs().sum(1).count_nonzero() <= 3
    assert torch.linalg.matrix_rank(torch.cov(drawn.T)) == 15
    assert torch.allclose(drawn.var(0), rows.var(0, unbiased=False), rtol=0.2)


def test_tokens_of_patches_hold_each_number_once():
    """A map of 4x4 is 4 tokens of 2x2 places; one that the patch does not divide has a token at each place."""
    prior = prior_of([(2, 4, 4), (3, 1, 1)], patch=2)
    x = torch.arange(70.0).view(2, 35)
    tokens = prior.tokens_of(x)
    assert [tuple(part.shape) for part in tokens] == [(2, 4, 8), (2, 1, 3)]
    assert tokens[0][0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert torch.equal(prior.numbers_of(tokens), x)


def test_neighbours_are_those_of_the_same_map():
    """A token reaches the eight around it in its map, wherever it lies, and no token of another map."""
    torch.manual_seed(0)
    block = FlowBlock(8, 2, [(4, 5), (2, 2)])
    x = torch.zeros(1, 24, 8, requires_grad=True)
    for token, expected in ((6, {0, 1, 2, 5, 6, 7, 10, 11, 12}), (21, {20, 21, 22, 23})):
        (reached,) = torch.autograd.grad(block.convolved(x)[0, token].sum(), x)
        assert set(reached[0].abs().sum(1).nonzero().flatten().tolist()) == expected


def test_a_flow_that_has_learnt_nothing_gives_the_gaussian():
    """And the path to the latents starts at the one end and arrives at the other."""
    prior = prior_of()
    prior.fit(correlated(100), torch.zeros(15))
    x = prior.start(SampleNoise(0, range(3)))
    assert torch.equal(prior.flow(x, steps=3), x)
    start, end = torch.randn(2, 15), torch.randn(2, 15)
    torch.testing.assert_close(interpolate(start, end, torch.zeros(2))[0], start)
    torch.testing.assert_close(interpolate(start, end, torch.ones(2))[0], end)
    (low, _), (high, _) = (interpolate(start, end, torch.full((2,), t)) for t in (0.499, 0.501))
    torch.testing.assert_close(
        (high - low) / 0.002, interpolate(start, end, torch.full((2,), 0.5))[1], atol=1e-3, rtol=0
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> LatentPrior:
    """A flow of latents with one of four signs in each of two classes: "left" has first number -1, "right" +1.

    The second number is -1 or +1 in both, so that no Gaussian is like them.
    """
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (512,), generator=generator)
    second = 2.0 * torch.randint(2, (512,), generator=generator) - 1
    means = torch.stack([2.0 * labels - 1, second], dim=1)
    prior = prior_of([(2, 1, 1)], directions=2, classes=["left", "right"], class_dropout=0.2)
    prior.fit(means, torch.full((2,), 0.0025))
    settings = TrainSettings(
        tmp_path_factory.mktemp("prior"), 400, batch_size=64, device="cpu", schedule="cosine", evaluate_every=1000
    )
    recipe = PriorRecipe(prior, tiny_network(), 3e-3, 0.0)
    recipe.pictures = lambda *_: {}  # there is no video VAE with such latents
    result = train(recipe, TensorDataset(means, labels), settings, {"model": {}}, TensorDataset(means, labels))
    assert result.metrics["explained"] > 0.3
    return prior.eval().requires_grad_(False)


def samples(prior: LatentPrior, kind: str = "flow", count: int = 200, guidance: float = 1.0, **asked) -> torch.Tensor:
    sampler = Sampler(tiny_network(), prior, kind, guidance=guidance)
    latents = sampler.draw(SampleNoise(0, range(count)), 3, (16, 16), labels=asked.get("labels", [None] * count))
    return latents.levels[0].flatten(1)


def test_the_flow_knows_what_the_gaussian_lacks(trained):
    """Nearly all of its samples lie at one of the four places, where few of the Gaussian's do."""
    shares = {
        kind: ((samples(trained, kind).abs() - 1).abs() < 0.5).all(1).float().mean() for kind in ("flow", "gaussian")
    }
    assert shares["flow"] > 0.7 > 0.4 > shares["gaussian"]


def test_the_class_that_is_asked_for_is_shown(trained):
    """Asked for a class, its place alone; asked for none, both; a stronger guidance does not lose it."""
    for guidance in (1.0, 2.0):
        left = samples(trained, labels=["left"] * 200, guidance=guidance)[:, 0]
        assert (left < 0).float().mean() > 0.95
    assert 0.3 < (samples(trained)[:, 0] < 0).float().mean() < 0.7


def test_guidance_1_is_the_plain_sampler_bit_for_bit(trained):
    """And each sample depends on its own noise alone."""
    x = trained.start(SampleNoise(0, range(4)))
    labels = torch.tensor([0, 1, 0, 2])
    plain = x
    for step in range(5):
        t = torch.full((4,), step / 5)
        middle = plain + trained(plain, t, labels) / 10
        plain = plain + trained(middle, torch.full((4,), (step + 0.5) / 5), labels) / 5
    assert torch.equal(trained.flow(x, 5, labels, guidance=1.0), plain)
    assert not torch.equal(trained.flow(x, 5, labels, guidance=1.5), plain)
    torch.testing.assert_close(samples(trained, count=7)[:3], samples(trained, count=3))


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"kind": "flow"}, ["lef"], "nearest is 'left'"),
        ({"kind": "gaussian", "guidance": 2.0}, [], "needs a flow"),
        ({"kind": "flow", "size": (32, 32)}, [], "knows clips of 16x16, not 32x32"),
        ({"kind": "other"}, [], "unknown prior"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(trained, changes, labels, message):
    """The line names what there is."""
    size = changes.pop("size", (16, 16))
    with pytest.raises(UserError, match=message):
        Sampler(tiny_network(), trained, **changes).draw(SampleNoise(0, [0]), 3, size, labels=labels)


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        (
            {"kind": "gaussian"},
            "left",
            "--class left needs a flow that was trained with classes; --prior gaussian draws",
        ),
        ({"kind": "flow", "guidance": 3.0}, None, "--guidance 3 leads to a class: name one"),
        ({"kind": "flow"}, "lef", "nearest is 'left'"),
    ],
)
def test_a_class_that_cannot_be_asked_for_is_one_line(trained, changes, name, message):
    """Instead of samples of no class, without a word."""
    with pytest.raises(UserError, match=message):
        Sampler(tiny_network(), trained, **changes).check_class(name)
    Sampler(tiny_network(), trained, "flow", guidance=3.0).check_class("left")
    Sampler(tiny_network(), trained, "gaussian").check_class(None)


def test_no_prior_is_added_to_a_file_of_weights():
    """It would be stored in the folder that the file is unpacked to, which goes with the process."""
    with pytest.raises(UserError, match="vae-digit.safetensors: is one file, to which no other prior can be added"):
        train_video_vae_prior.main(["--checkpoint", "vae-digit", "--steps", "2"])
