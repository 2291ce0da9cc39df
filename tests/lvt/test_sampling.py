"""Codes are drawn with the probabilities that the rule describes."""

import torch
from torch.testing import assert_close

from lvt.cached_decoder import SamplingRule, inverse_cdf

LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5]])


def test_frequencies_follow_the_distribution():
    """Evenly spread numbers hit each code in proportion to its probability."""
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    rule = SamplingRule(temperature=0.7)
    shares = (LOGITS / 0.7).softmax(-1)
    drawn = rule.choose(LOGITS.expand(len(uniform), -1), uniform)
    assert_close(torch.bincount(drawn, minlength=5) / len(uniform), shares[0], atol=2e-5, rtol=0)


def test_top_k_and_top_p_keep_the_likeliest_codes():
    """top_k keeps so many codes; top_p keeps the fewest that reach the probability, at least one."""
    shares = LOGITS.softmax(-1)[0]
    assert (SamplingRule(top_k=2).probabilities(LOGITS)[0] > 0).tolist() == [True, False, True, False, False]
    kept = SamplingRule(top_p=float(shares[0]) + 0.01).probabilities(LOGITS)[0] > 0
    assert kept.tolist() == [True, False, True, False, False]
    assert (SamplingRule(top_p=1e-6).probabilities(LOGITS)[0] > 0).tolist() == [True] + [False] * 4


def test_the_last_possible_number_never_draws_an_impossible_code():
    """A threshold that rounding pushes to the end stays at the last code with any probability."""
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert inverse_cdf(weights, torch.tensor([1.0, 1.0])).tolist() == [1, 1]
    assert inverse_cdf(weights, torch.tensor([0.0, 0.0])).tolist() == [0, 1]
