"""What a masked decoder sees, what its training hides and counts, and what is said of its likelihood."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from lvt import config as configuration
from lvt.config import MaskedConfig
from lvt.files import build_transformer, load_transformer_weights
from lvt.generate import generate_codes
from lvt.masked import (
    Hidden,
    SliceView,
    given_frames,
    hide,
    masked_counts,
    masked_loss,
    masked_nats,
    order_nats,
    random_order_nats,
    training_mask,
    with_random_codes,
)
from lvt.transformer import VideoTransformer, clip_nats
from tests.lvt.masked_toys import masks_of_size, random_rule, rule_of_joint, toy_model
from tests.lvt.test_config import CONFIGS
from tests.lvt.test_generate import STRIDES, random_model
from training.randomness import SampleNoise
from videodata.errors import UserError

CLIP_SLICE = {"STRIDE": (1, 1, 1), "KERNEL": (1, 1, 1), "BLOCKS_E": [], "N_HEAD_E": []}  # the slice is the clip


def masked_model(name, masked=None, **options):
    """`random_model` with a masked decoder; the name "clip" has one slice for all."""
    if name == "clip":
        name, options = "spatial", {**CLIP_SLICE, **options}
    return random_model(name, DECODER="masked", MASKED=masked or {}, **options)


def seen_slice(name, seed=3):
    """A masked model, random codes and encoded context of its last slice, and a random mask of half of it."""
    model, clip = masked_model(name)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(11, (2, 2, *clip), generator=generator)
    index = torch.full((2,), model.config.n_slices - 1)
    context, own = model.slice_inputs(codes, index)
    encoded = model.encoder(context, index)
    return model, own, encoded, torch.rand(own[:, 0].shape, generator=generator) < 0.5


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp"])
def test_every_pass_keeps_some_and_the_last_one_all(schedule):
    """At least one code per pass, all of them in the end, one each where there are as many passes as codes."""
    for positions in (1, 2, 3, 7, 64, 100, 257, 1000):
        for steps in range(1, positions + 1):
            left = masked_counts(positions, steps, schedule)
            kept = [before - after for before, after in zip([positions, *left], left, strict=False)]
            assert len(left) == steps and left[-1] == 0 and min(kept) >= 1
        assert set(kept) == {1}
        assert masked_counts(positions, positions + 5, schedule) == left


def test_the_schedules_keep_what_is_written_of_them():
    """Of 256 codes in 8 passes."""
    kept = {}
    for name in ("cosine", "uniform", "exp"):
        left = [256, *masked_counts(256, 8, name)]
        kept[name] = [before - after for before, after in itertools.pairwise(left)]
    assert kept["cosine"] == [5, 15, 24, 31, 39, 45, 48, 49]
    assert kept["uniform"] == [32] * 8
    assert kept["exp"] == [2, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("name", [*STRIDES, "clip"])
def test_a_masked_decoder_sees_what_is_visible_on_all_sides(name):
    """A visible code later in raster order changes the logits of a masked position before it."""
    model, codes, encoded, _ = seen_slice(name)
    mask = torch.zeros_like(codes[:, 0], dtype=torch.bool)
    mask[:, 0, 0, 0] = True
    before = model.predict(model.decoder(codes, encoded, mask), codes)
    changed = codes.clone()
    changed[:, :, 0, 1, 1] = (changed[:, :, 0, 1, 1] + 1) % 11
    after = model.predict(model.decoder(changed, encoded, mask), changed)
    assert (before != after)[:, :, :, 0, 0, 0].any()


@pytest.mark.parametrize("name", [*STRIDES, "clip"])
def test_the_code_under_a_mask_is_not_seen(name):
    """It changes no other position, and of its own only the codebooks after it, by the head."""
    model, codes, encoded, mask = seen_slice(name)
    before = model.predict(model.decoder(codes, encoded, mask), codes)
    for t, h, w in mask[0].nonzero()[:3].tolist():
        changed = codes.clone()
        changed[0, 0, t, h, w] = (changed[0, 0, t, h, w] + 1) % 11
        assert torch.equal(model.decoder(changed, encoded, mask), model.decoder(codes, encoded, mask))
        differs = (before != model.predict(model.decoder(changed, encoded, mask), changed))[0].any(1)  # (C, t, h, w)
        assert differs[1, t, h, w] and int(differs.sum()) == 1


def test_only_masked_codes_are_learnt():
    """LOSS masked: no gradient from what is visible; all: from everything that is not given."""
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 7, 2, 3, 4, requires_grad=True)
    targets = torch.randint(7, (3, 2, 2, 3, 4))
    mask = torch.rand(3, 2, 3, 4) < 0.5
    hidden = Hidden(targets, targets, mask, targets, mask)
    loss, nats = masked_loss(logits, hidden, 0.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    visible = ~mask[:, None, None].expand_as(gradient)
    assert not gradient[visible].any() and gradient[~visible].all()
    chosen = -logits.detach().log_softmax(2).gather(2, targets[:, :, None])[:, :, 0].mean(1)
    assert_close(loss.detach(), torch.stack([chosen[b][mask[b]].mean() for b in range(3)]).mean())
    assert_close(nats, loss.detach())
    smooth, same = masked_loss(logits, hidden, 0.1)
    mixed = 0.9 * chosen - 0.1 * logits.detach().log_softmax(2).mean((1, 2))
    assert_close(smooth.detach(), torch.stack([mixed[b][mask[b]].mean() for b in range(3)]).mean())
    assert_close(same, nats)


@pytest.mark.parametrize("loss", ["masked", "all"])
def test_what_counts_in_a_training_step(loss):
    """Given frames are never hidden and never counted; the loss is of the mask, or of all that is not given."""
    model, clip = masked_model("clip", {"LOSS": loss, "CONTEXT_DROP": 0.0, "TOKEN_DROPOUT": 0.5}, N_PRIME=3)
    codes = torch.randint(11, (60, 2, *clip), generator=torch.Generator().manual_seed(1))
    hidden = hide(model, codes, torch.zeros(60, 1, dtype=torch.int64), SampleNoise(0, range(60)))
    assert torch.equal(hidden.targets, codes)
    given = [next(t for t in range(clip[0]) if row[t].any()) for row in hidden.mask | hidden.counted]
    assert {3} < set(given) <= set(range(1, clip[0])) and 20 < sum(count == 3 for count in given) < 50
    for row, count in enumerate(given):
        assert not hidden.mask[row, : count if loss == "all" else 1].any()
        own = hidden.counted[row]
        assert torch.equal(own, hidden.mask[row]) if loss == "masked" else own[count:].all() and not own[:count].any()
    differs = (hidden.codes != codes).any(1)
    assert differs.any() and not (differs & hidden.counted).any()


def test_dropped_contexts_hide_the_given_codes_too():
    """In such a clip nothing is visible but what is made here, and what was given is no target."""
    model, clip = masked_model("clip", {"CONTEXT_DROP": 0.3}, N_PRIME=3)
    codes = torch.randint(11, (200, 2, *clip), generator=torch.Generator().manual_seed(1))
    hidden = hide(model, codes, torch.zeros(200, 1, dtype=torch.int64), SampleNoise(0, range(200)))
    blind = hidden.mask[:, 0].flatten(1).all(1)  # the first frame is always given
    assert 0.2 < blind.float().mean() < 0.4 and not hidden.counted[:, 0].any()
    frame, clip = masked_model("single-frame", {"CONTEXT_DROP": 0.3})
    shown = hide(frame, codes, torch.full((200, 1), 4), SampleNoise(0, range(200))).context
    assert 0.2 < (shown == -1).flatten(1).all(1).float().mean() < 0.4


def test_a_training_hides_as_much_as_the_cosine_says():
    """2 / pi in the mean, at least one position, and exactly the count for each ratio."""
    draws = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    scores = torch.rand(10_000, 1, 10, 20, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    shares = training_mask(everywhere, draws, scores, MaskedConfig()).float().mean((1, 2, 3))
    assert abs(float(shares.mean()) - 2 / math.pi) < 0.01
    assert_close(shares * 200, (torch.cos(draws.double() * math.pi / 2) * 200).floor().clamp(min=1).float())
    for places in (1, 2):
        some = training_mask(everywhere[:, :, :1, :places], draws, scores[:, :, :1, :places], MaskedConfig())
        assert some.flatten(1).sum(1).min() == 1


def test_a_training_hides_what_the_passes_leave():
    """As many as the sampler finds masked before each of its passes, of every clip's own codes, each pass as often."""
    draws = torch.rand(9_000, generator=torch.Generator().manual_seed(0))
    scores = torch.rand(9_000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    maskable = torch.ones_like(scores, dtype=torch.bool)
    maskable[4_500:, :, 4:] = False
    mask = training_mask(maskable, draws, scores, MaskedConfig(steps=3, masks="passes"))
    assert not (mask & ~maskable).any()
    counts = mask.flatten(1).sum(1)
    for own, places in ((counts[:4_500], 64), (counts[4_500:], 32)):
        found, often = own.unique(return_counts=True)
        assert sorted(found.tolist()) == sorted([places, *masked_counts(places, 3, "cosine")[:-1]])
        assert (often / 4_500 - 1 / 3).abs().max() < 0.03


def test_the_noise_of_a_training_belongs_to_each_clip():
    """Whatever else is in the batch."""
    model, clip = masked_model("spatio-temporal", {"CONTEXT_DROP": 0.5}, N_PRIME=1)
    codes = torch.randint(11, (4, 2, *clip), generator=torch.Generator().manual_seed(1))
    index = torch.tensor([[0, 3]]).expand(4, -1)
    together = hide(model, codes, index, SampleNoise(5, [9, 8, 7, 6]))
    alone = hide(model, codes[2:3], index[:1], SampleNoise(5, [7]))
    for name, values in vars(alone).items():
        assert torch.equal(values, getattr(together, name)[4:6]), name


def test_token_dropout_and_given_frames():
    """Up to the share of a clip, uniform over codes; slices of one frame keep to N_PRIME."""
    codes = torch.zeros(500, 1, 4, 5, 5, dtype=torch.int64)
    noisy = with_random_codes(codes, 8, 0.4, SampleNoise(0, range(500)))
    assert abs(float((noisy != 0).float().mean()) - 0.2 * 7 / 8) < 0.01
    counts = torch.bincount(noisy.flatten(), minlength=8)[1:].float()
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    assert with_random_codes(codes, 8, 0.0, SampleNoise(0, range(500))) is codes
    assert given_frames(8, (1, 6, 8), 8, 0, 1.0, SampleNoise(0, range(9))).tolist() == [0] * 9
    for share, often in ((0.0, 0), (0.5, 100), (1.0, 200)):
        drawn = given_frames(8, (4, 6, 8), 2, 7, share, SampleNoise(0, range(200)))  # 7 is never drawn
        assert abs(int((drawn < 7).sum()) - often) < 20 and set(drawn.tolist()) <= set(range(1, 8))
        assert share < 1 or set(drawn.tolist()) == set(range(1, 7))


def joint_of(places, codebooks, size, seed=0):
    """A random joint distribution, float64."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(*[size] * places * codebooks, generator=generator, dtype=torch.float64) ** 3
    return table / table.sum()


def enumerated_bound(model, codes):
    """The bound with every mask of every size."""
    places = codes[0, 0].numel()
    sizes = []
    for count in range(1, places + 1):
        masks = masks_of_size(places, count)
        view = SliceView(0, codes.expand(len(masks), -1, -1, -1, -1), None, torch.ones(1, 1, places, dtype=torch.bool))
        sizes.append(order_nats(view.nats(model, masks), masks, places).mean())
    return float(torch.stack(sizes).mean())


def order_averaged_nats(model, codes):
    """-log of the mean over orders of the product of what the model says of each code in its turn."""
    places, found = codes[0, 0].numel(), []
    for order in itertools.permutations(range(places)):
        mask, nats = torch.ones(1, 1, 1, places, dtype=torch.bool), 0.0
        for place in order:
            view = SliceView(0, codes, None, mask[0])
            nats += float(view.nats(model, mask)[0, 0, 0, place])
            mask[0, 0, 0, place] = False
        found.append(nats)
    return -float(torch.logsumexp(-torch.tensor(found, dtype=torch.float64), 0) - math.log(len(found)))


@pytest.mark.parametrize("independent", [False, True])
def test_the_bound_is_exact_where_all_orders_agree(independent):
    """For the conditionals of one joint distribution, and for a model that ignores what it sees."""
    joint = joint_of(3, 2, 2)
    if independent:
        shares = torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
        shares = shares / shares.sum(1, keepdim=True)
        joint = torch.einsum("a,b,c,d,e,f->abcdef", *shares)
    model = toy_model(3, 2, 2, rule_of_joint(joint, 3, 2))
    for x in ((0, 1, 1, 0, 0, 1), (1, 1, 0, 0, 1, 0)):
        codes = torch.tensor(x).view(1, 1, 1, 3, 2).movedim(-1, 1)
        assert enumerated_bound(model, codes) == pytest.approx(-math.log(float(joint[x])), abs=1e-5)


def test_the_bound_lies_above_the_average_over_orders():
    """For conditionals that contradict each other; the estimate from drawn masks agrees with all of them."""
    model = toy_model(3, 1, 3, random_rule(3, 0))
    gaps = []
    for x in ((0, 1, 2), (2, 2, 0), (1, 0, 1)):
        codes = torch.tensor(x).view(1, 1, 1, 1, 3)
        gaps.append(enumerated_bound(model, codes) - order_averaged_nats(model, codes))
        nats, variance, count = random_order_nats(model, codes.expand(400, -1, -1, -1, -1), 0, range(400), 16)
        assert count == 3 and float(nats.mean()) == pytest.approx(enumerated_bound(model, codes), abs=0.05)
        # Draws of one slice are stratified: their own variance can only be less than what is said of it.
        assert 0 < float(nats.var()) <= float(variance.mean())
    assert min(gaps) > -1e-6 and max(gaps) > 1e-3


def test_masked_scores_have_their_masks_from_the_seed():
    """And count what is hidden, over all slices and codebooks."""
    for name, slices in (("single-frame", 5), ("clip", 1)):
        model, clip = masked_model(name)
        codes = torch.randint(11, (2, 2, *clip), generator=torch.Generator().manual_seed(1))
        nats, right, count = masked_nats(model, codes, 3, [4, 5], 0.5)
        assert count == 5 * 24 * 2 and right.max() <= count and slices
        assert torch.equal(masked_nats(model, codes[1:], 3, [5], 0.5)[1], right[1:])
        assert not torch.equal(masked_nats(model, codes, 3, [6, 7], 0.5)[0], nats)
        assert masked_nats(model, codes, 3, [4, 5], 1.0)[2] == 5 * 48 * 2


def test_a_masked_model_has_no_exact_likelihood():
    """Neither bits per code nor logits in an order."""
    model, clip = masked_model("single-frame")
    codes = torch.zeros(1, 2, *clip, dtype=torch.int64)
    for call in (lambda: clip_nats(model, codes, 1), lambda: model.clip_logits(codes)):
        with pytest.raises(UserError, match="VT.DECODER masked"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ORDER": "raster"}, r"VT.MASKED.ORDER 'raster': use confidence, random, spread"),
        ({"SCHEDULE": "linear"}, r"VT.MASKED.SCHEDULE 'linear': use cosine, uniform, exp"),
        ({"STEPS": 0}, r"VT.MASKED.STEPS must be at least 1, found 0"),
        ({"CHOICE_TEMPERATURE": float("inf")}, r"VT.MASKED.CHOICE_TEMPERATURE must be at least 0, found inf"),
        ({"CHOICE_TEMPERATURE": -1.0}, r"VT.MASKED.CHOICE_TEMPERATURE must be at least 0, found -1"),
        ({"TOKEN_DROPOUT": 1.5}, r"VT.MASKED.TOKEN_DROPOUT must be 0 .. 1, found 1.5"),
        ({"LOSS": "some"}, r"VT.MASKED.LOSS 'some'"),
        ({"STEP": 3}, r"VT.MASKED.STEP"),
    ],
)
def test_wrong_settings_name_their_key(change, message):
    with pytest.raises(UserError, match=message):
        masked_model("spatial", change)


def test_an_unknown_decoder_and_weights_of_the_other_one(tmp_path):
    """The key is named in both."""
    with pytest.raises(UserError, match=r"VT.DECODER 'bert': use causal or masked"):
        random_model("spatial", DECODER="bert")
    for own, other in (("causal", "masked"), ("masked", "causal")):
        model, _ = random_model("spatial", DECODER=own)
        torch.save({"model": model.state_dict()}, tmp_path / f"{own}.pth")
        stranger, _ = random_model("spatial", DECODER=other)
        with pytest.raises(UserError, match=f"VT.DECODER {own}, the configuration says {other}"):
            load_transformer_weights(stranger, tmp_path / f"{own}.pth")
        again, _ = random_model("spatial", DECODER=own)
        for parameter in again.parameters():
            parameter.data.zero_()
        load_transformer_weights(again, tmp_path / f"{own}.pth")
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_original_state_of_a_masked_model_loads():
    """The tables that the published layout has beside the weights are left out again."""
    model, _ = masked_model("spatial")
    state = model.original_state()["netG"]
    assert "decoder.mask_embedding" in state and not any(key.endswith(".mask") for key in state)
    VideoTransformer.load_state_dict(masked_model("spatial")[0], state, strict=True)


def test_the_configurations_have_the_size_of_their_causal_ones():
    """Same width and number of layers: those for BAIR and Kinetics-600 beside DSFVT."""
    sizes = {}
    for name in ("DSFVT", "Masked-BAIR", "Masked-K600", "Masked-BAIR-clip", "Masked-K600-clip"):
        with torch.device("meta"):
            model = build_transformer(configuration.load_config(CONFIGS / f"{name}.yaml"))
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        assert name == "DSFVT" or model.config.decoder == "masked"
    assert all(0.8 < size / sizes["DSFVT"] < 1.2 for size in sizes.values()), sizes


def test_eight_clips_can_be_learnt_by_heart():
    """Half of the codes are told from the others, and 12 passes continue each clip as it went on."""
    torch.manual_seed(0)
    node = {
        "NC": 2, "NV": 8, "D": 48, "DA": 12, "DE": 24, **CLIP_SLICE, "BLOCKS_D": [(1, 2, 4), (4, 2, 2)],
        "N_HEAD_D": [4, 4], "SHARE_P": False, "N_PRIME": 1, "DECODER": "masked",
        "MASKED": {"STEPS": 12, "CONTEXT_DROP": 0.0, "TOKEN_DROPOUT": 0.0},
    }  # fmt: skip
    model = VideoTransformer(node)
    codes = torch.randint(8, (8, 2, 4, 2, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    index = torch.zeros(8, 2, dtype=torch.int64)  # each clip under two masks
    for step in range(350):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, 2 - step / 175)
        hidden = hide(model, codes, index, SampleNoise(step, range(8)))
        logits = model(hidden.context, hidden.codes, index.flatten(), None, hidden.mask)
        loss, _ = masked_loss(logits, hidden, 1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    _, right, count = masked_nats(model, codes, 1, range(8), 0.5)
    assert float(right.mean() / count) > 0.99
    assert torch.equal(generate_codes(model, codes, 1, seeds=range(8), greedy=True), codes)
