"""Codes are drawn with the probabilities that the rule describes, and doubt is told where rounding could matter."""

import pytest
import torch
from torch.testing import assert_close

from lvt.sampling import SamplingRule, gumbel, gumbel_noise

LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5]])
RULES = [{}, {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.8, "temperature": 1.3}, {"top_k": 9, "top_p": 0.95}]


def drawn(rule, logits=LOGITS, count=20_000):
    """Shares of the codes in many draws, and the noise of the draws."""
    noise = gumbel_noise([0], ("test",), (count, logits.shape[1]))[0]
    return torch.bincount(rule.choose(logits.expand(count, -1), noise), minlength=logits.shape[1]) / count


def test_frequencies_follow_the_distribution():
    """Each code is drawn in proportion to its probability, within four standard deviations."""
    shares = (LOGITS[0] / 0.7).softmax(-1)
    deviation = (shares * (1 - shares) / 20_000).sqrt().max()
    assert_close(drawn(SamplingRule(temperature=0.7)), shares, atol=4 * float(deviation), rtol=0)


def test_top_k_and_top_p_keep_the_likeliest_codes():
    """top_k keeps so many codes; top_p keeps the fewest that reach the probability, at least one; in proportion."""
    shares = LOGITS.softmax(-1)[0]
    two = shares * torch.tensor([1.0, 0, 1, 0, 0])
    for rule in (SamplingRule(top_k=2), SamplingRule(top_p=float(shares[0]) + 0.01), SamplingRule(top_k=4, top_p=0.75)):
        found = drawn(rule)
        assert_close(found, two / two.sum(), atol=1.5e-2, rtol=0)
        assert int((found > 0).sum()) == 2
    for rule in (SamplingRule(top_p=1e-6), SamplingRule(top_k=1), SamplingRule(greedy=True)):
        assert drawn(rule).tolist() == [1, 0, 0, 0, 0]
    assert torch.equal(drawn(SamplingRule(top_k=5, top_p=1.0)), drawn(SamplingRule()))


def test_the_noise_is_finite_and_belongs_to_its_key():
    """float32 numbers in [0, 1) hold 0, and what is next to 1; a row is a function of its seed and the key alone."""
    ends = gumbel(torch.tensor([0.0, 1 - 2.0**-24]))
    assert ends.isfinite().all() and float(ends[1]) > 16 > 3 > -float(ends[0])
    rows = gumbel_noise([3, 4, 3], ("codes", 1), (5, 2))
    assert rows.shape == (3, 5, 2) and torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert torch.equal(gumbel_noise([4], ("codes", 1), (5, 2))[0], rows[1])
    assert not torch.equal(gumbel_noise([4], ("codes", 2), (5, 2))[0], rows[1])


@pytest.mark.parametrize("options", [*RULES, {"greedy": True}])
def test_what_is_not_in_doubt_never_tips_over(options):
    """Logits that are wrong by the error give the same code, or were in doubt; and few are."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4_000, 12, generator=generator) * 3
    noise = gumbel(torch.rand(4_000, 12, generator=generator))
    rule, error = SamplingRule(**options), torch.full((4_000, 1), 5e-3)
    codes, doubt = rule.draw(logits, noise, error)
    tipped = torch.zeros_like(doubt)
    for _ in range(4):
        wrong = logits + error * (2 * torch.rand(logits.shape, generator=generator) - 1)
        other, unsure = rule.draw(wrong, noise, error)
        tipped |= ((other != codes) & ~unsure) | (rule.choose(wrong, noise) != codes)
    assert tipped.any() and not (tipped & ~doubt).any()
    assert doubt.float().mean() < 0.03
    assert torch.equal(rule.choose(logits, noise)[~doubt], codes[~doubt])


def test_equal_logits_are_always_in_doubt():
    """Even where the error is next to nothing."""
    logits = torch.tensor([[1.0, 1.0, 0.0]])
    assert SamplingRule(greedy=True).draw(logits, torch.zeros(1, 3), torch.tensor([[1e-9]]))[1].tolist() == [True]
