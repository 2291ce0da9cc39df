"""The network: shapes, the downsampling factor, attention, configuration."""

import pytest
import torch
from torch import nn

from videodata.errors import UserError
from vqgan import VQGAN, Discriminator
from vqgan.files import build_model, model_config
from vqgan.model import AttentionBlock


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_downsample_factor_is_the_downsampling_factor(factor):
    """Latents are `factor` times smaller than the frames along each side, whatever the number of widths."""
    model = VQGAN((8, 16, 32, 64), 4, 16, factor).eval()
    frames = torch.zeros(2, 3, 16, 24)
    codes, indices, _ = model.encode(frames)
    assert codes.shape == (2, 4, 16 // factor, 24 // factor)
    assert indices.shape == (2, 16 // factor, 24 // factor) and indices.dtype == torch.int64
    assert model.decode(codes).shape == model.decode_indices(indices).shape == frames.shape


@pytest.mark.parametrize("factor", [3, 16, 0])
def test_an_impossible_factor_is_one_line(factor):
    """A factor that the widths cannot reach is an error that names those that they can."""
    with pytest.raises(UserError, match="choose one of 1, 2, 4, 8"):
        VQGAN((8, 16, 32, 64), 4, 16, factor)


def test_frames_that_the_factor_does_not_divide_are_one_line():
    """Frames of 18x16 cannot be encoded at a factor of 4."""
    with pytest.raises(UserError, match="18x16.*multiples of 4"):
        VQGAN((8, 16, 32), 4, 16, 4).encode(torch.zeros(1, 3, 16, 18))


def test_attention_uses_the_scale_of_its_heads():
    """The block equals softmax(q k^T / sqrt(C / heads)) v, computed explicitly."""
    torch.manual_seed(0)
    block = AttentionBlock(16, heads=4)
    nn.init.normal_(block.project.weight)
    x = torch.randn(2, 16, 3, 5)
    q, k, v = (t.unflatten(1, (4, 4)).flatten(3) for t in block.qkv(block.norm(x)).chunk(3, dim=1))  # (B, 4, 4, 15)
    weights = (q.transpose(-1, -2) @ k / 4**0.5).softmax(dim=-1)
    expected = x + block.project((v @ weights.transpose(-1, -2)).reshape(x.shape))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_attention_starts_as_the_identity():
    """Its output projection is zero at first."""
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(AttentionBlock(16)(x), x)


def test_configuration_makes_the_same_network():
    """`build_model(model_config(model))` has the same keys and shapes; an unknown key names the nearest one."""
    model = VQGAN((8, 16), 4, 16, 2, quantizer="fsq", upsample="nearest")
    again = build_model(model_config(model))
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    with pytest.raises(UserError, match="did you mean 'model.latent_dim'"):
        build_model({"type": "vqgan", "latent_dims": 4})


def test_receptive_field_of_the_discriminator_is_70_pixels():
    """One logit depends on exactly the pixels that the documentation says."""
    discriminator = Discriminator((4, 8, 16, 32)).eval()
    frames = torch.zeros(1, 3, 128, 128, requires_grad=True)
    discriminator(frames)[0, 0, 7, 7].backward()
    rows = frames.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == discriminator.receptive_field == 70


@pytest.mark.parametrize("dims", [(8, 16), (8, 16, 16), (64, 128, 256, 512)])
def test_the_smallest_patch_of_the_discriminator(dims):
    """What is refused before training is what would fail in stage 2, to the pixel."""
    discriminator = Discriminator([4] * len(dims)).eval()
    for side in range(4, 40):
        try:
            Discriminator.check_side(dims, side)
        except UserError as refusal:
            assert f"--patch_size {side}: " in str(refusal) and "--gan_steps 0" in str(refusal)
            with pytest.raises(RuntimeError):
                discriminator(torch.zeros(1, 3, side, side))
        else:
            assert discriminator(torch.zeros(1, 3, side, side)).numel() >= 1
