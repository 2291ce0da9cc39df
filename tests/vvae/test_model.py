"""What users of the model rely on: shapes, the two ways to call each half, inputs that are refused."""

import logging

import pytest
import torch

from tests.vvae.conftest import make_tiny
from vvae import AutoencoderKL2plus1D_1dcnn, crop_video, pad_video
from vvae.src.modules import utils


@pytest.mark.parametrize(("channels", "quant"), [(16, False), (4, True)])
def test_latents_have_the_documented_shape_and_both_ways_agree(channels, quant):
    """encoder and decoder alone are the complete halves: the same numbers as encode and decode."""
    model = AutoencoderKL2plus1D_1dcnn(
        ddconfig={"z_channels": channels, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        ppconfig={"ch": channels, "hidden_channel": 32},
        use_quant_conv=quant,
        embed_dim=channels if quant else 0,
    ).freeze()
    video = torch.rand(1, 3, 16, 64, 64) * 2 - 1
    with torch.inference_mode():
        latent = model.encode(video).mode()
        assert latent.shape == (1, channels, 4, 8, 8)
        assert torch.equal(model.encoder(video).mode(), latent)
        frames = model.decode(latent)
        assert frames.shape == video.shape
        assert torch.equal(model.decoder(latent), frames)
    assert model.encoder.z_channels == model.decoder.z_channels == channels


def test_the_published_sizes_give_the_published_latents():
    """[1, 3, 16, 256, 256] gives [1, 16, 4, 32, 32] and [1, 4, 4, 32, 32] at the published width (on meta tensors)."""
    for channels, extra in ((16, {}), (4, {"use_quant_conv": True, "embed_dim": 4})):
        with torch.device("meta"):
            model = AutoencoderKL2plus1D_1dcnn(ddconfig={"z_channels": channels}, ppconfig={"ch": channels}, **extra)
        latent = model.encode(torch.empty(1, 3, 16, 256, 256, device="meta")).mode()
        assert latent.shape == (1, channels, 4, 32, 32)
        assert model.decode(latent).shape == (1, 3, 16, 256, 256)


def test_the_result_of_encode_unpacks_like_the_original(tiny, video):
    """`latent, posterior = encode(...)` works; the default is the mean, sampling is explicit and repeatable."""
    latent, posterior = tiny.encode(video)
    assert torch.equal(latent, posterior.mode()) and posterior.latent_dist is posterior
    seeded = [
        tiny.encode(video, sample_posterior=True, generator=torch.Generator().manual_seed(3))[0] for _ in range(2)
    ]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], latent)
    reconstruction, posterior = tiny(video)
    assert torch.equal(reconstruction, tiny.decode(latent))
    assert torch.equal(tiny.decode(latent, return_dict=True).sample, reconstruction)
    assert tiny.decode(latent * 9, clamp=True).abs().max() <= 1


def test_a_clip_without_batch_axis_is_a_batch_of_one(tiny, video):
    """(C, T, H, W) is accepted on both sides."""
    latent = tiny.encode(video[0]).mode()
    assert torch.equal(latent, tiny.encode(video).mode())
    assert torch.equal(tiny.decode(latent[0]), tiny.decode(latent))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 5, 32, 32), "frames must be a multiple of 4, found 5"),
        ((1, 3, 4, 30, 32), "height must be a multiple of 8, found 30"),
        ((1, 3, 4, 32, 44), "width must be a multiple of 8, found 44"),
        ((1, 4, 4, 32, 32), "must be .B, 3, T, H, W."),
    ],
)
def test_sizes_that_do_not_fit_are_named(tiny, shape, message):
    """A wrong size is a ValueError that names the number, not a silent crop."""
    with pytest.raises(ValueError, match=message):
        tiny.encode(torch.zeros(shape))


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 30, 44), (4, 9, 16), (13, 1, 70)])
def test_padding_helpers_give_back_the_size(tiny, size):
    """Any clip goes through pad_video, the model and crop_video and keeps its size."""
    video = torch.rand(1, 3, *size) * 2 - 1
    padded, before = pad_video(video)
    assert torch.equal(crop_video(padded, before), video)
    with torch.inference_mode():
        drawn = tiny.decode(tiny.encode(padded).mode())
    assert crop_video(drawn, before).shape == video.shape


def test_image_mode_treats_each_image_alone(tiny):
    """Images are encoded and decoded without temporal layers, whatever else is in the batch."""
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latent = tiny.encode_image(images).mode()
    assert latent.shape == (2, 4, 1, 4, 4)
    torch.testing.assert_close(latent[1:], tiny.encode_image(images[1:]).mode(), atol=1e-4, rtol=0)
    assert tiny.decode_image(latent).shape == images.shape


def test_wrong_pixel_ranges_are_warned_about_once(tiny, video, caplog):
    """A clip in [0, 1] is warned about at the first call only; a correct one never."""
    with caplog.at_level(logging.WARNING):
        tiny.encode(video.abs())
        tiny.encode(video.abs())
    assert sum("look like [0, 1]" in record.message for record in caplog.records) == 1


def test_slicing_the_batch_changes_nothing(tiny, video):
    """enable_slicing gives every sample the result of its own call."""
    batch = torch.cat([video, video.flip(2)])
    whole = tiny.encode(batch).mode()
    tiny.enable_slicing()
    latent = tiny.encode(batch).mode()
    torch.testing.assert_close(latent, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(tiny.decode(latent)[1:], tiny.decode(latent[1:]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_of_a_batch_agree_with_the_pass_that_has_gradients(dtype, tiny, video):
    """Two samples in slices of 3 frames get what the whole clips get where gradients are recorded."""
    tiny.to(dtype)
    batch = torch.cat([video, 0.5 * video.flip(2)]).to(dtype)
    tiny.encoder.slice_frames = tiny.decoder.slice_frames = 3
    latent = tiny.encode(batch).mode()
    expected = tiny.encode(batch.requires_grad_()).mode()
    decoded = tiny.decode(latent.detach().requires_grad_())
    limit = 1e-4 if dtype == torch.float32 else 0.075  # bfloat16 rounds by 0.4 % after each of some fifty layers
    assert (latent - expected).float().norm() < limit * expected.float().norm()
    assert (tiny.decode(latent) - decoded).float().norm() < limit * decoded.float().norm()


def test_moving_a_half_moves_all_of_it(tiny):
    """model.encoder.to(...) takes the temporal stage along, so that encoder and decoder can live on two devices."""
    tiny.encoder.to(torch.float64)
    dtypes = {name.split(".")[0]: p.dtype for name, p in tiny.named_parameters()}
    assert dtypes["encoder"] == dtypes["encoder_temporal"] == torch.float64
    assert dtypes["decoder"] == dtypes["decoder_temporal"] == torch.float32


def test_bf16_is_close_to_f32(tiny, video):
    """The model in bfloat16, in slices, stays within the rounding of the type."""
    expected = tiny.encode(video).mode()
    model = make_tiny().to(torch.bfloat16)
    model.encoder.slice_frames = 2
    latent = model.encode(video.bfloat16()).mode().float()
    assert (latent - expected).norm() / expected.norm() < 0.1


def test_captions_are_needed_where_they_guide():
    """A text-guided model without text says how to get it; padding has no influence; an empty mask is no NaN."""
    model = make_tiny(
        ddconfig={
            "z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [27, 54],
        },
        ppconfig={"ch": 4, "hidden_channel": 32, "attn_temporal_factor": [2, 4]},
        caption_guide=True,
    )  # fmt: skip
    clip = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    with pytest.raises(ValueError, match="guided by captions: pass text_embeddings"):
        model.encode(clip)
    text, mask = torch.randn(1, 6, 1024), torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    latent = model.encode(clip, text, mask).mode()
    torch.testing.assert_close(model.encode(clip, text[:, :3], mask[:, :3]).mode(), latent, atol=1e-4, rtol=0)
    assert (model.encode(clip, -text, mask).mode() - latent).abs().max() > 1e-4
    assert torch.isfinite(model.encode(clip, text, torch.zeros(1, 6)).mode()).all()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_small_clips_are_convolved_by_the_fast_kernel_to_the_same_values(last, monkeypatch):
    """One clip that torch would leave to its own kernel, any layout, parts of clips and kernels, and gradients."""
    generator = torch.Generator().manual_seed(0)
    whole, kernel = torch.randn(1, 5, 6, 7, 8, generator=generator), torch.randn(4, 5, 3, 3, 3, generator=generator)
    bias = torch.randn(4, generator=generator)
    whole = whole.contiguous(memory_format=torch.channels_last_3d) if last else whole
    options = {"stride": (1, 2, 1), "padding": (0, 1, 1)}
    for clip, weight in ((whole, kernel), (whole[:, :, 1:4], kernel[:, :, 1:])):
        results = []
        for longest in (utils.SMALL_CLIP, 0):
            monkeypatch.setattr(utils, "SMALL_CLIP", longest)
            inputs = [value.detach().clone().requires_grad_() for value in (clip, weight, bias)]
            assert utils.small_and_alone(inputs[0]) == bool(longest)
            out = utils.convolve(*inputs, **options)
            out.square().sum().backward()
            results.append([out.detach(), *(value.grad for value in inputs)])
            monkeypatch.undo()
        for fast, own in zip(*results, strict=True):
            torch.testing.assert_close(fast, own, rtol=1e-4, atol=1e-3)


def test_which_clips_are_left_to_torch():
    """Several at once, large ones, other number formats, what autocast converts: torch takes the fast kernel there."""
    assert utils.small_and_alone(torch.zeros(1, 4, 2, 8, 8)) == torch.backends.mkldnn.is_available()
    for clip in (torch.zeros(2, 4, 2, 8, 8), torch.zeros(1, 64, 16, 32, 8), torch.zeros(1, 4, 2, 8, 8).bfloat16()):
        assert not utils.small_and_alone(clip)
    with torch.autocast("cpu", torch.bfloat16):
        assert not utils.small_and_alone(torch.zeros(1, 4, 2, 8, 8))
        assert utils.convolve(
            *(torch.zeros(shape) for shape in ((1, 2, 3, 4, 4), (2, 2, 3, 3, 3), (2,))), 1, 1
        ).dtype == (torch.bfloat16)
