"""Each model's recipe through the real engine on a GPU, with the tiny networks of the models' own contract tests."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from tests.flow_pred import test_training as flow_pred
from tests.lvt import test_train as lvt
from tests.video_vae import test_contract as video_vae
from tests.vqgan import test_recipes as vqgan
from tests.vvae import test_training as vvae
from training import train
from training.checkpoint import load_checkpoint, strict_load
from training.state import flatten

CONTRACTS = {
    "video_vae": video_vae.TestVideoVAE,
    "video_vae-hierarchical": video_vae.TestHierarchicalPrior,
    "vqgan-1": vqgan.TestStage1,
    "vqgan-2": vqgan.TestStage2,
    "vqgan-ldm-2": vqgan.TestStage2OfLDM,
    "lvt-vqvae": lvt.TestVQVAE,
    "lvt-transformer": lvt.TestTransformer,
    "vvae": vvae.TestVVAE,
    "flow_pred-river": flow_pred.TestRiver,
    "flow_pred-f": flow_pred.TestFlow,
    "flow_pred-d": flow_pred.TestDenoiser,
    "flow_pred-g": flow_pred.TestDiffusion,
    "flow_pred-autoencoder": flow_pred.TestAutoencoder,
}
STEPS = 4


@pytest.fixture(params=CONTRACTS)
def contract(request, tmp_path):
    """The contract of a model, whose tiny recipe and data the tests borrow."""
    made = CONTRACTS[request.param]()
    if request.param == "lvt-transformer":
        lvt.write_random_codes(tmp_path / "codes.npy")
        made.path = tmp_path / "codes.npy"
    return made


def run(contract, folder, device="cuda", **changes):
    """A short run that measures and draws at its end; gives the recipe and the result."""
    recipe, data = contract.build_recipe(), contract.dataset()
    chosen = {"steps": STEPS, "evaluate_every": STEPS, "deterministic": True, **changes}
    settings = contract.settings(folder, device=device, **chosen)
    return recipe, train(recipe, data, settings, {"model": {}}, data)


def losses(folder):
    """The losses of each step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name.startswith("loss/")} for row in rows]


def assert_near(found, expected, rtol, atol):
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        assert math.isclose(value, expected[name], rel_tol=rtol, abs_tol=atol), (name, value, expected[name])


def test_losses_follow_those_of_the_cpu(contract, tmp_path, noise_of_the_cpu):
    """The first loss to 1e-3, the later ones to 3 %: each step adds its rounding, and Adam enlarges it."""
    for device in ("cpu", "cuda"):
        run(contract, tmp_path / device, device)
    on_cpu, on_gpu = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert len(on_cpu) == len(on_gpu) == STEPS
    for step, (expected, found) in enumerate(zip(on_cpu, on_gpu, strict=True)):
        assert_near(found, expected, *((3e-2, 1e-2) if step else (1e-3, 1e-4)))


def test_a_resumed_run_continues_on_the_gpu_and_on_the_cpu(contract, tmp_path):
    """Stopped half-way and continued, the weights are those of a straight run; its checkpoint serves the CPU too."""
    recipe, straight = run(contract, tmp_path / "straight")
    assert straight.finished
    assert_on_gpu(recipe)
    run(contract, tmp_path / "resumed", steps=STEPS // 2)
    half = load_checkpoint(tmp_path / "resumed")
    run(contract, tmp_path / "resumed")
    expected, found = (load_checkpoint(tmp_path / name) for name in ("straight", "resumed"))
    stored = [value for part in ("networks", "optimizers") for _, value in flatten(expected[part])]
    assert stored and all(value.device.type == "cpu" for value in stored)
    # Not every kernel is deterministic, and Adam enlarges rounding: compared with the way that was left to go.
    assert distance(found, expected) < 0.05 * distance(half, expected)
    for name, network in contract.build_recipe().networks.items():
        strict_load(network, expected["networks"][name], tmp_path)
    _, continued = run(contract, tmp_path / "resumed", device="cpu", steps=STEPS + 1)
    assert continued.step == STEPS + 1


def distance(one, two):
    """Root of the summed squared differences of all trained values of two checkpoints."""
    other = dict(flatten(two["networks"]))
    pairs = [(value.double(), other[name].double()) for name, value in flatten(one["networks"])]
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))


def assert_on_gpu(recipe):
    """Every weight and buffer of the trained and of the frozen networks, and what the optimisers keep of them."""
    for module in [*recipe.networks.values(), *recipe.frozen]:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            assert tensor.is_cuda, f"{type(module).__name__}.{name}"
    for network in hidden_networks(recipe):
        assert all(tensor.is_cuda for tensor in network.state_dict().values()), type(network).__name__
    for optimizer in recipe.optimizers.values():
        for parameter, state in optimizer.state.items():
            assert parameter.is_cuda
            for key, value in state.items():
                assert key == "step" or not isinstance(value, torch.Tensor) or value.is_cuda, key


def hidden_networks(recipe):
    """Networks that a recipe or its modules hold outside torch's sight: as plain attributes or in lists."""
    owners = [
        recipe,
        *(module for network in [*recipe.networks.values(), *recipe.frozen] for module in network.modules()),
    ]
    for owner in owners:
        for value in vars(owner).values():
            for entry in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(entry, nn.Module):
                    yield entry


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_finite(contract, tmp_path, precision):
    """Autocast trains: losses and metrics are finite, the weights stay float32. fp16 may lower its scale first."""
    _, result = run(contract, tmp_path, precision=precision, accumulation=2)
    state = load_checkpoint(tmp_path)
    assert result.finished and all(map(math.isfinite, result.metrics.values()))
    if precision == "bf16":
        assert state["skipped_steps"] == 0
        assert all(math.isfinite(value) for row in losses(tmp_path) for value in row.values())
    for name, value in flatten(state["networks"]):
        assert not value.is_floating_point() or torch.isfinite(value).all(), name
        assert value.dtype not in (torch.bfloat16, torch.float16), name


def test_averaged_weights_and_loader_workers(contract, tmp_path):
    """Averages live on the GPU, batches come pinned from worker processes, and the averages are stored."""
    run(contract, tmp_path, ema=0.5 if contract.build_recipe().ema_networks else 0.0, workers=2, steps=2)
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2 and all(torch.isfinite(value).all() for _, value in flatten(state["ema"]))
