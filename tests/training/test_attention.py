"""Attention by products of matrices where that is faster: the same numbers, gradients and dropout."""

import pytest
import torch
from torch import nn

from training import attention as subject
from training.attention import TransformerLayer, attention


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random numbers that take gradients."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def half(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def test_the_kernel_is_chosen_by_device_gradients_number_format_and_length(monkeypatch):
    """Products where bf16 gradients follow on a CPU, or those of a bias, and not of long sequences."""
    query = tokens(1, 2, 8, 4)
    assert not subject.by_products(query)
    assert subject.by_products(query, tokens(2, 8, 8)) and not subject.by_products(query, torch.zeros(2, 8, 8))
    assert subject.by_products(query.bfloat16())
    with half():
        assert subject.by_products(query)
        assert not subject.by_products(query.to("meta"))
        with torch.no_grad():
            assert not subject.by_products(query)
        monkeypatch.setattr(subject, "LONGEST", 7)
        assert not subject.by_products(query)


@pytest.mark.parametrize("biased", [False, True])
def test_both_kernels_give_the_same_values_and_gradients(monkeypatch, biased):
    """Up to the rounding of bf16."""
    bias = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(9)) if biased else None
    results = []
    for longest in (0, 512):
        monkeypatch.setattr(subject, "LONGEST", longest)
        query, key, value = (tokens(3, 2, 8, 4, seed=seed) for seed in range(3))
        with half():
            out = attention(query, key, value, None if bias is None else bias.bfloat16())
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        results.append([out.float(), query.grad, key.grad, value.grad])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


def test_dropout_takes_weights_and_keeps_their_sum_on_average():
    """With probability 0.5 half of the weights are gone and the others count twice."""
    query, value = torch.zeros(1, 1, 400, 4, requires_grad=True), torch.eye(400).expand(1, 1, 400, 400)
    torch.manual_seed(0)
    with half():
        weights = attention(query, query, value, dropout=0.5).float() * 400  # one row of weights per query
    assert set(weights.unique().round().tolist()) == {0.0, 2.0}
    assert abs(weights.mean().item() - 1) < 0.02


def test_the_layer_is_torchs_own_with_either_kernel(monkeypatch):
    """Its keys, its values in single precision to the last bit, and in half precision with both kernels."""
    torch.manual_seed(0)
    options = {"activation": nn.GELU(), "batch_first": True, "norm_first": True}
    own, theirs = TransformerLayer(16, 2, 32, 0.1).eval(), nn.TransformerEncoderLayer(16, 2, 32, 0.1, **options).eval()
    theirs.load_state_dict(own.state_dict())
    x = tokens(2, 9, 16)
    assert torch.equal(own(x), theirs(x))
    with half():
        by_products = own(x)
        monkeypatch.setattr(subject, "LONGEST", 0)
        torch.testing.assert_close(by_products, own(x), rtol=0.02, atol=0.02)
    with torch.no_grad():
        torch.testing.assert_close(own(x), theirs(x))
