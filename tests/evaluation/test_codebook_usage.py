"""Usage of a codebook over a data set."""

import pytest
import torch

from evaluation.codebook_usage import CodebookUsage


def test_usage_counts_over_everything_it_is_shown():
    """Perplexity of codes used alike is their number, over all batches and not per batch."""
    usage = CodebookUsage(8)
    for code in range(4):
        usage.update(torch.full((2, 3), code))
    assert (usage.used, round(usage.perplexity, 9)) == (4, 4.0)
    with pytest.raises(ValueError):
        usage.update(torch.tensor([8]))
