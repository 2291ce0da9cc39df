"""The optimiser for matrices."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training import TrainSettings, optim, state
from training.distributed import check_sharding
from training.optim import Muon, orthogonalized
from videodata.errors import UserError


def test_singular_values_are_brought_near_1():
    """Tall or wide, badly scaled or not: all directions of the update are about equally long."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 8), (5, 30), (40, 6)):
        matrix = torch.randn(*shape, generator=generator) * torch.logspace(-1, 1, shape[1])
        values = torch.linalg.svdvals(orthogonalized(matrix))
        assert values.min() > 0.5 and values.max() < 1.3


def test_vectors_and_convolutions_follow_adamw():
    """Everything that is no matrix moves exactly as torch's AdamW moves it."""
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizers = Muon(ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings)
    for step in range(5):
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(torch.full((1, 2, 4, 4), 0.1 * step)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_matrices_move_like_adamw_in_size():
    """The root mean square of a step is 0.2 x learning rate x matrix_rate, whatever the shape and the gradient."""
    for shape in ((16, 16), (8, 64)):
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([weight], lr=0.1, weight_decay=0.0, matrix_rate=2.0)
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
        optimizer.step()
        assert 0.7 < weight.square().mean().sqrt().item() / (0.2 * 0.1 * 2.0) < 1.2


def test_kernels_are_matrices_where_asked_and_tables_are_not():
    """A kernel moves as its (out, in * taps) matrix does; a codebook moves as under AdamW."""
    gradient = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    kernel, matrix = nn.Parameter(torch.zeros(6, 3, 3, 3)), nn.Parameter(torch.zeros(6, 27))
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    codebook = nn.Parameter(torch.zeros(4, 2))
    codebook.grad = torch.ones(4, 2)
    Muon([kernel, matrix, codebook], lr=0.1, convolutions=True, tables=[codebook]).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    torch.testing.assert_close(codebook, torch.full((4, 2), -0.1))


def test_sharding_is_refused():
    """A piece of a matrix has other singular values than the matrix."""
    weight = torch.nn.Parameter(torch.eye(2))
    recipe = SimpleNamespace(optimizers={"net": Muon([weight], lr=0.1)})
    with pytest.raises(UserError, match="use another optimizer"):
        check_sharding(SimpleNamespace(precision="fp32"), recipe)


def test_stacked_heads_are_one_matrix():
    """A stack (heads, in, width) moves as the matrix (in, heads * width) that projects to all heads."""
    gradient = torch.randn(4, 24, 6, generator=torch.Generator().manual_seed(1))
    stack, matrix = nn.Parameter(torch.zeros(4, 24, 6)), nn.Parameter(torch.zeros(24, 24))
    stack.grad, matrix.grad = gradient, gradient.transpose(0, 1).flatten(1)
    Muon([stack, matrix], lr=0.1, convolutions=True, heads=[stack]).step()
    torch.testing.assert_close(stack.transpose(0, 1).flatten(1), matrix)


def test_matrices_of_a_shape_move_together_as_alone(monkeypatch):
    """Stacked, in parts of a stack, or one by one: the same steps, also where a parameter has no gradient for once."""
    results = []
    for stacked in (1, 2 * 24, optim.STACKED):
        monkeypatch.setattr(optim, "STACKED", stacked)
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.zeros(shape)) for shape in ((6, 4), (4, 6), (6, 4), (6, 4), (6, 4), (5,))]
        optimizer = Muon(weights, lr=0.1)
        for step in range(3):
            for number, weight in enumerate(weights):
                gradient = torch.randn(weight.shape, generator=generator)
                weight.grad = None if (step, number) == (1, 2) else gradient
            optimizer.step()
        results.append([weight.detach() for weight in weights])
    for other in results[:2]:
        torch.testing.assert_close(other, results[2])


def test_the_run_decides_on_half_precision_unless_it_was_decided(tmp_path):
    """Under bf16 matrices are orthogonalised in it, and not otherwise."""
    for asked, precision, found in ((None, "bf16", True), (None, "fp32", False), (False, "bf16", False)):
        optimizer = Muon(nn.Linear(2, 2).parameters(), lr=0.1, half=asked)
        recipe = SimpleNamespace(networks={}, optimizers={"net": optimizer}, frozen=[], ema_networks=())
        state.build_state(recipe, TrainSettings(tmp_path, 1, precision=precision), torch.device("cpu"))
        assert optimizer.half is found


def test_half_precision_moves_the_same_way():
    """All matrices of a shape at once in bfloat16: the same directions, to a few parts in a hundred."""
    torch.manual_seed(1)
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in ((16, 8), (8, 8), (16, 8))] for _ in range(2))
    for own, other in zip(ours, theirs, strict=True):
        own.grad = other.grad = torch.randn_like(own)
    Muon(ours, lr=0.1, half=True).step()
    Muon(theirs, lr=0.1).step()
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == torch.float32
        assert torch.cosine_similarity(own.flatten(), other.flatten(), 0) > 0.995
        assert not torch.equal(ours[0], ours[2])
