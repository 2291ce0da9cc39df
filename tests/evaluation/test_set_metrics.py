"""Metrics of whole sets: bits per token, codebook usage, diversity; and window borders of clips."""

import math

import pytest
import torch

from evaluation.codebook import BitsPerToken, CodebookUsage
from evaluation.metrics import boundary_ratio
from evaluation.paired import Diversity
from training import distributed
from videodata.errors import UserError


def test_uniform_and_constant_codes():
    """A uniform histogram over K codes has perplexity K, a constant one 1; the number of tokens is told."""
    uniform = CodebookUsage(16).update(torch.arange(16).repeat(3)).scores()
    assert [score.mean for score in uniform] == pytest.approx([1.0, 16.0])
    assert uniform[0].notes == {"codes": 16, "codes_used": 16, "tokens": 48}
    constant = CodebookUsage(16).update(torch.full((5,), 3)).scores()
    assert [score.mean for score in constant] == pytest.approx([1 / 16, 1.0])
    assert CodebookUsage(4).perplexity == 0


def shared_counts():
    codes = torch.arange(8).view(2, 4)[distributed.rank()]  # the perplexity of each share is 4
    usage = CodebookUsage(8).update(codes).over_processes()
    bits = BitsPerToken().update(torch.full((1,), math.log(2) * (1 + distributed.rank())), 1).over_processes()
    return torch.tensor([usage.perplexity, usage.used, bits.value], dtype=torch.float64)


def test_counts_and_not_perplexities_are_summed_over_processes(tmp_path):
    """Two processes with four codes each know of eight; bits are the mean over the tokens of both."""
    for found in distributed.launch(shared_counts, 2, tmp_path):
        assert found.tolist() == pytest.approx([8.0, 8.0, 1.5])


def test_bits_of_uniform_predictions():
    """A model that gives each of V codes the same probability needs log2(V) bits per token, for clips of any length."""
    bits = BitsPerToken().update(torch.full((3,), 10 * math.log(32)), 10).update(torch.full((1,), math.log(2)), 1)
    assert bits.per_clip == pytest.approx([5, 5, 5, 1])
    score = bits.score(tokens_per_frame=64)
    assert score.mean == pytest.approx((150 + 1) / 31)
    assert score.notes == {"tokens": 31, "tokens_per_frame": 64}


def test_diversity_of_copies_is_0_and_of_constants_their_difference():
    """Three grey clips at 0, 0.2 and 0.6 of the range: pairs differ by 51, 102 and 153 levels. Given frames are out."""
    greys = torch.tensor([0.0, 0.2, 0.6]).view(3, 1, 1, 1, 1) * 2 - 1
    samples = greys.expand(3, 3, 4, 8, 8).clone()
    samples[:, :, 0] = 0
    diversity = Diversity(excluded_frames=1)
    diversity.update(samples[None])
    diversity.update(samples[:1].repeat(2, 1, 1, 1, 1)[None])
    score = diversity.scores()[0]
    assert score.definition == "diversity-rmse-8bit" and score.per_clip == pytest.approx([102.0, 0.0])
    with pytest.raises(UserError, match="--samples"):
        diversity.update(samples[None, :1])


def test_borders_of_windows_in_clips():
    """An error that changes by 2 levels at every fourth frame and by 1 elsewhere has a ratio of 2."""
    steps = torch.tensor([2.0 if t % 4 == 0 else 1.0 for t in range(1, 12)])
    error = torch.cat([torch.zeros(1), steps.cumsum(0)])
    original = torch.full((2, 12, 8, 8, 3), 100, dtype=torch.uint8)
    shifted = (original + error.view(1, 12, 1, 1, 1)).to(torch.uint8)
    assert boundary_ratio(original, shifted, 4) == pytest.approx([2.0, 2.0])
    assert all(map(math.isnan, boundary_ratio(original, shifted, 0)))
