"""The public class: any length and size, precision, determinism, gradients, and what it refuses."""

import pytest
import torch

from tests.tokenizer3d.parity import largest, load
from tests.tokenizer3d.tiny import clip, tiny
from tokenizer3d.blocks import SpaceUp, TimeUp
from tokenizer3d.latents import Codes, Posterior
from videodata.errors import UserError

FSQ = {"regularizer": "fsq", "levels": (8, 8, 8, 8)}
KINDS = [{}, {"version": "1.1"}, {"causal": False}, FSQ]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_any_length_and_size_comes_back_as_it_was(settings):
    model = tiny(**settings)
    with torch.no_grad():
        for frames in range(1, 21):
            x = clip(frames, 5, 7)
            assert model(x)[1].shape == x.shape
        for height, width in ((30, 44), (17, 17), (5, 7)):
            x = clip(6, height, width)
            z, made, _ = model(x)
            assert made.shape == x.shape and z.shape[3:] == (-(-height // 8), -(-width // 8))
            assert model(x[0])[1].shape == x[0].shape
            assert model(x[:, :, 0])[1].shape == x[:, :, 0].shape


def test_what_was_padded_is_not_noticed_in_front():
    """Frames and pixels of a clip that fits are the same, whatever is repeated after them."""
    model, x = tiny(), clip(9)
    with torch.no_grad():
        a, b = model.encode(x).mode(), model.encode(x[:, :, :6]).mode()
        assert torch.equal(a[:, :, :2], b[:, :, :2])


@pytest.mark.parametrize(("settings", "frames", "near"), [({}, 18, "17 or 21"), ({"causal": False}, 3, "4")])
def test_strict_names_the_nearest_lengths(settings, frames, near):
    model = tiny(**settings)
    with pytest.raises(UserError, match=f"the nearest numbers that do are {near}$"):
        model.encode(clip(frames), length_mode="strict")
    for length in model.valid_lengths(frames):
        model(clip(length), length_mode="strict")
    with pytest.raises(UserError, match="multiples of 8, found 12 x 16"):
        model.encode(clip(5 if model.is_causal else 4, 12, 16), length_mode="strict")


def test_valid_lengths():
    causal, other = tiny(), tiny(causal=False)
    assert (
        causal.valid_lengths(17) == (17,) and causal.valid_lengths(18) == (17, 21) and causal.valid_lengths(1) == (1,)
    )
    assert other.valid_lengths(16) == (16,) and other.valid_lengths(3) == (4,) and other.valid_lengths(17) == (16, 20)


LENGTHS = {  # frames -> latents and frames out of the original, by version
    "1.0": {1: (1, 1), 2: (1, 1), 4: (1, 1), 5: (2, 5), 8: (2, 5), 9: (3, 9), 16: (4, 13), 18: (5, 17), 20: (5, 17)},
    "1.1": {1: (1, 4), 2: (1, 4), 4: (1, 4), 5: (2, 8), 8: (2, 8), 9: (3, 12), 16: (4, 16), 18: (5, 20), 20: (5, 20)},
    "not causal": {4: (1, 4), 7: (1, 4), 8: (2, 8), 17: (4, 16), 20: (5, 20)},
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_original_lengths_are_those_of_the_published_code(kind):
    model = tiny(causal=False) if kind == "not causal" else tiny(version=kind)
    with torch.no_grad():
        for frames, (latents, raw) in LENGTHS[kind].items():
            x = clip(frames, 8, 8)
            z = model.encode(x, length_mode="original").mode()
            assert z.shape[2] == latents and model.decode(z, length_mode="original").shape[2] == raw, frames
            if kind == "1.1":
                assert model(x, length_mode="original")[1].shape == x.shape
    if kind == "not causal":
        with pytest.raises(UserError, match="at least 4 frames"):
            model.encode(clip(3), length_mode="original")


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_calls_repeat_to_the_bit_and_samples_follow_the_generator(settings):
    model, x = tiny(**settings), clip(5)
    with torch.no_grad():
        assert torch.equal(model(x)[1], model(x)[1])
        z, log = model.encode(x, return_reg_log=True)
        assert torch.equal(z, model.encode(x).mode())
        if model.codebook_size:
            assert set(log) == {"indices"} and torch.equal(log["indices"], model.encode(x).indices)
            return
        assert set(log) == {"kl_loss"} and log["kl_loss"] > 0
        draws = [model(x, sample=True, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0][1], draws[1][1]) and not torch.equal(draws[0][1], draws[2][1])
        assert not torch.equal(draws[0][0], z)


def test_tokens_decode_as_their_codes():
    model = tiny(**FSQ)
    with torch.no_grad():
        codes = model.encode(clip(9))
        assert isinstance(codes, Codes) and codes.indices.dtype == torch.int32 and codes.indices.shape == (1, 3, 2, 3)
        made = model.decode(codes)
        assert torch.equal(made, model.decode_indices(codes.indices))
        assert torch.equal(made[:, :, :7], model.decode(codes.indices, 7, decode_from_indices=True))
    assert isinstance(tiny().encode(clip(1)), Posterior) and model.codebook_size == 4096
    with pytest.raises(UserError, match="do not fit a codebook of 4096"):
        model.decode_indices(codes.indices + 4096)
    with pytest.raises(UserError, match="a KL model has no tokens"):
        tiny().decode_indices(codes.indices)


def test_in_training_the_log_has_the_auxiliary_loss():
    model = tiny(**FSQ).train()
    _, _, log = model(clip(5))
    log["aux_loss"].backward()
    assert model.encoder.conv_in.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_gradients_reach_every_weight(settings):
    """Through the whole clip at once, with and without blocks being computed again."""
    grads = []
    for again in (False, True):
        model = tiny(**settings).train()
        model.checkpointing = again
        _, made, _ = model(clip(5), sample=True, generator=torch.Generator().manual_seed(0))
        made.square().mean().backward()
        grads.append({name: value.grad for name, value in model.named_parameters()})
    assert all(value is not None and value.abs().sum() > 0 for value in grads[0].values())
    assert all(torch.equal(value, grads[1][name]) for name, value in grads[0].items())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
@pytest.mark.parametrize("name", ["kl_causal_488", "kl_causal_488_v1_1", "kl_noncausal_488"])
def test_half_precision_is_near_enough(name, dtype, bound, fixtures):
    model, stored = load(name, fixtures)
    case = "t8" if name == "kl_noncausal_488" else "t5"
    model.to(dtype)
    with torch.no_grad():
        found = model.encode(stored[f"{case}.x"]).mean
        made = model.decode(stored[f"{case}.mean"], length_mode="original")
    for value, expected in ((found, stored[f"{case}.mean"]), (made.float(), stored[f"{case}.dec"])):
        assert (value - expected).square().mean().sqrt() < bound * expected.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tokens_of_half_precision_are_codes(dtype, fixtures):
    """The quantiser computes in float32: the codes are exact, and the tokens theirs."""
    model, stored = load("fsq_causal_488", fixtures)
    model.to(dtype)
    with torch.no_grad():
        found = model.encode(stored["t5.x"])
        assert found.codes.dtype == torch.float32 and torch.equal(model.lookup(found.indices), found.codes)
        assert (found.indices == stored["t5.indices"]).float().mean() > 0.7
        assert model.decode(found).isfinite().all()
        model.float()
        with torch.autocast("cpu", dtype):
            found = model.encode(stored["t5.x"])
            made = model.decode(found)
        assert torch.equal(model.lookup(found.indices), found.codes) and made.isfinite().all()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), "floating point"),
        (torch.zeros(1, 4, 5, 16, 16), r"must be \(B, 3, T, H, W\)"),
        (torch.zeros(16, 16), r"must be \(B, 3, T, H, W\)"),
        (torch.zeros(3, 3, 16, 16), "may be a clip or 3 images"),
        (torch.zeros(1, 3, 0, 16, 16), "found"),
    ],
)
def test_what_is_no_clip_is_one_line(x, said):
    with pytest.raises(UserError, match=said):
        tiny().encode(x)


def test_what_is_no_latent_is_one_line():
    model = tiny()
    with pytest.raises(UserError, match=r"must be \(B, 4, T', h, w\)"):
        model.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(UserError, match="stand for 5 frames"):
        model.decode(torch.zeros(1, 4, 2, 2, 2), num_frames=6)
    with pytest.raises(UserError, match="unknown length_mode 'orginal'"):
        model.decode(torch.zeros(1, 4, 2, 2, 2), length_mode="orginal")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not_causal"])
def test_doubling_without_the_repeated_samples_is_the_plain_computation(causal):
    """Four 2x2 kernels for nearest and 3x3, two kernels of two frames for repetition and 3x3x3."""
    model = tiny(causal=causal).double()
    generator = torch.Generator().manual_seed(0)
    space = next(module for module in model.decoder.modules() if isinstance(module, SpaceUp))
    width = space.conv.in_channels
    x = torch.randn(2, 5, 4, 6, width, generator=generator, dtype=torch.float64)
    plain = space.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert largest(space(x), plain) < 1e-12 and largest(space.float()(x.float()).double(), plain) < 1e-5
    time = next(module for module in model.decoder.modules() if isinstance(module, TimeUp))
    x = torch.randn(2, 5, 4, 6, (time.conv.conv if causal else time.conv).in_channels, generator=generator).double()
    share, twice = torch.sigmoid(time.mix_factor), x.repeat_interleave(2, 1)
    plain = share * twice + (1 - share) * time.conv(twice)
    assert largest(time(x), plain) < 1e-12 and largest(time.float()(x.float()).double(), plain.double()) < 1e-5
