"""FVD: its value, its protocol and its refusals. I3D itself runs once, on random weights; elsewhere a small network."""

import socket

import pytest
import torch
from torch import nn

from evaluation import fvd
from evaluation.networks import (
    EXTRACTORS,
    I3D,
    FeatureExtractor,
    I3DFeatures,
    RandomFeatures,
    centre_square,
    open_extractor,
)
from evaluation.report import definition_of
from evaluation.set_distance import FVD
from tests.training import processes
from training import distributed
from videodata import open_clips
from videodata.errors import UserError


def smooth_clips(count, seed=0, frames=4):
    """Random clips (count, 3, frames, 24, 32) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, frames, 3, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(frames, 24, 32), mode="trilinear") * 2 - 1


@pytest.fixture(scope="module")
def network():
    return RandomFeatures(torch.device("cpu"))


def test_identical_sets_are_at_0_and_noise_drives_the_distance_up(network):
    """0 within 1e-3, and monotone in the amount of noise; uint8 frames and other ranges give the same."""
    clips = smooth_clips(256)
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(9))
    distances = [fvd(clips, (clips + s * noise).clamp(-1, 1), extractor=network) for s in (0, 0.05, 0.1, 0.2, 0.4)]
    assert distances[0] < 1e-6
    assert all(low < high for low, high in zip(distances, distances[1:], strict=False)) and distances[-1] > 1e-2
    pixels = ((clips + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    assert fvd(pixels, (clips + 1) / 2, (0, 1), extractor=network) < 1e-6


def test_real_clips(clips, network):
    """Windows of real videos: 0 from themselves, more from their noisy copies."""
    real = open_clips(clips / "ucf101", frames=9, size=(60, 80), windows="consecutive")
    batch = torch.stack([real[index] for index in range(12)])
    noisy = (batch + 0.2 * torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    with pytest.raises(UserError, match="FVD of 12 clips"):
        fvd(batch, batch, extractor=network)
    assert fvd(batch, batch.flip(0), extractor=network, force=True) < 1e-3
    assert fvd(batch, noisy, extractor=network, force=True) > 1e-3


def test_streamed_batches_equal_one_call_and_the_half_sample_is_every_other_clip(network):
    """Batch sizes do not matter; the estimate at half the clips is that of the clips with even numbers."""
    a, b = smooth_clips(21), smooth_clips(21, seed=1)
    distance = FVD(network, force=True)
    for part in (slice(0, 4), slice(4, 5), slice(5, 21)):
        distance.update(a[part], b[part])
    score = distance.score()
    assert score.mean == pytest.approx(fvd(a, b, extractor=network, force=True), abs=1e-8)
    halves = [a[::2], b[::2]]
    expected = fvd(*halves, extractor=network, force=True)
    assert score.notes["half_sample"] == {"real": 11, "generated": 11, "value": pytest.approx(expected, abs=1e-8)}
    assert fvd(iter(a.split(2)), iter(b.split(3)), extractor=network, force=True) == pytest.approx(score.mean, abs=1e-8)


def test_a_result_says_what_it_is(network):
    """Network, frames, number of clips and rounding are part of the id; RANDOM is part of the name."""
    distance = FVD(network, force=True)
    distance.update(smooth_clips(5), smooth_clips(5, 1))
    stored = distance.score().to_dict()
    assert (stored["definition"], stored["name"]) == ("fvd-RANDOM-sq32hp-pm1-4f-5-ddof1-8bit", "FVD-RANDOM")
    assert stored["sizes"] == {"real": 5, "generated": 5}
    assert stored["feature_network"]["text"].endswith("no number to report")
    assert definition_of("fvd-i3d-1a2b3c4d-sq224hp-pm1-16f-2048-ddof1-8bit").name == "FVD"
    with pytest.raises(ValueError, match="no definition"):
        definition_of("fvd-i3d")


def test_what_would_mislead_is_refused(network):
    """Few clips, short clips, sets of unequal size or length, an undeclared range."""
    clips = smooth_clips(3)
    with pytest.raises(UserError, match="at least 256, or --force"):
        fvd(clips, clips, extractor=network)
    with pytest.raises(UserError, match="3 real and 2 generated"):
        fvd(clips, clips[:2], extractor=network, force=True)
    with pytest.raises(UserError, match="1 frames are too short"):
        fvd(clips[:, :, :1], clips, extractor=network, force=True)
    with pytest.raises(UserError, match="equal lengths"):
        fvd(clips, clips[:, :, :3], extractor=network, force=True)
    with pytest.raises(ValueError, match="declared range"):
        fvd((clips + 1) * 127.5, clips, extractor=network, force=True)


def test_clips_that_are_too_short_for_i3d_are_named(monkeypatch):
    """Eight frames leave its last pooling without input: the line says so before anything runs."""
    monkeypatch.setattr(I3DFeatures, "__init__", lambda self: None)
    with pytest.raises(UserError, match="8 frames are too short for FVD: i3d needs 9"):
        fvd(smooth_clips(2, frames=8), smooth_clips(2, frames=8), extractor=I3DFeatures(), force=True)


class Still(FeatureExtractor):
    """The mean colour: another extractor in a few lines."""

    name, text, dimensions, minimum_frames = "colour", "mean colour", 3, 1

    def __call__(self, clips):
        return clips.mean(dim=(2, 3, 4))


def test_another_network_plugs_in(monkeypatch):
    """An extractor is given as an object, or by the name of its line in the table."""
    clips, brighter = smooth_clips(20), smooth_clips(20) + 0.5
    by_hand = float(((clips.clamp(-1, 1).mean((0, 2, 3, 4)) - brighter.clamp(-1, 1).mean((0, 2, 3, 4))) ** 2).sum())
    found = fvd(clips, brighter, quantize=False, extractor=Still(None), force=True)
    assert found == pytest.approx(by_hand, abs=0.05) and found > 0.1
    monkeypatch.setitem(EXTRACTORS, "colour", lambda weights, device: Still(None))
    monkeypatch.setattr("evaluation.networks.find_weights", lambda *_, **__: None)
    assert fvd(clips, brighter, quantize=False, extractor="colour", force=True) == found


class Scripted(nn.Module):
    """The call of the published TorchScript file; gives the corner pixels of the first frame."""

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale and not resize and return_features
        return x[:, :, 0, 0, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_file_gets_what_it_expects(tmp_path):
    """Clips at 224x224 in [-1, 1], neither scaled nor resized by the file itself."""
    torch.jit.save(torch.jit.script(Scripted()), str(tmp_path / "i3d_torchscript.pt"))
    clips = smooth_clips(2)
    features = open_extractor("i3d-torchscript", tmp_path / "i3d_torchscript.pt")(clips)
    assert torch.equal(features, centre_square(clips, 224)[:, :, 0, 0, 0])


def test_i3d_loads_by_the_published_names(tmp_path):
    """344 entries, 12,697,264 parameters; files without the counters of newer versions load as well."""
    torch.manual_seed(0)
    network = I3D().eval()
    state = network.state_dict()
    assert len(state) == 344 and sum(parameter.numel() for parameter in network.parameters()) == 12_697_264
    published = {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7), "Conv3d_2c_3x3.bn.running_var": (192,),
        "Mixed_4f.b2b.conv3d.weight": (128, 32, 3, 3, 3), "Mixed_5c.b3b.bn.bias": (128,),
        "logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in published} == published
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "i3d.pt")
    clip = smooth_clips(1, frames=9)
    features = open_extractor("i3d", tmp_path / "i3d.pt")(clip)
    with torch.no_grad():
        expected = network(centre_square(clip, 224))
    assert features.shape == (1, 400) and torch.allclose(features, expected, rtol=0, atol=1e-6)
    for shape, message in (((1, 3, 8, 224, 224), "at least 9 frames"), ((1, 3, 9, 256, 256), "224, 224")):
        with pytest.raises(ValueError, match=message):
            network(torch.zeros(shape))


def test_frames_are_cropped_to_the_middle_square_and_resized_as_declared():
    """Bilinear with unaligned corners: halving a ramp averages neighbours; what lies outside the square is not seen."""
    ramp = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(1, 3, 2, 8, 12).clone()
    ramp[..., :2] = ramp[..., 10:] = 1e6
    halved = centre_square(ramp, 4)
    assert halved.shape == (1, 3, 2, 4, 4)
    assert torch.equal(halved[0, 0, 0, :, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_missing_and_wrong_weights_are_one_line_without_network(monkeypatch, tmp_path):
    """File, address and folder are named and no connection is tried; another file's mistake is named as well."""
    for variable in ("HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "weights"))

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "socket", refuse)
    for name, file in (("i3d", "i3d_pretrained_400.pt"), ("i3d-torchscript", "i3d_torchscript.pt")):
        with pytest.raises(UserError) as error:
            open_extractor(name)
        line = str(error.value)
        assert "\n" not in line
        for part in (file, "https://", str(tmp_path / "weights"), "--download", "51 MB", "leave out fvd"):
            assert part in line
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not fit the model: missing: Conv3d_1a_7x7"):
        open_extractor("i3d", tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a TorchScript file"):
        open_extractor("i3d-torchscript", tmp_path / "other.pt")
    with pytest.raises(UserError, match="choose one of i3d"):
        open_extractor("c3d")
    with pytest.raises(UserError, match="FVD needs features of clips; RANDOM gives those of frames"):
        FVD(open_extractor("inception", allow_random=True))


def distance_of_a_share(real, generated):
    distance = FVD(RandomFeatures(torch.device("cpu")), force=True)
    share = slice(distributed.rank(), None, 2)
    distance.update(real[share], generated[share])
    score = distance.over_processes().score()
    return {"value": score.mean, "clips": score.notes["sizes"]["real"]}


def test_two_processes_equal_one(network, tmp_path):
    """Each process sees half of the clips; both know the distance of all of them."""
    a, b = smooth_clips(12), smooth_clips(12, 1)
    whole = fvd(a, b, extractor=network, force=True)
    for found in processes.launch(distance_of_a_share, 2, tmp_path, a, b):
        assert found == {"value": pytest.approx(whole, abs=1e-8), "clips": 12}
