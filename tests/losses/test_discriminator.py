import pytest
import torch
from torch import nn

from losses.adversarial import NORMS, PatchGAN2D, PatchGAN3D, discriminator_accuracy


def test_published_sizes():
    """Parameter counts and map sizes of the VQGAN discriminator and of its 3-D variant."""
    flat, volume = PatchGAN2D(), PatchGAN3D()
    assert sum(parameter.numel() for parameter in flat.parameters()) == 2_765_633
    assert sum(parameter.numel() for parameter in volume.parameters()) == 4_665_729
    for side, expected in ((64, 6), (80, 8)):
        assert flat(torch.zeros(1, 3, side, side)).shape == (1, 1, expected, expected)
    assert volume(torch.zeros(1, 3, 8, 32, 48)).shape == (1, 1, 2, 4, 6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [PatchGAN2D, PatchGAN3D])
def test_norms_keep_the_positions_of_the_convolutions(kind, norm):
    """Whatever the norm, layer 8 is the same convolution, so weights move between variants."""
    network = kind(width=8, norm=norm)
    convolutions = [int(name.split(".")[1]) for name, layer in network.named_modules() if _is_convolution(layer)]
    assert convolutions == [0, 2, 5, 8, 11]
    shape = (2, 3, 32, 32) if kind is PatchGAN2D else (2, 3, 4, 32, 32)
    logits = network(torch.randn(shape))
    logits.mean().backward()
    assert logits.shape[:2] == (2, 1)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_spectral_norm_bounds_every_convolution():
    """After some power iterations each convolution's matrix has a largest singular value of 1."""
    network = PatchGAN2D(width=8, norm="spectral")
    for _ in range(30):
        network(torch.randn(1, 3, 32, 32))
    network.eval()
    for layer in network.main:
        if _is_convolution(layer):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1, abs=0.05)


def test_group_norm_makes_logits_independent_of_the_batch():
    """With group norm a frame's logits do not depend on the other frames."""
    network = PatchGAN2D(width=16, norm="group")
    frames = torch.randn(3, 3, 32, 32)
    assert torch.allclose(network(frames)[:1], network(frames[:1]), atol=1e-5)


def test_accuracy_counts_logits_on_the_right_side():
    """Real above 0, fake below 0."""
    real, fake = discriminator_accuracy(torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor([-1.0, 1.0]))
    assert (real.item(), fake.item()) == (0.75, 0.5)


def _is_convolution(layer):
    return isinstance(layer, nn.Conv2d | nn.Conv3d)
