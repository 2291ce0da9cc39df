import lpips
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from losses.perceptual import LPIPS, LPIPSNetwork, VGGFeatureLoss, build_perceptual, perceptual_loss
from tests.losses.conftest import load_seeded
from training.randomness import SampleNoise
from videodata.errors import UserError

BACKBONE = {"vgg": "vgg16", "alex": "alexnet"}


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_equals_the_published_package(net, backbone_files, frame_pair):
    """The distance is that of the lpips package with the same backbone, to 1e-6."""
    ours = LPIPS(net, weights=backbone_files[BACKBONE[net]])
    x, y = frame_pair
    distance = ours(x, y)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # its heads are the packaged ones
    backbone = {key: value for key, value in ours._built[0].state_dict().items() if key.startswith("net.")}
    assert not reference.load_state_dict(backbone, strict=False).unexpected_keys
    assert distance.shape == (3,)
    assert torch.allclose(distance, reference(x, y).flatten(), atol=1e-6, rtol=0)
    assert distance.min() > 1e-3  # a comparison of zeros would prove nothing


def test_lpips_equals_the_fixture(fixtures):
    """The network loads the published key names and reproduces the stored distances."""
    stored = load_file(fixtures / "vvae" / "lpips_io.safetensors")
    network = LPIPSNetwork("vgg").eval()
    load_seeded(network, "loss.perceptual_loss.", seed=5000)
    with torch.no_grad():
        for index in range(5):
            head = getattr(network, f"lin{index}").model[1].weight
            head.copy_(head.abs())
        distance = network(stored["a"], stored["b"])
    assert torch.allclose(distance, stored["lpips"].flatten(), rtol=1e-5, atol=1e-6)


def test_identical_frames_have_distance_zero_and_a_finite_gradient(backbone_files):
    """Black frames, whose features may vanish, give neither NaN nor a distance."""
    metric = LPIPS("vgg", weights=backbone_files["vgg16"])
    x = torch.full((1, 3, 32, 32), -1.0)
    y = x.clone().requires_grad_()
    metric(x, y).sum().backward()
    assert metric(x, y).item() == 0
    assert torch.isfinite(y.grad).all()


def test_original_vgg_loss_is_the_squared_error_of_conv5_3_at_224_pixels(backbone_files, frame_pair):
    """The loss of the original: antialiased 224x224, ImageNet statistics, the first 29 layers of VGG-16."""
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.vgg16(weights=None).features[:29].eval()
    state = torch.load(backbone_files["vgg16"], weights_only=True)
    network.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def features(frames):
        return network(normalise(torchvision.transforms.functional.resize((frames + 1) / 2, [224, 224])))

    x, y = (frames[:1] for frames in frame_pair)
    with torch.no_grad():
        expected = F.mse_loss(features(x), features(y))
        ours = VGGFeatureLoss.original(weights=backbone_files["vgg16"])(x, y)
    assert torch.allclose(ours, expected[None], rtol=1e-4)


@pytest.mark.parametrize("name", ["lpips", "vgg"])
def test_chunks_and_recomputation_change_neither_loss_nor_gradient(name, backbone_files, frame_pair):
    """Memory is saved without another result."""
    x, y = frame_pair
    results = []
    for options in ({"chunk": 3, "recompute": False}, {"chunk": 2, "recompute": True}):
        metric = build_perceptual(name, backbone_files["vgg16"], **options)
        leaf = y.clone().requires_grad_()
        loss = metric(x, leaf).mean()
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (other_loss, other_gradient) = results
    assert torch.allclose(loss, other_loss, rtol=1e-5)
    assert torch.allclose(gradient, other_gradient, rtol=1e-3, atol=1e-9)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["lpips", "lpips-alex", "vgg"])
def test_autocast_does_not_lower_the_precision(name, backbone_files, frame_pair):
    """Under bfloat16 autocast, and with bfloat16 frames, the network computes in float32."""
    x, y = frame_pair
    metric = build_perceptual(name, backbone_files["alexnet" if "alex" in name else "vgg16"])
    y = y.bfloat16()
    expected = metric(x, y.float())
    leaf = y.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = metric(x, leaf)
    distance.sum().backward()
    assert distance.dtype == torch.float32
    assert torch.allclose(distance, expected, rtol=1e-5)
    assert leaf.grad.abs().max() > 0


def test_the_network_is_frozen_and_not_stored(backbone_files, frame_pair):
    """A module that holds the loss has none of its weights as its own, and cannot put it in train mode."""
    model = nn.Module()
    model.perceptual = LPIPS("alex", weights=backbone_files["alexnet"])
    model.perceptual(*frame_pair)
    model.train()
    network = model.perceptual._built[0]
    assert not model.state_dict() and not list(model.parameters())
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_first_use_in_inference_mode_does_not_spoil_training(backbone_files, frame_pair):
    """A loss that is built during a validation still gives gradients afterwards."""
    metric = LPIPS("alex", weights=backbone_files["alexnet"])
    x, y = frame_pair
    with torch.inference_mode():
        metric(x, y)
    leaf = y.clone().requires_grad_()
    metric(x, leaf).sum().backward()
    assert leaf.grad.abs().max() > 0


def test_weight_zero_touches_nothing(monkeypatch):
    """Weight 0 needs no file, builds no network, draws no random number and gives zeros."""
    monkeypatch.setattr("losses.perceptual.find_weights", lambda *_: pytest.fail("looked for weights"))
    metric = LPIPS("vgg")
    clip = torch.zeros(2, 3, 4, 32, 32)
    noise = SampleNoise(0, [0, 1])
    assert torch.equal(perceptual_loss(metric, clip, clip, weight=0, frames=2, noise=noise), torch.zeros(2))
    assert not metric._built
    assert torch.equal(noise.uniform(3), SampleNoise(0, [0, 1]).uniform(3))


class FrameMean(nn.Module):
    """A stand-in distance: the mean of the first batch's frames, so that the chosen frames show in the result."""

    def forward(self, x, y):
        return x.mean(dim=(1, 2, 3))


def test_frame_subset_is_unbiased_and_does_not_depend_on_the_batch():
    """Two of six frames: the mean over many draws is the mean of all; a sample's draw is its own."""
    clip = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(400, 3, 6, 2, 2)
    estimates = perceptual_loss(FrameMean(), clip, clip, frames=2, noise=SampleNoise(3, range(400)))
    possible = {(a + b) / 2 for a in range(6) for b in range(a)}  # without replacement
    assert set(estimates.tolist()) <= possible
    assert abs(estimates.mean().item() - 2.5) < 0.2
    alone = perceptual_loss(FrameMean(), clip[:1], clip[:1], frames=2, noise=SampleNoise(3, [7]))
    assert torch.equal(alone, estimates[7:8])


def test_clip_loss_averages_the_frames_of_each_clip():
    """All frames of clip b, and only those, enter value b; the weight multiplies it."""
    clip = torch.zeros(2, 3, 4, 2, 2)
    clip[1] = torch.arange(4.0).view(1, 4, 1, 1)
    assert torch.equal(perceptual_loss(FrameMean(), clip, clip, weight=2.0), torch.tensor([0.0, 3.0]))


def test_frames_too_small_and_unknown_names_are_one_line(backbone_files):
    """User errors name what is wrong."""
    frames = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UserError, match="8x8 are too small"):
        LPIPS("vgg", weights=backbone_files["vgg16"])(frames, frames)
    with pytest.raises(UserError, match="relu9_9"):
        VGGFeatureLoss(layers=["relu9_9"], weights=backbone_files["vgg16"])(
            torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
        )
    with pytest.raises(UserError, match="lpips-alex"):
        build_perceptual("lpips_alex")
