import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file

from losses.adversarial import PatchGAN2D, PatchGAN3D, adaptive_weight, discriminator_loss, generator_loss
from losses.kl import gaussian_kl
from tests.losses.conftest import load_seeded
from tests.training.processes import START


def test_losses_at_hand_computed_logits():
    """Each kind has its textbook value."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.5 + 1.0))
    assert generator_loss(fake, "hinge").item() == generator_loss(fake, "vanilla").item() == 0.5
    entropy = F.binary_cross_entropy_with_logits
    expected = 0.5 * (entropy(real, torch.ones(2)) + entropy(fake, torch.zeros(2)))
    for kind in ("vanilla", "non_saturating"):
        assert discriminator_loss(real, fake, kind).item() == pytest.approx(expected.item())
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(entropy(fake, torch.ones(2)).item())
    assert discriminator_loss(real * 0, fake * 0, "vanilla").item() == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="wgan"):
        generator_loss(fake, "wgan")


def test_losses_are_float32_for_bfloat16_logits():
    """Logits from an autocast discriminator are widened first."""
    logits = torch.randn(4, 1, 6, 6).bfloat16()
    for kind in ("hinge", "vanilla", "non_saturating"):
        assert discriminator_loss(logits, logits, kind).dtype == torch.float32
        assert torch.equal(generator_loss(logits, kind), generator_loss(logits.float(), kind))


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    """One-layer model: the ratio by hand, detached, clamped, and both graphs still usable."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (weight**2).sum() / 2, 2 * weight[0]
    value = adaptive_weight(reconstruction, adversarial, weight)
    assert value.item() == pytest.approx(5 / (2 + 1e-4)) and not value.requires_grad
    assert adaptive_weight(reconstruction, adversarial, weight, maximum=1.5).item() == 1.5
    (reconstruction + value * adversarial).backward()
    assert weight.grad is not None


class Case:
    """One stored loss computation: inputs, a one-layer decoder, the discriminator, and the terms."""

    def __init__(self, folder, dimensions):
        self.stored = load_file(folder / "vvae" / f"loss{dimensions}d_io.safetensors")
        self.discriminator = PatchGAN2D() if dimensions == 2 else PatchGAN3D()
        load_seeded(self.discriminator, "loss.discriminator.", seed=4000 if dimensions == 3 else 4001)
        self.flat = dimensions == 2
        self.x = self.stored["x"]
        self.last_layer = self.stored["last_layer"].clone().requires_grad_()
        self.reconstruction = F.conv3d(self.stored["feat"], self.last_layer)

    def logits(self, clip):
        return self.discriminator(clip.transpose(1, 2).flatten(0, 1) if self.flat else clip)

    def kl(self):
        mean, log_var = self.stored["moments"].chunk(2, dim=1)
        return gaussian_kl(mean, log_var)

    def reconstruction_loss(self, log_var):
        error = self.x - self.reconstruction
        frames = self.x.shape[0] * self.x.shape[2]
        per_pixel = error.abs() + (error**2).mean(dim=(1, 3, 4), keepdim=True)  # the fixture's stand-in for LPIPS
        return (per_pixel / math.exp(log_var) + log_var).sum() / frames


@pytest.fixture(params=[2, 3])
def case(request, fixtures):
    return Case(fixtures, request.param)


def test_discriminator_equals_the_fixture(case):
    """Published key names, the same logits in train and eval mode."""
    expected_keys = {f"main.{index}.weight" for index in (0, 2, 3, 5, 6, 8, 9, 11)}
    assert {key for key in case.discriminator.state_dict() if key.endswith("weight")} == expected_keys
    with torch.no_grad():
        trained = case.logits(case.x)
        case.discriminator.eval()  # with the statistics of that one call
        evaluated = case.logits(case.x)
    assert torch.allclose(evaluated, case.stored["logits_real_map_eval"], atol=2e-5)
    assert torch.allclose(trained, case.stored["logits_real_map"], atol=2e-5)


@pytest.mark.parametrize("name", ["post", "post_logvar5"])
def test_generator_step_equals_the_fixture(case, name):
    """KL, adversarial term, adaptive weight and the gradient that reaches the decoder's last layer."""
    stored = {key.removeprefix(f"{name}.opt0."): value for key, value in case.stored.items()}
    nll = case.reconstruction_loss(5.0 if name == "post_logvar5" else case.stored["logvar"].item())
    adversarial = generator_loss(case.logits(case.reconstruction))
    weight = 0.5 * adaptive_weight(nll, adversarial, case.last_layer)
    total = nll + 0.01 * case.kl().mean() + weight * adversarial
    total.backward()
    assert torch.allclose(case.kl(), case.stored["kl_per_batch"], rtol=1e-5)
    for key, value in {"nll_loss": nll, "g_loss": adversarial, "d_weight": weight, "total": total}.items():
        assert torch.allclose(value.detach().view(1), stored[key], rtol=2e-4), key
    assert torch.allclose(case.last_layer.grad.view_as(stored["grad_last_layer"]), stored["grad_last_layer"], rtol=1e-3)


def test_discriminator_step_equals_the_fixture(case):
    """The hinge loss and its gradient on the discriminator."""
    loss = discriminator_loss(case.logits(case.x), case.logits(case.reconstruction.detach()))
    loss.backward()
    norm = torch.stack([parameter.grad.norm() for parameter in case.discriminator.parameters()]).norm()
    assert torch.allclose(loss.detach().view(1), case.stored["post.opt1.disc_loss"], rtol=1e-5)
    assert torch.allclose(norm.view(1), case.stored["post.opt1.disc_grad_norm"], rtol=1e-3)
    assert case.last_layer.grad is None


def half_batch_weight(rank, rendezvous, expected):
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    weight = weight_of_batch(slice(2 * rank, 2 * rank + 2))
    dist.destroy_process_group()
    assert weight == pytest.approx(expected, rel=1e-5)


def weight_of_batch(rows):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(2, 4, 3, generator=generator)
    layer = torch.ones(3, requires_grad=True)
    outputs = inputs[rows] * layer
    return adaptive_weight(((outputs - targets[rows]) ** 2).mean(), generator_loss(outputs), layer).item()


@pytest.mark.slow
def test_adaptive_weight_is_one_value_for_all_processes(tmp_path):
    """Two processes with half of the batch each use the weight that one process with the whole batch would."""
    whole = weight_of_batch(slice(0, 4))
    assert weight_of_batch(slice(0, 2)) != pytest.approx(whole, rel=0.05)
    torch.multiprocessing.start_processes(
        half_batch_weight, (f"file://{tmp_path}/rendezvous", whole), nprocs=2, start_method=START
    )
