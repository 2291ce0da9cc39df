"""Start values for training from nothing."""

import pytest
import torch

from vvae import AutoencoderKL2plus1D_1dcnn
from vvae.src.errors import VVAEError
from vvae.src.models.isometric import LOG_VARIANCE, start_isometric

SPATIAL = {"z_channels": 16, "ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1}


def started(hidden: int = 16, **settings) -> AutoencoderKL2plus1D_1dcnn:
    """A new model with these start values."""
    model = AutoencoderKL2plus1D_1dcnn(ddconfig=SPATIAL, ppconfig={"ch": 16, "hidden_channel": hidden}, **settings)
    start_isometric(model)
    return model.freeze()


@pytest.mark.parametrize("quantised", [False, True])
def test_posteriors_start_narrow(quantised, video):
    model = started(**({"use_quant_conv": True, "embed_dim": 16} if quantised else {}))
    for image in (False, True):
        clip = video[:, :, :1] if image else video
        assert torch.allclose(model.encode(clip, mask_temporal=image).logvar, torch.tensor(LOG_VARIANCE))


def test_the_latent_is_the_mean_of_four_frames():
    """Each channel in units of its own size over the clip, and the decoder shows it four times."""
    model = started()
    frames = torch.randn(1, 16, 8, 3, 5)
    mean = frames.unflatten(2, (2, 4)).mean(dim=3)
    latent = model.encoder_temporal(frames).chunk(2, dim=1)[0]
    expected = mean / mean.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    assert torch.allclose(latent, expected, atol=1e-4)
    assert torch.allclose(model.decoder_temporal(latent), latent.repeat_interleave(4, dim=2), atol=1e-6)


def test_channels_beyond_the_temporal_stage_hold_differences():
    """Twice as many latent channels as the stage is wide: pairs of frames come back apart, each as its mean."""
    settings = {"ddconfig": {**SPATIAL, "z_channels": 32}, "ppconfig": {"ch": 32, "hidden_channel": 16}}
    model = AutoencoderKL2plus1D_1dcnn(**settings)
    start_isometric(model)
    frames = torch.randn(1, 32, 8, 3, 5)
    pairs = frames.unflatten(2, (2, 2, 2)).mean(dim=4)  # (1, 32, latent frame, pair, h, w)
    expected = torch.cat([pairs.mean(dim=3)[:, :16], (pairs[:, :16, :, 0] - pairs[:, :16, :, 1]) / 2], dim=1)
    size = expected.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    latent = model.encoder_temporal(frames).chunk(2, dim=1)[0]
    assert torch.allclose(latent, expected / size, atol=1e-4)
    decoded = model.decoder_temporal(latent * size)
    assert torch.allclose(decoded[:, :16], pairs[:, :16].repeat_interleave(2, dim=3).flatten(2, 3), atol=1e-4)


def test_cells_go_down_orthogonally():
    """Every 2x2 cell by itself, onto orthogonal directions, of which the first six are means."""
    down = started().encoder.down[0].downsample
    pixels = torch.zeros(1, 32, 1, 8, 8)
    pixels[:, :, :, 2:4, 2:4] = torch.randn(1, 32, 1, 2, 2)
    weight = down.conv.weight.flatten(1)
    assert torch.allclose(weight @ weight.T, torch.diag(torch.tensor([0.25] * 6 + [1.0] * 26)), atol=1e-5)
    assert torch.allclose(down([pixels])[0][0, :6, 0, 1, 1], pixels[0, :6, 0, 2:4, 2:4].mean(dim=(1, 2)), atol=1e-6)
    assert (down([pixels])[0] != 0).any(dim=1).sum() == 1  # cells do not overlap


def test_a_narrow_temporal_stage_is_refused():
    settings = {"ddconfig": {**SPATIAL, "z_channels": 48}, "ppconfig": {"ch": 48, "hidden_channel": 16}}
    with pytest.raises(VVAEError, match="hidden_channel >= 24, found 16"):
        start_isometric(AutoencoderKL2plus1D_1dcnn(**settings))


def test_the_untrained_model_shows_the_colours_of_its_cells():
    """Of dark and bright, flat and contrasty clips alike: with one group, a norm leaves the clip's contrast."""
    settings = {"ddconfig": {**SPATIAL, "ch": 16}, "ppconfig": {"ch": 16, "hidden_channel": 16}, "norm_groups": 1}
    model = AutoencoderKL2plus1D_1dcnn(**settings)
    start_isometric(model)
    cells = torch.rand(4, 3, 2, 4, 4) * 2 - 1
    cells *= torch.tensor([0.1, 0.3, 0.6, 1.0])[:, None, None, None, None]  # contrast
    cells[::2] -= 0.5
    clips = cells.repeat_interleave(4, dim=2).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    with torch.no_grad():
        error = (model(clips)[0] - clips).square().mean(dim=(1, 2, 3, 4))
    assert (error < 0.02 * clips.square().mean(dim=(1, 2, 3, 4))).all()
