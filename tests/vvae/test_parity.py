"""The model computes what the original computes, for every published variant, with the published keys."""

import json
import os

import pytest
import torch

from tests.vvae.parity_fixtures import fixture_model
from vvae import AutoencoderKL2plus1D_1dcnn, load_config
from vvae.src.modules import utils

LATENT_TOLERANCE, PIXEL_TOLERANCE = 1e-4, 5e-4
SMALL = ["tiny_16z", "tiny_4z", "ch32_16z", "ch32_4z", "ch32_16z_cap", "ch32_4z_cap"]
FULL = ["full_16z", "full_4z", "full_16z_cap"]
full_size = pytest.mark.skipif(
    not os.environ.get("VIDEOGEN_FULL_SIZE"), reason="needs minutes and 6 GiB of memory: set VIDEOGEN_FULL_SIZE=1"
)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def check_fixture(name: str, folder) -> None:
    """Compare every stored tensor of a fixture."""
    model, stored, meta = fixture_model(name, folder)
    assert sum(p.numel() for p in model.parameters()) == int(meta["num_params"])
    text = {key: stored[key] for key in ("text_embeddings", "text_attn_mask") if key in stored}
    video = stored["x"]
    with torch.no_grad():
        posterior = model.encode(video, **text)
        close(posterior.mean, stored["mean"], LATENT_TOLERANCE)
        close(posterior.logvar, stored["logvar"], LATENT_TOLERANCE)
        torch.testing.assert_close(posterior.kl().mean(), stored["kl"][0], rtol=1e-5, atol=0)
        close(model.decode(stored["mean"], **text), stored["recon"], PIXEL_TOLERANCE)

        noise = (stored["noise_spatial"], stored["noise_temporal"])
        latent, posterior = model.encode(video, sample_posterior=True, noise=noise, **text)
        close(posterior.mean, stored["sampled_mean"], LATENT_TOLERANCE)
        close(latent, stored["sampled_z"], LATENT_TOLERANCE)

        latent, posterior = model.encode(video[:, :, :1], mask_temporal=True, **text)
        close(posterior.mean, stored["image_mean"], LATENT_TOLERANCE)
        close(posterior.logvar, stored["image_logvar"], LATENT_TOLERANCE)
        close(model.decode(latent, mask_temporal=True, **text), stored["image_recon"], PIXEL_TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_every_stored_tensor_is_reproduced(name, fixtures):
    """Posterior, reconstruction, KL, sampled latents and image mode agree with the original for narrow models."""
    check_fixture(name, fixtures / "vvae")


@pytest.mark.slow
@full_size
@pytest.mark.parametrize("name", FULL)
def test_the_published_sizes_are_reproduced(name, fixtures):
    """The same at the published width, 485 to 592 million parameters."""
    check_fixture(name, fixtures / "vvae")


@pytest.mark.parametrize(("frames", "widest"), [(1, 256), (3, 256), (3, 64), (3, 0)])
def test_slices_of_frames_change_nothing(frames, widest, fixtures, monkeypatch):
    """Working through a clip in slices gives the result of working on the whole clip, in each memory layout."""
    monkeypatch.setitem(utils.CHANNELS_LAST, "cpu", widest)
    model, stored, _ = fixture_model("tiny_16z", fixtures / "vvae")
    model.encoder.slice_frames = model.decoder.slice_frames = frames
    with torch.no_grad():
        close(model.encode(stored["x"]).mean, stored["mean"], 2e-5)
        close(model.decode(stored["mean"]), stored["recon"], 1e-4)


@pytest.mark.parametrize(("variant", "entries"), [("16z", 614), ("4z", 618), ("16z_cap", 796), ("4z_cap", 800)])
def test_state_dict_has_the_published_keys_and_shapes(variant, entries, fixtures):
    """Each configuration file builds exactly the tensors that its published checkpoint holds."""
    params = load_config(f"config_{variant}.yaml").model.params
    params.ckpt_path = None
    with torch.device("meta"):
        model = AutoencoderKL2plus1D_1dcnn(**params, prune_unused=False)
    published = json.loads((fixtures / "vvae" / f"keys_config_{variant}.json").read_text())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published
    assert len(published) == entries


def test_unused_branches_are_left_out_by_default():
    """At inference the 99,114,240 parameters that nothing reads are not allocated."""
    sizes = []
    for prune in (True, False):
        with torch.device("meta"):
            model = AutoencoderKL2plus1D_1dcnn(ddconfig={"z_channels": 16}, ppconfig={"ch": 16}, prune_unused=prune)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes == [485_689_043 - 99_114_240, 485_689_043]
