import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import lpips_distance, psnr, ssim
from evaluation.metrics import (
    SSIM_DEFINITIONS,
    lpips_per_frame,
    psnr_per_frame,
    ssim_per_frame,
    summed_errors_per_frame,
)
from evaluation.paired import PairedScores
from evaluation.report import Report, Score
from losses.perceptual import LAYERS, LPIPS
from videodata import read_video
from videodata.errors import UserError


@pytest.fixture
def clips():
    """Smooth random clips in [-1, 1] (2, 3, 4, 32, 40) and a noisy copy."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 8, 10, generator=generator)
    original = torch.nn.functional.interpolate(coarse, size=(4, 32, 40), mode="trilinear") * 2 - 1
    noise = torch.randn(original.shape, generator=generator)
    return original, (original + 0.1 * noise).clamp(-1, 1)


@pytest.fixture(scope="session")
def shared_clips():
    """Folder of real videos; the `clips` of this file are random ones."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real clips do not ship with the project")
    return folder


def as_uint8(clip):
    return ((clip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


@pytest.mark.parametrize("offset", [0.5, 0.1, 0.01])
def test_psnr_of_a_constant_offset(offset):
    """An offset d in [0, 1] gives -20 log10 d; the same clips with another declared range give the same."""
    a = torch.full((2, 3, 2, 8, 8), 0.25)
    expected = torch.full((2,), -20 * math.log10(offset), dtype=torch.float64)
    assert torch.allclose(psnr(a, a + offset, (0, 1), quantize=False), expected, atol=1e-4)
    assert torch.allclose(psnr(2 * a - 1, 2 * (a + offset) - 1, quantize=False), expected, atol=1e-4)


def test_psnr_is_the_mean_over_frames_and_not_of_the_pooled_error():
    """Four frames of known error, by hand; identical frames count as 100 dB."""
    a = torch.zeros(1, 3, 4, 4, 4)
    b = torch.tensor([0.0, 0.1, 0.2, 0.4]).view(1, 1, 4, 1, 1).expand_as(a)
    by_hand = [100.0, 20.0, 20 - 20 * math.log10(2), 20 - 20 * math.log10(4)]
    assert psnr_per_frame(a, b, (0, 1), quantize=False)[0].tolist() == pytest.approx(by_hand, abs=1e-5)
    assert psnr(a, b, (0, 1), quantize=False).item() == pytest.approx(sum(by_hand) / 4, abs=1e-5)


def test_metrics_equal_torchmetrics(clips):
    """PSNR and SSIM of each frame agree with torchmetrics to 1e-5."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = clips
    peak = functional.peak_signal_noise_ratio
    structural = functional.structural_similarity_index_measure
    ours_psnr, ours_ssim = psnr_per_frame(a, b, quantize=False), ssim_per_frame(a, b, quantize=False)
    for clip in range(a.shape[0]):
        for frame in range(a.shape[2]):
            x, y = ((batch[clip, :, frame][None].double() + 1) / 2 for batch in (a, b))
            assert ours_psnr[clip, frame].item() == pytest.approx(peak(y, x, data_range=1.0).item(), abs=1e-4)
            _, padded = structural(y, x, data_range=1.0, return_full_image=True)
            inner = padded[..., 5:-5, 5:-5]  # beyond it lies the reflection padding, which the paper does not have
            assert ours_ssim[clip, frame].item() == pytest.approx(inner.mean().item(), abs=1e-5)


def real_frames(clips, count):
    """Frames of a real clip, and the same with coarser grey levels: uint8 (T, H, W, 3)."""
    frames, _ = read_video(clips / "videovaeplus" / sorted((clips / "videovaeplus").glob("*.mp4"))[0].name)
    frames = frames[:count, :160, :200]
    return frames, (frames // 24 * 24 + 12).astype(np.uint8)


@pytest.mark.parametrize("real", [False, True])
def test_metrics_equal_scikit_image(request, clips, real):
    """PSNR and all definitions of SSIM agree with scikit-image to 1e-6, on random and on real frames."""
    measure = pytest.importorskip("skimage.metrics")
    if real:
        a, b = real_frames(request.getfixturevalue("shared_clips"), 2)
    else:
        a, b = (as_uint8(batch)[0, :2].numpy() for batch in clips)
    found = [psnr_per_frame(a, b)[0], *(ssim_per_frame(a, b, definition=name)[0] for name in SSIM_DEFINITIONS)]
    for frame, (x, y) in enumerate(zip(a / 255.0, b / 255.0, strict=True)):
        options = {"channel_axis": -1, "full": True}
        _, full = measure.structural_similarity(
            x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **options
        )
        uniform, _ = measure.structural_similarity(x, y, data_range=x.max() - x.min(), **options)
        openstl, _ = measure.structural_similarity(x, y, data_range=2.0, **options)
        peak = measure.peak_signal_noise_ratio(x, y, data_range=1.0)
        expected = [peak, full[5:-5, 5:-5].mean(), uniform, openstl]
        assert [values[frame].item() for values in found] == pytest.approx(expected, abs=1e-6)


def test_metrics_equal_torchmetrics_on_real_frames(shared_clips):
    """The same as on random frames."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = real_frames(shared_clips, 2)
    x, y = (torch.from_numpy(frames).movedim(-1, 1).double() / 255 for frames in (a, b))
    peak = functional.peak_signal_noise_ratio(y, x, data_range=1.0, dim=(1, 2, 3), reduction="none")
    assert torch.allclose(psnr_per_frame(a, b)[0], peak.double(), rtol=0, atol=1e-4)
    _, full = functional.structural_similarity_index_measure(y, x, data_range=1.0, return_full_image=True)
    expected = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert torch.allclose(ssim_per_frame(a, b)[0], expected, rtol=0, atol=1e-5)


def test_lpips_equals_the_package_on_real_frames(shared_clips, alexnet):
    """The lpips package with the same backbone, to 1e-5."""
    package = pytest.importorskip("lpips")
    reference = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet, weights_only=True)
    own = reference.net.state_dict()
    reference.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in own})
    a, b = real_frames(shared_clips, 2)
    x, y = (torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1 for frames in (a, b))
    with torch.no_grad():
        expected = reference(x, y).flatten().double()
    assert torch.allclose(lpips_per_frame(a, b, weights=alexnet)[0], expected, rtol=1e-4, atol=1e-5)


def test_vvae_ssim_equals_its_definition_written_as_a_loop():
    """7x7 windows, sample covariance, the first frame's own range: window by window with NumPy."""
    generator = torch.Generator().manual_seed(3)
    a = (torch.rand(1, 1, 9, 10, 3, generator=generator) * 200).to(torch.uint8)
    b = (torch.rand(1, 1, 9, 10, 3, generator=generator) * 255).to(torch.uint8)
    x, y = a[0, 0].double().numpy() / 255, b[0, 0].double().numpy() / 255
    data_range = x.max() - x.min()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for channel in range(3):
        for top in range(3):
            for left in range(4):
                p = x[top : top + 7, left : left + 7, channel].ravel()
                q = y[top : top + 7, left : left + 7, channel].ravel()
                (vp, cov), (_, vq) = np.cov(p, q)
                luminance = (2 * p.mean() * q.mean() + c1) / (p.mean() ** 2 + q.mean() ** 2 + c1)
                values.append(luminance * (2 * cov + c2) / (vp + vq + c2))
    assert ssim(a, b, definition="vvae").item() == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(torch.zeros_like(a), b, definition="vvae").item() == 1.0


def test_errors_summed_over_pixels():
    """Frames of Moving MNIST that are one grey level off: 4096 pixels of 0.1, squared 0.01; beyond the range, too."""
    a = torch.ones(2, 3, 5, 64, 64)
    b = a + 0.2  # of the range from -1 to 1
    b[:, :, 3] = 1
    found = summed_errors_per_frame(a, b)
    expected = torch.full((2, 5), 4096.0, dtype=torch.float64)
    expected[:, 3] = 0
    assert torch.allclose(found["mse-pixels"], 0.01 * expected, rtol=1e-5)
    assert torch.allclose(found["mae-pixels"], 0.1 * expected, rtol=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_layouts_and_rounding_agree(metric, clips):
    """Floats are rounded to 8 bit by default, so they score as their uint8 frames do; one clip needs no batch axis."""
    a, b = clips
    expected = metric(as_uint8(a), as_uint8(b))
    assert expected.shape == (2,) and expected.dtype == torch.float64
    assert torch.allclose(metric(a, b), expected, atol=1e-6)
    assert torch.allclose(metric((a + 1) / 2, (b + 1) / 2, (0, 1)), expected, atol=1e-6)
    assert torch.allclose(metric(as_uint8(a)[0].numpy(), as_uint8(b)[0].numpy()), expected[:1])
    assert torch.allclose(metric(a, as_uint8(b)), expected, atol=1e-6)
    assert not torch.equal(metric(a, b, quantize=False), expected)


def test_identical_clips_have_the_best_score(clips):
    """PSNR at the cap, SSIM 1, and predictions outside the range are clamped."""
    a, _ = clips
    assert psnr(a, a).tolist() == [100.0, 100.0]
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    white = torch.ones(1, 3, 1, 16, 16)
    assert psnr(white, white * 3).item() == 100


def test_wrong_inputs_are_named(clips):
    """Range, layout, size: each mistake has its message."""
    a, b = clips
    with pytest.raises(ValueError, match="do not fit the declared range"):
        psnr((a + 1) * 127.5, (b + 1) * 127.5)
    with pytest.raises(ValueError, match="different size"):
        psnr(a, b[:, :, :2])
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        psnr(a[0], b[0])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(a[..., :8], b[..., :8])
    with pytest.raises(ValueError, match="skimage"):
        ssim(a, b, definition="skimage")


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file of random AlexNet weights."""
    torch.manual_seed(0)
    layers = enumerate(layer for _, layer in LAYERS["alexnet"]())
    state = {f"features.{i}.{key}": value for i, layer in layers for key, value in layer.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "random_alexnet.pth"
    torch.save(state, path)
    return path


def test_lpips_distance_is_the_mean_over_frames(clips, alexnet):
    """Per clip, without gradient; 0 for identical clips."""
    a, b = clips
    value = lpips_distance(a, b.requires_grad_(), weights=alexnet, quantize=False)
    frames = LPIPS("alex", alexnet)(a.transpose(1, 2).flatten(0, 1), b.transpose(1, 2).flatten(0, 1))
    assert torch.allclose(value, frames.view(2, 4).mean(1).double(), rtol=1e-4)
    assert not value.requires_grad
    assert lpips_distance(a, a, weights=alexnet).tolist() == [0, 0]


def test_lpips_without_weights_is_one_line(clips, monkeypatch, tmp_path):
    """No file and no network: the line names the file and the folder."""
    for variable in ("HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "weights"))

    def refuse(*_, **__):
        raise UserError("no network")

    monkeypatch.setattr("losses.weights.download_file", refuse)
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79.pth is missing.*put it into .*weights"):
        lpips_distance(*clips, net="alex")


def test_collected_scores_equal_the_functions(clips, alexnet):
    """Batches of different size give the same per-clip values as one call; excluded frames do not count."""
    a, b = clips
    collected = PairedScores(lpips="alex", weights=alexnet)
    collected.update(a[:1], b[:1])
    collected.update(a[1:], b[1:])
    scores = {score.name: score for score in collected.scores()}
    assert scores["PSNR"].per_clip == pytest.approx(psnr(a, b).tolist())
    assert scores["SSIM"].per_clip == pytest.approx(ssim(a, b).tolist())
    assert scores["LPIPS-alex"].per_clip == pytest.approx(lpips_distance(a, b, weights=alexnet).tolist())
    assert scores["PSNR"].per_frame == pytest.approx(psnr_per_frame(a, b).mean(0).tolist())
    assert scores["PSNR"].notes == {"frames_at_the_cap": 0}
    assert scores["LPIPS-alex"].notes["feature_network"]["file"] == "random_alexnet.pth"

    later = PairedScores(excluded_frames=3)
    later.update(a, b)
    assert later.scores()[0].per_clip == pytest.approx(psnr(a[:, :, 3:], b[:, :, 3:]).tolist())


def test_report_holds_what_a_number_needs(tmp_path):
    """The JSON file names definition, count and circumstances; the table shows the definition; nan becomes null."""
    report = Report("video_vae", "weights.pt", "clips/", frames=8, stride=2, height=48, width=64)
    report.scores = [
        Score("psnr-frame-8bit", [20.0, 30.0]),
        Score("kl-bits", [math.nan], label="level 1"),
    ]
    stored = json.loads(report.write(tmp_path / "results" / "scores.json").read_text())
    assert (stored["frames"], stored["stride"], stored["height"], stored["width"]) == (8, 2, 48, 64)
    assert stored["versions"]["torch"] == torch.__version__
    first, second = stored["scores"]
    assert (first["mean"], first["deviation_over_clips"], first["clips"], first["unit"]) == (25.0, 5.0, 2, "dB")
    assert "rounded to 8 bit" in first["meaning"]
    assert second["name"] == "KL level 1" and second["mean"] is None
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["scores.json"]
    assert "25 dB" in report.table() and "rounded to 8 bit" in report.table()
    assert report.rows()[1] == ("PSNR", "25 dB", "5", "2", "psnr-frame-8bit")
    assert "rounded to 8 bit" in report.table()
    with pytest.raises(ValueError, match="no definition"):
        Score("psnr", [1.0])
