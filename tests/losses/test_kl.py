import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from losses.kl import free_bits, gaussian_kl, linear_ramp


def test_kl_equals_the_closed_form_of_torch():
    """Against N(0, 1) and against a given prior; one value per sample."""
    torch.manual_seed(0)
    mean, log_var, prior_mean, prior_log_var = torch.randn(4, 2, 3, 4, 5, dtype=torch.float64)
    posterior = Normal(mean, (log_var / 2).exp())
    standard = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).flatten(1).sum(1)
    assert torch.allclose(gaussian_kl(mean, log_var), standard)
    prior = Normal(prior_mean, (prior_log_var / 2).exp())
    expected = kl_divergence(posterior, prior).flatten(1).sum(1)
    assert torch.allclose(gaussian_kl(mean, log_var, prior_mean, prior_log_var), expected)


def test_kl_gradients_pass_gradcheck():
    """All four inputs have right gradients."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(gaussian_kl, inputs)
    assert torch.autograd.gradcheck(gaussian_kl, inputs[:2])


def test_kl_is_zero_at_the_prior_and_in_full_precision():
    """No divergence from itself; bfloat16 moments are widened."""
    assert torch.equal(gaussian_kl(torch.zeros(2, 4), torch.zeros(2, 4)), torch.zeros(2))
    assert gaussian_kl(torch.ones(2, 4).bfloat16(), torch.zeros(2, 4).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="prior"):
        gaussian_kl(torch.zeros(2, 4), torch.zeros(2, 4), prior_mean=torch.zeros(2, 4))


def test_free_bits_stop_the_gradient_below_the_bound():
    """Below the bound: the bound, no gradient. Above: untouched. Off at 0."""
    kl = torch.tensor([0.1, 5.0], requires_grad=True)
    bounded = free_bits(kl, bits=2.0)
    bounded.sum().backward()
    assert bounded.tolist() == pytest.approx([2 * math.log(2), 5.0])
    assert kl.grad.tolist() == [0.0, 1.0]
    assert free_bits(kl, bits=0.0) is kl


def test_linear_ramp():
    """0 before the start, linear after it, 1 at the end; a switch when the length is 0."""
    assert [linear_ramp(step, start=10, length=4) for step in (0, 9, 10, 12, 14, 99)] == [0, 0, 0, 0.5, 1, 1]
    assert [linear_ramp(step, start=10) for step in (9, 10)] == [0, 1]
