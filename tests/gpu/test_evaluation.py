"""Feature networks and metrics on a GPU give what they give on the CPU; their weights are random here."""

from __future__ import annotations

import pytest
import torch

from evaluation.networks import I3D, I3DFeatures, RandomFeatures
from evaluation.paired import PairedScores
from evaluation.set_distance import CLIPS_AT_A_TIME
from losses.perceptual import LPIPS, VGGFeatureLoss
from tests.losses.conftest import backbone_files, frame_pair  # noqa: F401

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def clips(count, frames=9, side=40, seed=0):
    return torch.rand(count, 3, frames, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_near(on_gpu, on_cpu, rtol=1e-3):
    """Near each other for the size of the values."""
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=rtol, atol=rtol * float(on_cpu.abs().mean()))


def test_i3d(tmp_path):
    """The logits of the FVD."""
    torch.manual_seed(0)
    torch.save(I3D().state_dict(), tmp_path / "i3d.pt")
    expected, found = (I3DFeatures(tmp_path / "i3d.pt", device)(clips(2)) for device in (CPU, GPU))
    assert found.is_cuda
    assert_near(found, expected)


def test_inception(tmp_path):
    """The features of the FID."""
    inception, fid = pytest.importorskip("evaluation.inception"), pytest.importorskip("evaluation.networks")
    torch.manual_seed(0)
    torch.save(inception.FIDInception().network.state_dict(), tmp_path / "inception.pth")
    with torch.no_grad():
        expected, found = (
            fid.InceptionFeatures(tmp_path / "inception.pth", device)(clips(2, 1)) for device in (CPU, GPU)
        )
    assert found.is_cuda
    assert_near(found, expected)


def test_fvd():
    """The whole distance, features from the GPU."""
    from evaluation import fvd

    real, made = clips(CLIPS_AT_A_TIME + 3, side=24), clips(CLIPS_AT_A_TIME + 3, side=24, seed=1)
    values = [fvd(real, made, extractor=RandomFeatures(device), force=True) for device in (CPU, GPU)]
    assert values[1] == pytest.approx(values[0], rel=1e-3) and values[0] > 0


LOSSES = {
    "lpips": lambda files: LPIPS("alex", files["alexnet"]),
    "vgg": lambda files: VGGFeatureLoss(weights=files["vgg16"]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_perceptual_losses_and_their_gradients(name, backbone_files, frame_pair):  # noqa: F811
    """Distances and gradients, also first used in a validation; under autocast they compute in float32."""
    values, gradients = [], []
    for device in (CPU, GPU):
        loss, (x, y) = LOSSES[name](backbone_files), (frames.to(device) for frames in frame_pair)
        with torch.inference_mode():
            loss(x, y)
        y = y.clone().requires_grad_()
        with torch.autocast(device.type, torch.bfloat16):
            values.append(loss(x, y))
        values[-1].sum().backward()
        gradients.append(y.grad)
    assert values[1].is_cuda and values[1].dtype == torch.float32
    assert_near(values[1].detach(), values[0].detach())
    assert_near(gradients[1], gradients[0], rtol=1e-2)


def test_paired_metrics(backbone_files):  # noqa: F811
    """PSNR, SSIM and LPIPS of clips that come from the CPU."""
    scores = []
    for device in (CPU, GPU):
        metrics = PairedScores("alex", backbone_files["alexnet"], device=device)
        metrics.update(clips(3, side=64), clips(3, side=64, seed=1))
        scores.append({score.definition: score.mean for score in metrics.scores()})
    assert scores[1] == pytest.approx(scores[0], rel=1e-3, abs=1e-5) and len(scores[0]) == 3
