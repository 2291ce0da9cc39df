"""The quantisers: against an explicit computation, and their life under collapse."""

import copy

import numpy as np
import pytest
import torch

from evaluation.codebook import CodebookUsage
from losses.quantize import AverageQuantizer, LatentReservoir, kmeans, nearest
from vqgan import VQGAN
from vqgan.config import QUANTIZERS, fsq_levels_for
from vqgan.quantize import build_quantizer


def spread_latents(seed: int, batch: int = 4) -> torch.Tensor:
    """(batch, 8, 4, 4) latents with a spread of one in all directions."""
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_running_means_equal_the_stored_steps(fixtures):
    """Codes, errors and codebooks of five training steps are those of an explicit EMA of counts and sums."""
    stored = np.load(fixtures / "vqgan" / "ema_vq_steps.npz")
    codes, dim = stored["codebook0"].shape
    quantizer = AverageQuantizer(dim, codes, 0.25, float(stored["decay"]), 0.0).train()
    quantizer.set_codebook(torch.from_numpy(stored["codebook0"]), torch.ones(codes))
    for step, latents in enumerate(torch.from_numpy(stored["z"])):
        quantized = quantizer(latents.requires_grad_())
        assert quantized.indices.tolist() == stored["indices"][step].tolist()
        assert quantized.loss.item() == pytest.approx(0.25 * stored["mse_before_update"][step], rel=1e-5)
        assert torch.allclose(quantizer.codebook, torch.from_numpy(stored["codebook_after"][step]), atol=1e-4)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_position_has_a_code_of_its_own(kind):
    """Changing all channels at one position changes the index of that position and of no other."""
    torch.manual_seed(0)
    quantizer = build_quantizer(kind, 8, 128).eval()
    latents = spread_latents(0, batch=1)
    changed = latents.clone()
    changed[0, :, 2, 1] = -latents[0, :, 2, 1] * 3
    different = quantizer(latents).indices != quantizer(changed).indices
    assert different.nonzero().tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_quantised_latents_are_the_codes_of_their_indices(kind):
    """In eval mode the decoder gets exactly the look-up of the indices, and these are rows of `codebook`."""
    torch.manual_seed(0)
    quantizer = build_quantizer(kind, 8, 128).eval()
    with torch.no_grad():
        quantized = quantizer(spread_latents(1))
        assert torch.equal(quantizer.lookup(quantized.indices), quantized.latents)
        assert quantizer.codebook.shape == (128, 8)
        assert torch.allclose(quantizer.codebook[quantized.indices].movedim(-1, 1), quantized.latents, atol=1e-6)
        assert int(quantized.indices.max()) < 128


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_gradients_reach_the_latents(kind):
    """The straight-through estimator passes the decoder's gradient to the encoder."""
    quantizer = build_quantizer(kind, 8, 128).train()
    latents = spread_latents(2).requires_grad_()
    (quantizer(latents).latents * torch.randn(4, 8, 4, 4)).sum().backward()
    assert latents.grad.abs().sum() > 0


def test_collapsed_codebook_comes_back_to_life():
    """After a collapse to 3 of 128 codes, 90 % of them are in use within 200 steps; without revival they are not."""
    used = {}
    for fraction in (0.1, 0.0):
        torch.manual_seed(0)
        quantizer = AverageQuantizer(8, 128, 0.25, 0.99, fraction).train()
        codes = torch.full((128, 8), 50.0)
        codes[:3] = torch.randn(3, 8)
        quantizer.set_codebook(codes, torch.ones(128))
        for step in range(200):
            quantizer(spread_latents(step))
        usage = CodebookUsage(128)
        for step in range(200, 264):
            usage.update(quantizer(spread_latents(step), update=False).indices)
        used[fraction] = usage.used
    assert used[0.1] >= 0.9 * 128
    assert used[0.0] == 3


def test_only_training_moves_the_codebook():
    """Eval mode, `encode` and `update=False` leave every buffer as it is; a training pass does not."""
    torch.manual_seed(0)
    model = VQGAN((16, 32), 8, 32, 2)
    before = copy.deepcopy(model.state_dict())
    frames = torch.rand(2, 3, 8, 8) * 2 - 1
    model.train().encode(frames)
    model.eval()(frames)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.train()(frames)
    assert not torch.equal(model.quantizer.codebook, before["quantizer.layer._codebook.embed"][0])


def test_bf16_latents_keep_a_float32_codebook():
    """Under autocast the codebook and its statistics stay float32 and count exactly."""
    quantizer = AverageQuantizer(8, 32, 0.25, 0.9, 0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(spread_latents(0).bfloat16())
    assert quantized.latents.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in (quantizer.codebook, quantizer.layer._codebook.cluster_size))


def test_start_puts_the_codes_among_the_latents():
    """After the k-means start, the codes are the clusters and their hits are those of one batch."""
    centres = torch.eye(8)[:4] * 10
    vectors = centres.repeat_interleave(50, 0) + 0.01 * torch.randn(200, 8)
    quantizer = AverageQuantizer(8, 4, 0.25, 0.99, 0.1)
    quantizer.start(vectors[torch.randperm(200)], tokens=64)
    assert torch.cdist(centres, quantizer.codebook).min(dim=1).values.max() < 0.1
    assert quantizer.layer._codebook.cluster_size.sum().item() == pytest.approx(64)


def test_kmeans_does_not_depend_on_the_block_size(monkeypatch):
    """Computing distances in small blocks gives the same centres."""
    vectors = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    whole, counts = kmeans(vectors, 16)
    monkeypatch.setattr("losses.quantize.LARGEST_BLOCK", 16 * 7)
    assert torch.equal(nearest(vectors, whole), torch.cdist(vectors, whole).argmin(dim=1))
    assert torch.allclose(kmeans(vectors, 16)[0], whole, atol=1e-5)
    assert counts.sum() == 300


def test_reservoir_keeps_the_newest_latents():
    """The ring holds the last 8 K latents, whatever the size of the batches."""
    reservoir = LatentReservoir(codes=2, dim=1)
    for start in range(0, 40, 10):
        reservoir(torch.arange(start, start + 10.0)[:, None])
    assert sorted(reservoir.newest().flatten().tolist()) == list(range(24, 40))


def test_fsq_levels_multiply_to_the_number_of_codes():
    """Powers of two get levels whose product they are."""
    for bits in range(4, 17):
        assert np.prod(fsq_levels_for(2**bits)) == 2**bits


@pytest.mark.parametrize("kind", ["ema", "fsq"])
def test_a_model_with_several_codebooks_decodes_its_own_indices(kind):
    torch.manual_seed(0)
    model = VQGAN([16, 16], 8, 64, 2, quantizer=kind, num_quantizers=3).eval()
    frames = torch.rand(2, 3, 16, 16) * 2 - 1
    codes, indices, _ = model.encode(frames)
    assert indices.shape == (2, 8, 8, 3)
    assert torch.equal(model.decode(codes), model.decode_indices(indices))
    assert torch.equal(model.eval()(frames).frames, model.decode(codes))
