"""Sampling with caches equals sampling without, and randomness belongs to each sample."""

import pytest
import torch

from lvt import generate_codes
from lvt.generate import generate_long
from lvt.transformer import VideoTransformer
from videodata.errors import UserError

FILES = ["vt_dsf", "vt_dss", "vt_dst", "vt_dsf_nc1_sharep", "vt_share_embeddings", "vt_class"]
STRIDES = {  # stride, kernel, decoder blocks, clip (T, H, W)
    "single-frame": ((8, 1, 1), (7, 1, 1), [(1, 6, 4), (1, 3, 4)], (8, 6, 8)),
    "spatial": ((1, 2, 2), (1, 3, 3), [(2, 3, 4), (4, 3, 2)], (8, 6, 8)),
    "spatio-temporal": ((2, 2, 1), (3, 3, 1), [(2, 3, 4), (1, 3, 2)], (8, 6, 8)),
}


def random_model(name, **options):
    """A small model with random weights, and the size of its clips; several blocks per slice, not square."""
    stride, kernel, blocks, clip = STRIDES[name]
    node = {
        "NC": 2, "NV": 11, "D": 24, "DA": 8, "DE": 12, "KERNEL": kernel, "STRIDE": stride, "BLOCKS_E": blocks[:1],
        "N_HEAD_E": [2], "BLOCKS_D": blocks, "N_HEAD_D": [2, 3], "SHARE_P": False, **options,
    }  # fmt: skip
    torch.manual_seed(1)
    model = VideoTransformer(node).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, clip


def greedy_without_cache(model, codes, n_prime):
    """The most likely codes, one position and codebook after the other, the whole clip computed anew for each."""
    clips = codes.clone()
    clips[:, :, n_prime:] = 0
    owner = model_slice_order(model, clips)
    for t, h, w in owner:
        if t < n_prime:
            continue
        for k in range(clips.shape[1]):
            clips[:, k, t, h, w] = model.clip_logits(clips)[:, k, :, t, h, w].argmax(-1)
    return clips


def model_slice_order(model, clips):
    """Positions of the clip in the order in which they are generated."""
    (T, H, W), (st, sh, sw) = clips.shape[2:], model.config.stride
    key = {
        (t, h, w): ((t % st * sh + h % sh) * sw + w % sw, t // st, h // sh, w // sw)
        for t in range(T) for h in range(H) for w in range(W)
    }  # fmt: skip
    return sorted(key, key=key.get)


@pytest.mark.parametrize("name", FILES)
def test_greedy_clips_equal_the_original(load_fixture, name):
    """Generated codes of every published configuration, exactly."""
    fixture = load_fixture(name)
    model = VideoTransformer(fixture.config["VT"])
    model.load_state_dict(fixture.below("state/"))
    n_prime = fixture.config["n_prime_generation"]
    codes = generate_codes(model, fixture["in/codes"], n_prime, greedy=True, class_idx=fixture.get("in/class_idx"))
    assert torch.equal(codes, fixture["out/greedy_codes"])


@pytest.mark.parametrize("n_prime", [0, 3])
@pytest.mark.parametrize("name", STRIDES)
def test_cached_sampling_equals_uncached_sampling(name, n_prime):
    """Argmax codes for all strides, several blocks per slice, clips that are not square, partly known slices.

    The sampled clip's own logits must have their maximum at the sampled codes: since a code's logits depend on
    earlier codes alone, this holds exactly when each code was the maximum at the time it was chosen.
    """
    model, clip = random_model(name)
    codes = torch.randint(11, (2, 2, *clip), generator=torch.Generator().manual_seed(2))
    made = generate_codes(model, codes, n_prime, greedy=True)
    assert torch.equal(made[:, :, :n_prime], codes[:, :, :n_prime])
    chosen = model.clip_logits(made).argmax(2)
    assert torch.equal(chosen[:, :, n_prime:], made[:, :, n_prime:])
    assert len(made[:, :, n_prime:].unique()) > 5


@pytest.mark.parametrize("name", STRIDES)
def test_the_compiled_step_computes_the_same(name, monkeypatch):
    """The step whose shapes do not depend on the position gives the same codes (run here without the compiler)."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, clip = random_model(name)
    codes = torch.randint(11, (2, 2, *clip), generator=torch.Generator().manual_seed(7))
    expected = generate_codes(model, codes, 3, seeds=[1, 2])
    assert torch.equal(generate_codes(model, codes, 3, seeds=[1, 2], compiled=True), expected)


def test_the_shortcut_of_the_previous_test_is_right():
    """On a clip small enough, recomputing everything for every single code gives the same codes."""
    model, _ = random_model("spatio-temporal")
    codes = torch.randint(11, (1, 2, 4, 6, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(generate_codes(model, codes, 3, greedy=True), greedy_without_cache(model, codes, 3))


@pytest.mark.parametrize("name", STRIDES)
def test_a_code_changes_only_later_logits(name):
    """Changing a code leaves its own logits, those before it in its slice and those of earlier slices as they are."""
    model, clip = random_model(name)
    codes = torch.randint(11, (1, 2, *clip), generator=torch.Generator().manual_seed(4))
    order = model_slice_order(model, codes)
    before = model.clip_logits(codes)
    for number in (0, 17, len(order) // 2, len(order) - 1):
        for channel in range(2):
            t, h, w = order[number]
            changed = codes.clone()
            changed[0, channel, t, h, w] = (changed[0, channel, t, h, w] + 1) % 11
            after = model.clip_logits(changed)
            differs = (before != after)[0].any(1)  # (C, T, H, W)
            for earlier in order[:number]:
                assert not differs[(slice(None), *earlier)].any()
            assert not differs[: channel + 1, t, h, w].any()
            if number < len(order) - 1:
                assert differs.any()


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8, "temperature": 1.3}])
def test_a_sample_depends_on_its_own_seed_alone(options):
    """The same seed gives the same clip whatever else is in the batch, and another seed another clip."""
    model, clip = random_model("spatial")
    codes = torch.randint(11, (3, 2, *clip), generator=torch.Generator().manual_seed(5))
    codes[:] = codes[:1]
    together = generate_codes(model, codes, 1, seeds=[7, 8, 7], **options)
    alone = generate_codes(model, codes[:1], 1, seeds=[8], **options)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], alone[0])
    assert (together[0] != together[1]).float().mean() > 0.2


def test_a_generator_makes_sampling_repeatable():
    """Equal generators give equal clips, and the generator moves on."""
    model, clip = random_model("single-frame")
    codes, generator = torch.zeros(2, 2, *clip, dtype=torch.int64), torch.Generator().manual_seed(1)
    first = generate_codes(model, codes, 6, generator=generator)
    second = generate_codes(model, codes, 6, generator=generator)
    again = generate_codes(model, codes, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_long_clips_continue_window_by_window():
    """A roll-out beyond the clip length keeps the known frames and repeats the plain result where that reaches."""
    model, clip = random_model("single-frame")
    codes = torch.randint(11, (1, 2, *clip), generator=torch.Generator().manual_seed(6))
    long = generate_long(model, codes, 2, frames=13, window=8, hop=3, greedy=True)
    assert long.shape[2] == 13
    assert torch.equal(long[:, :, :8], generate_codes(model, codes, 2, greedy=True))
    last = torch.cat([long[:, :, 3:8], torch.zeros_like(codes[:, :, :3])], 2)
    assert torch.equal(long[:, :, 8:11], generate_codes(model, last, 5, greedy=True)[:, :, 5:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(1, 3, 8, 6, 8, dtype=torch.int64)}, "codes must be int64"),
        ({"codes": torch.full((1, 2, 8, 6, 8), 11)}, "codes must be 0 .. 10"),
        ({"codes": torch.zeros(1, 2, 7, 6, 8, dtype=torch.int64)}, "cannot be cut"),
        ({"codes": torch.zeros(1, 2, 8, 5, 8, dtype=torch.int64)}, "do not divide"),
        ({"n_prime": 9}, "known frames"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"precision": "fp8"}, "unknown precision 'fp8': use auto"),
        ({"seeds": [1, 2]}, "one per sample"),
        ({"class_idx": torch.tensor([3]), "model": {"CLASS_NUM": 3}}, "classes must be 0 .. 2"),
        ({"model": {"CLASS_NUM": 3}}, "one class index per clip"),
        ({"class_idx": torch.zeros(1, dtype=torch.int64)}, "CLASS_NUM"),
    ],
)
def test_what_cannot_be_sampled_is_one_clear_line(change, message):
    """Wrong shapes, ranges and options are refused before any work."""
    model, clip = random_model("single-frame", **change.get("model", {}))
    arguments = {"codes": torch.zeros(1, 2, *clip, dtype=torch.int64), "n_prime": 1, **change, "model": model}
    with pytest.raises(UserError, match=message):
        generate_codes(**arguments)
