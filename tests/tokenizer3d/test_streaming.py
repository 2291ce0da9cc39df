"""Streams: equal to the whole clip to the bit however the frames come, with states that belong to the caller."""

import itertools

import pytest
import torch

from tests.tokenizer3d.parity import FRAME_ERROR, LATENT_ERROR, largest, load
from tests.tokenizer3d.tiny import clip, tiny
from tokenizer3d import Tokenizer3D
from tokenizer3d.tiles import Pieces
from videodata.errors import UserError

SHAPES = {"288": 2, "488": 4, "888": 8}


def stream(model: Tokenizer3D, x: torch.Tensor, encode_by: int, decode_by: int, pieces: Pieces | None = None):
    """Latents and frames of a clip that is fed by so many frames, and whose latents are by so many."""
    batch, _, frames, height, width = x.shape
    state = model.init_state(batch, height, width, pieces)
    latents = [model.encode_step(part, state).mode() for part in x.split(encode_by, 2)]
    if state.waiting_frames is not None:
        latents.append(model.flush(state).mode())
    z = torch.cat(latents, 2)
    state = model.init_state(batch, height, width, pieces)
    made = [model.decode_step(part, state) for part in z.split(decode_by, 2)]
    return z, torch.cat([*made, model.flush(state)], 2)[:, :, :frames]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_way_of_feeding_gives_the_same_bits(shape, version):
    """By one frame, one latent, three latents, or all; lengths that fit and lengths that do not."""
    model, factor = tiny(shape, version=version), SHAPES[shape]
    for frames in (1, 2, 1 + 2 * factor, 18):
        x = clip(frames)
        with torch.no_grad():
            z = model.encode(x).mode()
            made = model.decode(z, frames)
        for encode_by, decode_by in ((1, 1), (factor, 2), (3 * factor, 3), (frames, z.shape[2])):
            streamed = stream(model, x, encode_by, decode_by)
            assert torch.equal(streamed[0], z) and torch.equal(streamed[1], made), (frames, encode_by)


STREAMED = [("kl_causal_488", "t17"), ("kl_causal_488_v1_1", "t33"), ("fsq_causal_888_v1_1", "t17")]


@pytest.mark.parametrize(("name", "case"), STREAMED)
def test_streams_are_those_of_the_published_code(name, case, fixtures):
    model, stored = load(name, fixtures)
    x, dropped = stored[f"{case}.x"], model.temporal_factor - 1 if model.config.is_linear else 0
    z, made = stream(model, x, 3, 1)
    if model.codebook_size:
        assert torch.equal(z, stored[f"{case}.codes"])
    else:
        assert largest(z, stored[f"{case}.mean"]) < LATENT_ERROR
    assert largest(made, stored[f"{case}.dec"][:, :, dropped:]) < FRAME_ERROR


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_larger_steps_and_the_whole_clip_agree_up_to_rounding(version):
    model, x = tiny(version=version), clip(18, 24, 40)
    whole = model(x)[1].detach()  # with gradients, at once
    for latents in (1, 2, 3):
        assert largest(stream(model, x, 5, 2, Pieces(step_latents=latents))[1], whole) < 1e-4
        with torch.no_grad():
            assert torch.equal(model(x, pieces=Pieces(latents))[1], stream(model, x, 5, 2, Pieces(latents))[1])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_one_state_serves_both_ways_and_ends_with_the_last_frame(version):
    """Latents are decoded as they come; the end completes what is left, and gives as many frames as came."""
    model = tiny(version=version)
    for frames in (1, 3, 5, 18):
        x = clip(frames, 17, 21)
        state, made = model.init_state(1, 17, 21), []
        for part in x.split(3, 2):
            made.append(model.decode_step(model.encode_step(part, state), state))
        made.append(model.flush(state))
        with torch.no_grad():
            assert torch.equal(torch.cat(made, 2), model(x)[1])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_interleaved_streams_do_not_meet(version):
    """Of other sizes and batches; and the encoder by itself knows nothing of any stream."""
    model = tiny(version=version)
    clips = [clip(9, 16, 16, batch=2), clip(9, 24, 32, seed=1)]
    alone = [stream(model, x, 2, 1) for x in clips]
    with torch.no_grad():
        before = model.encoder(clips[1].permute(0, 2, 3, 4, 1))
        states = [model.init_state(x.shape[0], *x.shape[3:]) for x in clips]
        latents = [[], []]
        for parts in zip(*(x.split(2, 2) for x in clips), strict=True):
            for number, part in enumerate(parts):
                latents[number].append(model.encode_step(part, states[number]).mode())
        latents = [torch.cat(parts, 2) for parts in latents]
        assert all(torch.equal(found, z) for found, (z, _) in zip(latents, alone, strict=True))
        states, made = [model.init_state(x.shape[0], *x.shape[3:]) for x in clips], [[], []]
        for frame, number in itertools.product(range(3), range(2)):
            made[number].append(model.decode_step(latents[number][:, :, frame : frame + 1], states[number]))
        for number in range(2):
            made[number].append(model.flush(states[number]))
            assert torch.equal(torch.cat(made[number], 2), alone[number][1])
        assert torch.equal(model.encoder(clips[1].permute(0, 2, 3, 4, 1)), before)


def test_a_state_can_be_copied_and_continued_twice():
    model, x = tiny(version="1.1"), clip(9)
    state = model.init_state(1, 16, 24)
    model.decode_step(model.encode_step(x[:, :, :6], state), state)
    copy = state.to("cpu")
    rest = [model.decode_step(model.encode_step(x[:, :, 6:], each), each) for each in (state, copy)]
    assert torch.equal(*rest) and torch.equal(model.flush(state), model.flush(copy))


@pytest.mark.parametrize("settings", [{}, {"version": "1.1"}, {"regularizer": "fsq", "levels": (8,) * 4}], ids=str)
def test_streams_of_iterators(settings):
    """Frame by frame or in parts; what comes out joins to the whole clip."""
    model, x = tiny(**settings), clip(11, 17, 21)
    with torch.no_grad():
        expected = model(x)[1]
    for parts in (list(x[0].unbind(1)), list(x.split(4, 2))):
        made = list(model.decode_stream(model.encode_stream(parts), num_frames=11, size=(17, 21)))
        assert torch.equal(torch.cat(made, 2), expected)
    assert list(model.decode_stream(model.encode_stream([]))) == []


def test_what_cannot_stream_says_so():
    model = tiny()
    state = model.init_state(1, 16, 16)
    with pytest.raises(UserError, match="do not fit the stream"):
        model.encode_step(clip(2, 16, 24), state)
    with pytest.raises(UserError, match="do not fit a stream of 1"):
        model.decode_step(torch.zeros(2, 4, 1, 2, 2), state)
    with pytest.raises(UserError, match="cannot stream"):
        tiny(causal=False).init_state(1, 16, 16)


@pytest.mark.parametrize(("version", "look_ahead"), [("1.0", 1), ("1.1", 2)])
def test_later_frames_and_latents_change_nothing_before(version, look_ahead):
    """Frames from 1 + f k on leave latents 0 to k as they are, latents from k on the frames of those before (1.1: of
    those before the last one, which it interpolates with the next).
    """
    model, x, f, k = tiny(version=version), clip(17), 4, 2
    other = torch.cat([x[:, :, : 1 + f * k], -x[:, :, 1 + f * k :]], 2)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            a, b = model.encode(x).mode(), model.encode(other).mode()
            assert torch.equal(a[:, :, : k + 1], b[:, :, : k + 1]) and not torch.equal(a[:, :, k + 1], b[:, :, k + 1])
            z = torch.cat([a[:, :, :3], -a[:, :, 3:]], 2)
            first, second = model.decode(a), model.decode(z)
            kept = 1 + f * (3 - look_ahead)
            assert torch.equal(first[:, :, :kept], second[:, :, :kept])
            assert not torch.equal(first[:, :, : kept + f], second[:, :, : kept + f])


@pytest.mark.parametrize("settings", [{}, {"version": "1.1"}], ids=str)
def test_an_image_is_the_first_frame_of_a_clip(settings):
    model, x = tiny(**settings), clip(9, batch=2)
    with torch.no_grad():
        image, whole = model.encode(x[:, :, 0]).mode(), model.encode(x).mode()
        assert image.shape == (2, 4, 1, 2, 3) and largest(image, whole[:, :, :1]) < 1e-5
        assert largest(model(x[:, :, 0])[1], model(x[:, :, :1])[1][:, :, 0]) == 0
