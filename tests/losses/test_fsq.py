"""FSQ: parity with the published quantiser, its auxiliary loss in chunks of tokens, residual stages."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from losses.fsq import FSQ, LARGEST_CHUNK
from tests.training.processes import launch
from videodata.errors import UserError

STEPS = (0, 500, 1000, 2000, 100_000)  # at which the fixture has the auxiliary loss


@pytest.fixture(scope="module")
def unit(fixtures):
    """Tensors of the fixture, and what its metadata say of each set of levels."""
    path = str(fixtures / "tokenizer3d" / "fsq_unit.safetensors")
    with safe_open(path, "pt") as file:
        sets = json.loads(file.metadata()["sets"])
    return load_file(path), sets


@pytest.mark.parametrize("name", ["s0", "s1", "s2", "s3", "s4"])
def test_codes_indices_and_gradients_are_the_published_ones(unit, name):
    tensors, sets = unit
    quantizer = FSQ(sets[name]["levels"])
    z = tensors[f"{name}.z"].requires_grad_()
    codes, indices = quantizer.quantize(z)
    assert quantizer.size == sets[name]["codebook"]
    assert indices.dtype == torch.int32
    assert torch.equal(indices, tensors[f"{name}.indices"])
    assert torch.equal(codes, tensors[f"{name}.codes"])
    (codes * tensors[f"{name}.grad_out"]).sum().backward()
    torch.testing.assert_close(z.grad, tensors[f"{name}.grad_z"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["s0", "s1", "s3", "s4"])
@pytest.mark.parametrize("chunk", [7, None])
def test_auxiliary_loss_and_its_gradient_are_the_published_ones(unit, name, chunk):
    tensors, sets = unit
    quantizer = FSQ(sets[name]["levels"])
    z = tensors[f"{name}.z"].requires_grad_()
    for step, expected in zip(STEPS, tensors[f"{name}.aux_loss"], strict=True):
        loss = quantizer.auxiliary_loss(z, step, chunk)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
        if step == 500:
            (gradient,) = torch.autograd.grad(loss, z)  # 1e-5: the original's logits, up to 6000, are float32
            torch.testing.assert_close(gradient, tensors[f"{name}.aux_grad_z_500"], rtol=1e-3, atol=1e-5)


def test_every_index_has_a_code_that_has_this_index():
    """All 262,144 of the largest published codebook."""
    quantizer = FSQ([8] * 6)
    every = torch.arange(quantizer.size, dtype=torch.int32)
    codes = quantizer.lookup(every)
    assert codes.shape == (quantizer.size, 6)
    assert len(codes.unique(dim=0)) == quantizer.size
    z = torch.atanh((codes * 4 + 0.5) / 3.5035) - torch.atanh(torch.tensor(0.5 / 3.5035))  # where the bound gives codes
    again, indices = quantizer.quantize(z)
    assert torch.equal(indices, every)
    assert torch.equal(again, codes)


def test_indices_do_not_depend_on_autocast():
    quantizer = FSQ([8] * 5)
    z = 2 * torch.randn(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        codes, indices = quantizer.quantize(z)
        auxiliary = quantizer.auxiliary_loss(z, 0)
    assert codes.dtype == auxiliary.dtype == torch.float32
    assert torch.equal(indices, quantizer.quantize(z)[1])
    assert torch.equal(auxiliary, quantizer.auxiliary_loss(z, 0))


class LargestTensor(TorchDispatchMode):
    """Counts the entries of the largest tensor that anything in the block makes."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, torch.Tensor):
                self.entries = max(self.entries, value.numel())
        return result


def test_no_tensor_has_a_row_of_all_codes_for_every_token():
    """Neither in quantising, nor in the loss and its backward pass."""
    quantizer = FSQ([8] * 6).eval()
    z = torch.randn(1, 6, 1, 8, 8, requires_grad=True, generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest, torch.no_grad():
        quantizer.quantize(z)
    assert largest.entries <= z.numel()
    with LargestTensor() as largest:
        quantizer.auxiliary_loss(z, 0).backward()
    assert quantizer.size < largest.entries <= LARGEST_CHUNK < quantizer.size * 64


def test_bounded_entropy_is_that_of_the_distances():
    """Against the definition, in double precision and with all probabilities at once."""
    levels = [5, 4, 3]
    quantizer = FSQ(levels, entropy="bounded", entropy_loss_weight=1.0, entropy_loss_annealing_steps=0)
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    loss = quantizer.auxiliary_loss(z, 0, chunk=3).double()
    tokens = (quantizer.bound(z.movedim(1, -1)) / torch.tensor([2, 2, 1])).double().reshape(-1, 3)
    grid = quantizer.lookup(torch.arange(60)).double()
    probability = (-100 * torch.cdist(tokens, grid).square()).softmax(dim=1)
    of_sample = torch.special.entr(probability).sum(dim=1).mean()
    of_codebook = torch.special.entr(probability.mean(dim=0)).sum()
    nearest = torch.cdist(tokens, grid).square().amin(dim=1).mean() / 3
    expected = of_sample - of_codebook + 0.25 * nearest
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def loss_and_gradient(parts: list[torch.Tensor], number: int | None = None) -> dict[str, torch.Tensor]:
    """The auxiliary loss of this process's part, or of all of them at once, and the gradient averaged as DDP does."""
    if number is None and torch.distributed.is_initialized():
        number = torch.distributed.get_rank()
    z = (torch.cat(parts) if number is None else parts[number]).clone().requires_grad_()
    scale = torch.ones((), requires_grad=True)
    loss = FSQ([5, 4]).auxiliary_loss(z * scale, 0)
    loss.backward()
    return {"loss": loss.detach(), "gradient": scale.grad}


def test_processes_share_one_mean_choice(tmp_path):
    """The mean of both losses and of both gradients is that of one process with the whole batch."""
    parts = list(torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0)).unbind())
    both = launch(loss_and_gradient, 2, tmp_path, parts)
    alone = loss_and_gradient(parts)
    for key in ("loss", "gradient"):
        torch.testing.assert_close((both[0][key] + both[1][key]) / 2, alone[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [[8, 8], [5, 4, 3]])
def test_each_residual_stage_divides_the_cells_of_the_one_before(levels):
    z = torch.randn(4, len(levels), 500, generator=torch.Generator().manual_seed(0))
    exact = FSQ(levels).bound(z.movedim(1, -1)) / (torch.tensor(levels) // 2)
    errors = []
    for stages in (1, 2, 3):
        quantizer = FSQ(levels, num_quantizers=stages)
        codes, indices = quantizer.quantize(z)
        assert indices.shape == ((4, 500, stages) if stages > 1 else (4, 500))
        assert torch.equal(quantizer.lookup(indices), codes)
        errors.append((codes.movedim(1, -1) - exact).abs().amax(dim=(0, 1)))
    for level, first, second, third in zip(levels, *errors, strict=True):
        assert float(second) < 1.1 * float(first) / level + 1e-3
        assert float(third) < 1.1 * float(second) / level + 1e-3
    assert torch.equal(indices[..., 0], FSQ(levels).quantize(z)[1])


def test_what_does_not_fit_is_one_line():
    for arguments in ({"levels": []}, {"levels": [8, 1]}, {"levels": [8] * 11}, {"levels": [8], "entropy": "some"}):
        with pytest.raises(UserError):
            FSQ(**arguments)
    with pytest.raises(UserError, match="another model"):
        FSQ([4, 4]).lookup(torch.tensor([[16]]))
    with pytest.raises(UserError, match="not finite"):
        FSQ([4, 4]).eval().quantize(torch.full((1, 2, 1), float("nan")))
