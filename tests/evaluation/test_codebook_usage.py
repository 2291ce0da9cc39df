"""Usage of a codebook over a data set."""

import pytest
import torch

from evaluation.codebook import CodebookUsage, code_usage


def test_usage_counts_over_everything_it_is_shown():
    """Perplexity of codes used alike is their number, over all batches and not per batch."""
    usage = CodebookUsage(8)
    for code in range(4):
        usage.update(torch.full((2, 3), code))
    assert (usage.used, round(usage.perplexity, 9)) == (4, 4.0)
    with pytest.raises(ValueError):
        usage.update(torch.tensor([8]))


def test_usage_of_a_batch_is_a_share_of_what_it_could_use():
    """4 indices can use no more than 4 of 8 codes."""
    assert code_usage(torch.tensor([[0, 1], [1, 7]]), 8).item() == 3 / 4
    assert code_usage(torch.zeros(1000, dtype=torch.int64), 500).item() == pytest.approx(1 / 500)
