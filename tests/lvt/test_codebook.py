"""Codebooks on a CPU: memory of their own, no explosion of unused codes, restarts, statistics."""

import pytest
import torch
from torch.testing import assert_close

from lvt.config import CodebookConfig, ConvNetConfig
from lvt.vqvae import Codebook, Encoder, Quantizer


def clustered(count, dim=4, clusters=3, seed=0):
    """Vectors around a few points."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=generator) * 0.5
    which = torch.randint(clusters, (count,), generator=generator)
    return centres[which] + 0.02 * torch.randn(count, dim, generator=generator)


def learn(book, steps=50):
    for step in range(steps):
        vectors = clustered(256, seed=0)[torch.randperm(256, generator=torch.Generator().manual_seed(step))]
        book.start_from(vectors)
        book.update(vectors, book.quantize(vectors))
    return vectors


def test_the_running_sum_has_its_own_memory():
    """An update that scaled the codebook through a shared buffer would diverge within ten steps."""
    book = Codebook(16, 4, ema=True, init_from_data=False)
    assert book.running_sum.data_ptr() != book.embedding.weight.data_ptr()
    vectors = clustered(64)
    indices = book.quantize(vectors)
    expected = (0.99 * book.embedding.weight + 0.01 * torch.zeros(16, 4).index_add_(0, indices, vectors)).clone()
    book.update(vectors, indices)
    assert_close(book.running_sum, expected)
    learn(book, steps=20)
    assert book.embedding.weight.isfinite().all()


def test_unused_codes_stay_finite_and_near_the_data():
    """Codes that no vector chooses, from the first step on, never leave the range of the data."""
    torch.manual_seed(0)
    vectors = clustered(256)
    book = Codebook(64, 4, ema=True)
    book.start_from(vectors)
    few = vectors[:8]  # from now on, most codes get nothing
    for _ in range(300):
        book.update(few, book.quantize(few))
    unused = torch.bincount(book.quantize(few), minlength=64) == 0
    assert unused.sum() > 40
    assert book.embedding.weight[unused].norm(dim=1).max() < 1.5 * vectors.norm(dim=1).max()


def test_codes_that_nobody_uses_are_restarted_from_the_data():
    """A code far from the data comes back as a vector of the batch; used codes stay."""
    torch.manual_seed(0)
    book = Codebook(8, 4, ema=True, restart_below=0.5)
    vectors = learn(book, steps=5)
    used = book.embedding.weight[book.quantize(vectors).unique()].clone()
    book.embedding.weight[0] = book.running_sum[0] = 100.0
    book.running_size[0] = 0.1
    book.update(vectors, book.quantize(vectors))
    assert (book.embedding.weight[0] - vectors).norm(dim=1).min() == 0
    assert torch.cdist(used, book.embedding.weight).min(1).values.max() < 0.1


def test_usage_counts_codes():
    """Evenly used codes have the perplexity of their number; the share counts those that occur at all."""
    quantizer = Quantizer(CodebookConfig(num=2, size=8, dim=4))
    codes = torch.stack([torch.arange(16) % 8, torch.arange(16) % 2], 1).view(16, 2, 1, 1)
    usage = quantizer.usage(codes)
    assert_close(usage["perplexity"], torch.tensor((8 + 2) / 2).double())
    assert_close(usage["code_usage"], torch.tensor((1 + 2 / 8) / 2).double())


@pytest.mark.parametrize(("options", "width"), [({}, 18), ({"kernel": 1}, 10), ({"kernel": 1, "strided_kernel": 2}, 4)])
def test_what_a_code_sees(options, width):
    """The pixels that reach one vector of the encoder; with patches, those that the code stands for alone."""
    torch.manual_seed(0)
    encoder = Encoder(ConvNetConfig(in_channels=3, nf=8, res_channels=8, **options))
    frames = torch.rand(1, 3, 40, 40, requires_grad=True)
    encoder(frames)[0, :, 5, 5].square().sum().backward()
    seen = frames.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == width
    if width == 4:
        assert (int(rows[0]), int(columns[0])) == (20, 20)
