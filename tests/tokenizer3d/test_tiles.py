"""Tiles and strips of rows: the plain result, whatever their order; and halos that are as large as they must be."""

import itertools

import pytest
import torch

from tests.tokenizer3d.parity import largest
from tests.tokenizer3d.tiny import clip, tiny
from tokenizer3d import tiles
from tokenizer3d.config import published
from tokenizer3d.tiles import Pieces, decoder_halo, encoder_halo
from videodata.errors import UserError

KINDS = [{}, {"version": "1.1"}, {"causal": False}]
TILE = Pieces(tile=14)
SIZE = (256, 64)  # 32 x 8 latents: a tile of 14 and a halo of 13 do not reach the other end
ROUNDING = 2e-5  # of float32, through some sixty layers


def both(model, x, pieces, z=None):
    """Latents of a clip, and the frames of latents: those, or given ones."""
    with torch.no_grad():
        found = model.encode(x, pieces=pieces).mode()
        return found, model.decode(found if z is None else z, pieces=pieces)


@pytest.mark.parametrize("rows", [5, 8, 20])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_strips_of_rows_change_nothing(settings, rows):
    model, x = tiny(num_res_blocks=2, **settings), clip(5, 64, 96)
    plain = both(model, x, None)
    for a, b in zip(plain, both(model, x, Pieces(rows=rows), plain[0]), strict=True):
        assert largest(a, b) < ROUNDING


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_tiles_change_nothing(settings):
    """Tiles of 14 x 14 latents, with the halo that the layers need."""
    model = tiny(num_res_blocks=2, **settings)
    x = clip(1, *SIZE)
    plain = both(model, x, None)
    for a, b in zip(plain, both(model, x, TILE, plain[0]), strict=True):
        assert largest(a, b) < ROUNDING


def test_a_halo_that_is_too_small_shows():
    model, x = tiny(num_res_blocks=2), clip(1, *SIZE)
    plain = both(model, x, None)
    cut = both(model, x, Pieces(tile=14, halo=6), plain[0])
    assert largest(plain[0], cut[0]) > 1e-4 and largest(plain[1], cut[1]) > 1e-4


def test_the_order_of_tiles_changes_no_bit(monkeypatch):
    model, x = tiny(version="1.1"), clip(5, 64, 80)
    pieces = Pieces(tile=3, halo=2)
    expected = both(model, x, pieces)
    monkeypatch.setattr(tiles, "product", lambda *axes: reversed(list(itertools.product(*axes))))
    assert all(map(torch.equal, both(model, x, pieces), expected))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_streams_in_tiles_and_strips_are_whole_clips_in_tiles_and_strips(version):
    model, x = tiny(version=version), clip(7, 60, 72)
    for pieces in (Pieces(tile=4, halo=1), Pieces(rows=6), Pieces(tile=5, halo=1, rows=10, step_latents=2)):
        z, made = both(model, x, pieces)
        state = model.init_state(1, 60, 72, pieces)
        latents = [model.encode_step(part, state).mode() for part in x.split(2, 2)] + [model.flush(state).mode()]
        assert torch.equal(torch.cat(latents, 2), z)
        state = model.init_state(1, 60, 72, pieces)
        frames = [model.decode_step(z, state), model.flush(state)]
        assert torch.equal(torch.cat(frames, 2), made[..., :60, :72])


def test_halos_follow_from_the_layers():
    assert encoder_halo(published("kl_causal_488_4chn")) == 12 and decoder_halo(published("kl_causal_488_4chn")) == 13


@pytest.mark.parametrize("shape", ["488", "444", "888"])
def test_halos_cover_all_that_a_result_depends_on(shape):
    """Changes outside of a tile and its halo change nothing inside."""
    model = tiny(shape)
    factor, side = model.spatial_factor, 32
    x, y = clip(model.temporal_factor, side * factor, 2 * factor), 16
    other, reach = x.clone(), encoder_halo(model.config)
    other[:, :, :, : (y - reach) * factor] *= -1
    other[:, :, :, (y + 1 + reach) * factor :] *= -1
    with torch.no_grad():
        inside = [model.encoder.levels(value.permute(0, 2, 3, 4, 1))[:, :, y] for value in (x, other)]
        assert torch.equal(*inside)
        h = torch.randn(1, 1, side, 2, model.config.width(3), generator=torch.Generator().manual_seed(0))
        other, reach = h.clone(), decoder_halo(model.config)
        other[:, :, : y - reach] *= -1
        other[:, :, y + 1 + reach :] *= -1
        rows = slice(y * factor, (y + 1) * factor)
        inside = [model.decoder.levels(value)[:, :, rows] for value in (h, other)]
        assert torch.equal(*inside)


def test_impossible_pieces_are_one_line():
    with pytest.raises(UserError, match="tile 0: must be at least 1"):
        Pieces(tile=0)
