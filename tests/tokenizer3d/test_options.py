"""What the published models do not have: patches as channels, several codebooks, codebooks that are learned."""

import pytest
import torch

from tests.tokenizer3d.tiny import clip, tiny
from tokenizer3d import Tokenizer3D
from tokenizer3d.networks import from_patches, to_patches
from tokenizer3d.tiles import Pieces
from videodata.errors import UserError


def test_patches_are_pixels_in_another_order():
    x = clip(3, 8, 12).permute(0, 2, 3, 4, 1)
    patches = to_patches(x, 2)
    assert patches.shape == (1, 3, 4, 6, 12)
    assert torch.equal(from_patches(patches, 2), x)
    assert torch.equal(patches[0, 0, 1, 2].view(2, 2, 3), x[0, 0, 2:4, 4:6])  # one position, its four pixels
    assert to_patches(x, 1) is x


@torch.no_grad()
def test_patches_change_neither_tiles_nor_streams():
    """Exact, as without them: tiles and strips to rounding, a stream to the bit."""
    model = tiny("488", patch_size=2)
    assert model.spatial_factor == 16
    x = clip(9, 64, 96)
    plain, tiles = model.encode(x), model.encode(x, pieces=Pieces(tile=2, rows=3))
    assert plain.mean.shape == (1, 4, 3, 4, 6)
    assert torch.allclose(plain.mean, tiles.mean, atol=1e-5)
    z = plain.mean
    assert torch.allclose(model.decode(z), model.decode(z, pieces=Pieces(tile=2, rows=3)), atol=1e-5)
    parts = torch.cat(list(model.decode_stream(z.split(1, 2))), dim=2)
    assert torch.equal(parts, model.decode(z))
    latents = torch.cat([part.mean for part in model.encode_stream(x.split(2, 2))], dim=2)
    assert torch.equal(latents, plain.mean)


def test_patches_are_known_again_from_the_shapes(tmp_path):
    """A file without notes tells them by the channels of its first layer."""
    model = tiny("488", patch_size=2)
    torch.save(model.state_dict(), tmp_path / "a.ckpt")
    assert Tokenizer3D.from_single_file(tmp_path / "a.ckpt", "1.0").config == model.config


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"regularizer": "fsq", "levels": [5, 4], "regularizer_options": {"num_quantizers": 3}, "z_channels": 2}, (3,)),
        ({"regularizer": "ema", "regularizer_options": {"codebook_size": 8, "num_quantizers": 2}}, (2,)),
        ({"regularizer": "ema", "regularizer_options": {"codebook_size": 8}}, ()),
        ({"regularizer": "lfq", "regularizer_options": {"codebook_size": 8}}, ()),
    ],
)
@torch.no_grad()
def test_tokens_of_every_quantiser_go_to_a_file_and_back(tmp_path, settings, last):
    """Indices have a last axis where there are several codebooks; the saved model has the same ones."""
    model = tiny("488", **settings)
    x = clip(5, 16, 24)
    codes = model.encode(x)
    assert codes.indices.shape == (1, 2, 2, 3, *last)
    assert int(codes.indices.max()) < model.codebook_size
    assert torch.equal(model.decode_indices(codes.indices), model.decode(codes))
    model.save_pretrained(tmp_path)
    again = Tokenizer3D.from_pretrained(tmp_path)
    assert torch.equal(again.encode(x).indices, codes.indices)
    assert torch.equal(again.decode_indices(codes.indices), model.decode(codes))


def test_options_that_do_not_exist_are_one_line():
    for settings in (
        {"regularizer": "kl", "regularizer_options": {"codebook_size": 8}},
        {"regularizer": "ema", "levels": [8, 8]},
        {"regularizer": "ema", "regularizer_options": {"colour": 1}},
        {"regularizer": "lfq", "regularizer_options": {"codebook_size": 9}},
        {"regularizer": "vq"},
        {"patch_size": 0},
    ):
        with pytest.raises(UserError):
            tiny("488", **settings)
