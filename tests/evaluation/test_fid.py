"""FID: its network, its value and its refusals. Inception runs once, on random weights; elsewhere a small network."""

import pytest
import torch
from torch import nn

from evaluation.frechet import GaussianStatistics, frechet_distance
from evaluation.networks import RandomFrameFeatures, open_extractor
from evaluation.report import definition_of
from evaluation.set_distance import FID
from videodata.errors import UserError


def noisy(clips, amount):
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(1))
    return (clips + amount * noise).clamp(-1, 1)


def distance(real, generated, force=True):
    collected = FID(RandomFrameFeatures(torch.device("cpu")), force=force)
    collected.update(real, generated)
    return collected.score()


def test_frames_are_compared_whatever_their_order():
    """0 for the same frames in other clips and orders, more for more noise; the id counts frames."""
    coarse = torch.rand(12, 3, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = nn.functional.interpolate(coarse, size=(5, 24, 32), mode="trilinear")
    same = distance(clips, clips.flip(0).flip(2))
    assert same.mean < 1e-6 and same.definition == "fid-RANDOM-sq32hp-pm1-60-ddof1-8bit"
    assert same.notes["sizes"] == {"real": 60, "generated": 60}
    values = [distance(clips, noisy(clips, amount)).mean for amount in (0.1, 0.3, 0.6)]
    assert values == sorted(values) and values[0] > 1e-3
    assert definition_of("fid-pytorch-6726825d-full299hp-pm1-2048-ddof1-8bit").name == "FID"
    with pytest.raises(UserError, match=r"FID of 60 frames.*at least 2048"):
        distance(clips, clips, force=False)


def test_inception_has_the_published_names_and_its_own_poolings(tmp_path):
    """564 weights and counters besides; averages leave padding out; the last block takes the maximum."""
    inception = pytest.importorskip("evaluation.inception")
    network = inception.FIDInception().eval()
    state = network.network.state_dict()
    assert tuple(state["fc.weight"].shape) == (1008, 2048) and len(state) == 566
    assert tuple(state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape) == (384, 384, 3, 1)
    flat = torch.ones(1, 2, 4, 5)
    assert torch.equal(inception.average(flat), flat)
    assert network.network.Mixed_7c.last and not network.network.Mixed_7b.last
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "inception.pth")
    extractor = open_extractor("inception", tmp_path / "inception.pth")
    clip = torch.rand(1, 3, 1, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        resized = nn.functional.interpolate(clip[:, :, 0], (299, 299), mode="bilinear", align_corners=False)
        expected = network(resized)
    features = extractor(clip)
    assert features.shape == (1, 2048) and torch.allclose(features, expected, rtol=0, atol=1e-6)


def test_a_wide_set_of_few_features_has_a_distance():
    """Fewer frames than dimensions: no nan, and 0 from itself."""
    values = torch.randn(30, 300, generator=torch.Generator().manual_seed(0))
    a, b = (GaussianStatistics(300).update(part) for part in (values, values + 0.1))
    assert frechet_distance(a, a) < 1e-6 and frechet_distance(a, b) == pytest.approx(300 * 0.01, rel=1e-4)
