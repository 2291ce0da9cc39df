"""What all quantisers share: latents of clips, and several codebooks per position."""

import pytest
import torch
from vector_quantize_pytorch import FSQ as LibraryFSQ

from losses.fsq import FSQ, ProjectedFSQ
from losses.quantize import AverageQuantizer, Quantizer, ResidualQuantizer, SignQuantizer
from training.checkpoint import strict_load

KINDS = {
    "ema": lambda: AverageQuantizer(4, 16, 0.25, 0.9, 0.0),
    "residual": lambda: ResidualQuantizer(3, 4, 16, 0.25, 0.9, 0.0),
    "signs": lambda: SignQuantizer(4, 16, 0.25),
    "fsq": lambda: FSQ([5, 4, 4, 3]),
    "residual fsq": lambda: FSQ([5, 4, 4, 3], num_quantizers=2),
    "projected": lambda: ProjectedFSQ(4, [8, 8], num_quantizers=2),
}


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=list(KINDS))
def quantizer(request) -> Quantizer:
    torch.manual_seed(0)
    return KINDS[request.param]()


def test_latents_of_clips_are_those_of_their_frames(quantizer):
    """(B, D, T, h, w) is quantised position by position: like (B, D, T * h, w)."""
    quantizer.eval()
    z = latents(2, 4, 3, 5, 6)
    whole, flat = quantizer(z), quantizer(z.flatten(2, 3))
    assert whole.latents.shape == z.shape
    assert whole.indices.shape[:4] == (2, 3, 5, 6)
    assert whole.indices.shape[4:] == ((quantizer.num_quantizers,) if quantizer.num_quantizers > 1 else ())
    assert torch.equal(whole.indices.flatten(1, 2), flat.indices)
    assert torch.equal(whole.latents.flatten(2, 3), flat.latents)
    codes, indices = quantizer.quantize(z)
    assert torch.equal(codes, quantizer.lookup(whole.indices))
    assert torch.equal(indices.long(), whole.indices)
    assert indices.dtype == torch.int32


def test_gradients_pass_straight_through_once(quantizer):
    """The gradient of a code in its own latent's direction is that of one stage, however many there are."""
    quantizer.train()
    z = (0.1 * latents(2, 4, 3, 5, 6)).requires_grad_()
    quantized = quantizer(z, update=False)
    (gradient,) = torch.autograd.grad(quantized.latents.sum(), z)
    if isinstance(quantizer, (AverageQuantizer, ResidualQuantizer, SignQuantizer)):
        assert torch.allclose(gradient, torch.ones_like(z))
    assert gradient.abs().max() < 2
    assert bool(gradient.any())


def test_each_codebook_halves_what_is_left():
    """Started at the k-means of the residuals, and moved by training: every stage lowers the error."""
    torch.manual_seed(0)
    z = latents(64, 4, 4, 4)
    errors = []
    for stages in (1, 2, 4):
        quantizer = ResidualQuantizer(stages, 4, 16, 0.25, 0.9, 0.1)
        quantizer.start(quantizer.project(z).flatten(0, -2), tokens=1024)
        for step in range(10):
            quantizer.seed = step
            loss = quantizer(z).loss
        error = (quantizer.eval()(z).latents - z).square().mean()
        errors.append(float(error.detach()))
        assert float(loss.detach()) >= 0.25 * errors[-1] * 0.9  # the last stage's commitment alone
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_a_projected_grid_is_that_of_the_library():
    """Same keys, same codes, same indices: files that were trained with the one are read by the other."""
    torch.manual_seed(0)
    library = LibraryFSQ(levels=[8, 6, 5], dim=7)
    ours = ProjectedFSQ(7, [8, 6, 5])
    strict_load(ours, {f"layer.{key}": value for key, value in library.state_dict().items()}, "library")
    z = 3 * latents(2, 7, 4, 5)
    codes, indices = library(z)
    quantized = ours(z, update=False)
    assert torch.equal(quantized.indices, indices.long())
    assert torch.allclose(quantized.latents, codes, atol=1e-6)


def test_the_auxiliary_loss_is_left_out_of_inference():
    quantizer = FSQ([5, 4, 4, 3])
    quantizer.step = 3
    z = latents(2, 4, 3, 5, 6)
    assert float(quantizer.train()(z).loss) == pytest.approx(float(quantizer.auxiliary_loss(z, 3)))
    assert float(quantizer.eval()(z).loss) == 0
