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


def both(model, x, pieces):
    """Latents of a clip, and the frames of them."""
    with torch.no_grad():
        z = model.encode(x, pieces=pieces).mode()
        return z, model.decode(z, pieces=pieces)


@pytest.mark.parametrize("rows", [1, 8, 20])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_strips_of_rows_change_nothing(settings, rows):
    model, x = tiny(num_res_blocks=2, **settings), clip(5, 64, 96)
    for a, b in zip(both(model, x, None), both(model, x, Pieces(rows=rows)), strict=True):
        assert largest(a, b) < 1e-5


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_tiles_change_nothing(settings):
    """Tiles of 14 x 14 latents of a frame of 40 x 44, with the halo that the layers need."""
    model = tiny(num_res_blocks=2, **settings)
    x = clip(5 if model.is_causal else 4, 320, 352)
    for a, b in zip(both(model, x, None), both(model, x, TILE), strict=True):
        assert largest(a, b) < 1e-5


def test_a_halo_that_is_too_small_shows():
    model, x = tiny(num_res_blocks=2), clip(1, 320, 352)
    plain, cut = both(model, x, None), both(model, x, Pieces(tile=14, halo=6))
    assert largest(plain[0], cut[0]) > 1e-4 or largest(plain[1], cut[1]) > 1e-4


def test_the_order_of_tiles_changes_no_bit(monkeypatch):
    model, x = tiny(version="1.1"), clip(5, 64, 80)
    pieces = Pieces(tile=3)
    expected = both(model, x, pieces)
    monkeypatch.setattr(tiles, "product", lambda *axes: reversed(list(itertools.product(*axes))))
    assert all(map(torch.equal, both(model, x, pieces), expected))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_streams_in_tiles_and_strips_are_whole_clips_in_tiles_and_strips(version):
    model, x = tiny(version=version), clip(7, 60, 80)
    for pieces in (Pieces(tile=3), Pieces(rows=6), Pieces(tile=4, rows=10, step_latents=2)):
        z, made = both(model, x, pieces)
        state = model.init_state(1, 60, 80, pieces)
        latents = [model.encode_step(part, state).mode() for part in x.split(2, 2)] + [model.flush(state).mode()]
        assert torch.equal(torch.cat(latents, 2), z)
        state = model.init_state(1, 60, 80, pieces)
        frames = [model.decode_step(z, state), model.flush(state)]
        assert torch.equal(torch.cat(frames, 2), made[..., :60, :80])


def test_halos_follow_from_the_layers():
    assert encoder_halo(published("kl_causal_488_4chn")) == 12 and decoder_halo(published("kl_causal_488_4chn")) == 13


@pytest.mark.parametrize("shape", ["488", "444", "888"])
def test_halos_cover_all_that_a_result_depends_on(shape):
    """Changes outside of a tile and its halo change nothing inside."""
    model = tiny(shape)
    factor, side = model.spatial_factor, 32
    x, y = clip(1, side * factor, 8 * factor), 16
    other, reach = x.clone(), encoder_halo(model.config)
    other[:, :, :, : (y - reach) * factor] *= -1
    other[:, :, :, (y + 1 + reach) * factor :] *= -1
    with torch.no_grad():
        inside = [model.encoder.levels(value.permute(0, 2, 3, 4, 1))[:, :, y] for value in (x, other)]
        assert torch.equal(*inside)
        h = torch.randn(1, 1, side, 8, model.config.width(3), generator=torch.Generator().manual_seed(0))
        other, reach = h.clone(), decoder_halo(model.config)
        other[:, :, : y - reach] *= -1
        other[:, :, y + 1 + reach :] *= -1
        rows = slice(y * factor, (y + 1) * factor)
        inside = [model.decoder.levels(value)[:, :, rows] for value in (h, other)]
        assert torch.equal(*inside)


def test_impossible_pieces_are_one_line():
    with pytest.raises(UserError, match="tile 0: must be at least 1"):
        Pieces(tile=0)
