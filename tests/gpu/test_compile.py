"""What is compiled on a GPU: a training with --compile, attention of large blocks, the sampler's step."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from lvt import generate_codes
from lvt.layers import LARGE_BLOCK, BlockLocalAttention
from tests.flow_pred.tiny import RandomClips, tiny_recipe
from tests.lvt.test_generate import random_model
from training import TrainSettings, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="kernels need a C compiler"),
]


def test_a_compiled_training_has_the_losses_of_a_plain_one(tmp_path):
    """The compiled networks of two steps end near the others."""
    losses = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = TrainSettings(run_dir=tmp_path / name, steps=2, batch_size=2, device="cuda", compile=compiled)
        losses[name] = train(tiny_recipe("river"), RandomClips(), settings, {"model": {}}, RandomClips()).metrics
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_large_blocks(causal, gpu):
    """The kernel that computes its relative positions gives the values and gradients of the one that is given them."""
    torch.manual_seed(0)
    block = (1, 32, 32)
    assert torch.tensor(block).prod() >= LARGE_BLOCK
    layer = BlockLocalAttention(64, 2, 32, block, causal).to(gpu)
    with torch.no_grad():
        for bank in (layer.dt_bank, layer.dh_bank, layer.dw_bank):
            bank.normal_()
    x = torch.randn(2, 1, 32, 32, 64, device=gpu)
    found = {}
    for kind in ("sdpa", "auto"):  # auto takes the kernel for a block of this size
        layer.attention = kind
        layer.zero_grad()
        out = layer(x)
        out.square().mean().backward()
        found[kind] = [out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]
    for ours, expected in zip(found["auto"], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_the_compiled_sampler_draws_the_same_codes(gpu):
    """One graph for all positions gives the codes of the step that is not compiled."""
    model, size = random_model("spatial")
    codes = torch.randint(11, (2, 2, *size), generator=torch.Generator().manual_seed(2)).to(gpu)
    draw = partial(generate_codes, model.to(gpu), codes, size[0] - 1, greedy=True)
    assert torch.equal(draw(compiled=True), draw())
