"""Masked parallel decoding draws what it should, keeps what it has kept, and depends on each sample's seed alone."""

import itertools
import logging
import math

import pytest
import torch

from lvt.generate import generate_codes, generate_long
from lvt.masked import masked_counts
from lvt.masked_sampler import spread_ranks
from lvt.sampling import SamplingRule, gumbel
from lvt.subscale import put_slice, slice_ids, take_slices
from tests.lvt.masked_toys import rule_of_joint, toy_model
from tests.lvt.test_generate import STRIDES
from tests.lvt.test_masked import joint_of, masked_model
from tests.training import processes
from training.randomness import derive_seed
from videodata.errors import UserError

NAMES = [*STRIDES, "clip"]
SMALL = {"single-frame": (8, 6, 4), "spatial": (4, 6, 4), "spatio-temporal": (4, 6, 4), "clip": (4, 6, 4)}


def random_codes(clip, count=2, seed=2):
    return torch.randint(11, (count, 2, *clip), generator=torch.Generator().manual_seed(seed))


def passes_of(model):
    """Collects the masks (B, n) of all calls of the decoder."""
    masks = []
    model.decoder.register_forward_pre_hook(lambda module, given: masks.append(given[2].flatten(1).clone()))
    return masks


def keyed(*shape, key):
    """Uniform numbers that belong to a key, none of them 0."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(derive_seed(*key))).clamp(min=2**-25)


def one_at_a_time(model, codes, n_prime, seeds, temperature):
    """Confidence, one position per pass, written out: each pass computes everything and keeps the best position."""
    clips, config = codes.clone(), model.config
    clips[:, :, n_prime:] = 0
    ids = slice_ids(tuple(codes.shape[2:]), config.stride)
    frame = codes.shape[3] * codes.shape[4]
    for number, own in enumerate(ids.flatten(1)):
        unknown = [place for place, cell in enumerate(own.tolist()) if cell // frame >= n_prime]
        for row, seed in enumerate(seeds):
            clip, left, steps = clips[row : row + 1], set(unknown), len(unknown)
            for step in range(1, steps + 1):
                index = torch.tensor([number])
                context, values = model.slice_inputs(clip, index)
                mask = torch.tensor([place in left for place in range(len(own))]).view(1, *values.shape[2:])
                features = model.decoder(values, model.encoder(context, index), mask).flatten(1, 3)[0]
                noise = [keyed(len(own), 11, key=(seed, "masked", number, step, k)) for k in range(2)]
                u = keyed(len(own), key=(seed, "masked", number, step, "order"))
                best, chosen = -math.inf, None
                for place in sorted(left):
                    drawn, confidence = [], 0.0
                    for k in range(2):
                        earlier = torch.tensor(drawn, dtype=torch.int64)
                        y = model.ch_predictor.layer_norm(features[place])
                        hidden = model.ch_predictor.hidden(k, y, earlier)
                        logits = model.ch_predictor.logits(k, hidden, model.decoder.ch_embedder[k].weight)
                        drawn.append(int((logits - (-noise[k][place].log()).log()).argmax()))
                        confidence += logits.log_softmax(-1)[drawn[-1]].item()
                    score = confidence + temperature * (1 - step / steps) * -math.log(-math.log(float(u[place])))
                    if score > best:
                        best, chosen = score, (place, drawn)
                place, drawn = chosen
                values = take_slices(clip, config.stride, index)
                values.flatten(2)[0, :, place] = torch.tensor(drawn)
                put_slice(clip, config.stride, number, values)
                left.remove(place)
    return clips


@pytest.mark.parametrize("temperature", [0.0, 4.5])
@pytest.mark.parametrize("name", ["single-frame", "spatio-temporal", "clip"])
def test_one_code_per_pass_equals_the_plain_loop(name, temperature):
    """As many passes as codes, by confidence."""
    model, _ = masked_model(name, {"STEPS": 1000, "CHOICE_TEMPERATURE": temperature})
    codes, given = random_codes(SMALL[name]), SMALL[name][0] - 1
    made = generate_codes(model, codes, given, seeds=[3, 4])
    assert torch.equal(made, one_at_a_time(model, codes, given, [3, 4], temperature))
    assert len(made[:, :, given:].unique()) > 5


@pytest.mark.parametrize("order", ["confidence", "random", "spread"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_on_its_own_seed_alone(name, order):
    """Twice the same, alone or in a batch, in any place; other seeds give other clips."""
    model, clip = masked_model(name, {"STEPS": 5, "ORDER": order})
    codes = random_codes(clip, 4)
    together = generate_codes(model, codes, 2, seeds=[7, 8, 9, 7])
    assert torch.equal(generate_codes(model, codes, 2, seeds=[7, 8, 9, 7]), together)
    places = [2, 0, 3, 1]
    mixed = generate_codes(model, codes[places], 2, seeds=[9, 7, 7, 8])
    assert torch.equal(mixed, together[places])
    assert torch.equal(generate_codes(model, codes[1:2], 2, seeds=[8]), together[1:2])
    assert (generate_codes(model, codes, 2, seeds=[1, 2, 3, 4]) != together)[:, :, 2:].float().mean() > 0.2


def codes_with_and_without_compiler():
    compiler = torch.compile
    torch.compile = lambda function, **options: compiler(function, backend="eager", **options)
    model, clip = masked_model("single-frame", {"STEPS": 4})
    codes = random_codes(clip)
    plain, compiled = (generate_codes(model, codes, 6, seeds=[1, 2], compiled=way) for way in (False, True))
    assert torch.equal(plain, compiled)


@pytest.mark.slow
def test_a_compiled_decoder_gives_the_same_codes():
    """Traced, and run without the code generator, which takes a minute. In a process of its own: the compiler starts
    threads, after which no process can be forked that computes gradients.
    """
    assert processes.status_of(codes_with_and_without_compiler) == 0


@pytest.mark.parametrize("name", NAMES)
def test_given_frames_stay_and_the_rest_is_not_looked_at(name):
    """Whatever the input holds after them; all frames given: the input itself, without a pass."""
    model, clip = masked_model(name, {"STEPS": 3})
    codes = random_codes(clip)
    made = generate_codes(model, codes, 3, seeds=[1, 2])
    assert torch.equal(made[:, :, :3], codes[:, :, :3])
    garbage = codes.clone()
    garbage[:, :, 3:] = 10 - garbage[:, :, 3:]
    assert torch.equal(generate_codes(model, garbage, 3, seeds=[1, 2]), made)
    masks = passes_of(model)
    assert torch.equal(generate_codes(model, codes, clip[0], seeds=[1, 2]), codes) and not masks
    invented = generate_codes(model, codes, 0, seeds=[1, 2])
    assert int(invented.min()) >= 0 and int(invented.max()) < 11


@pytest.mark.parametrize("order", ["confidence", "random", "spread"])
@pytest.mark.parametrize("name", NAMES)
def test_every_pass_keeps_its_number_for_good(name, order):
    """As many passes per slice as asked, exactly as many codes masked as planned, none masked again."""
    model, clip = masked_model(name, {"STEPS": 6, "ORDER": order})
    masks, shown = passes_of(model), []
    model.decoder.register_forward_pre_hook(lambda module, given: shown.append(given[0].flatten(2).clone()))
    made = generate_codes(model, random_codes(clip), 3, seeds=[1, 2])
    counts = [int(mask[0].sum()) for mask in masks]
    starts = [number for number in range(len(masks)) if number == 0 or counts[number] >= counts[number - 1]]
    assert len(starts) == (5 if name == "single-frame" else model.config.n_slices)
    for start, end in itertools.pairwise([*starts, len(masks)]):
        assert end - start == 6
        plan = [counts[start], *masked_counts(counts[start], 6, "cosine")]
        for number in range(start, end):
            assert (masks[number].sum(1) == plan[number - start]).all()
        for number in range(start + 1, end):
            assert not (masks[number] & ~masks[number - 1]).any()
            kept = ~masks[number - 1][:, None].expand_as(shown[number])
            assert torch.equal(shown[number][kept], shown[number - 1][kept])
    assert int(made.min()) >= 0 and int(made.max()) < 11


def test_of_equal_codes_the_earlier_ones_are_kept():
    """All logits alike: exactly as many stay masked as planned, the last ones in raster order."""
    model, clip = masked_model("single-frame", {"STEPS": 5, "CHOICE_TEMPERATURE": 0.0})
    for parameter in model.ch_predictor.P.parameters():
        parameter.data.zero_()
    masks = passes_of(model)
    generate_codes(model, random_codes(clip), 7, seeds=[1, 2])
    plan = [48, *masked_counts(48, 5, "cosine")]
    for mask, count in zip(masks, plan, strict=False):
        assert mask.sum(1).tolist() == [count, count] and mask[:, 48 - count :].all()


def test_more_passes_than_codes_are_told(caplog):
    """There is one for each code then."""
    model, clip = masked_model("single-frame", {"STEPS": 100})
    masks = passes_of(model)
    with caplog.at_level(logging.INFO):
        generate_codes(model, random_codes(clip), 7, seeds=[1, 2])
    assert len(masks) == 48 and "VT.MASKED.STEPS 100" in caplog.text


@pytest.mark.parametrize("name", ["single-frame", "clip"])
def test_guidance_by_context(name):
    """1 is the plain sampler at its price; 2 is led from what is said without context, the given codes included."""
    model, clip = masked_model(name, {"STEPS": 4})
    codes = random_codes(clip)
    plain, masks = generate_codes(model, codes, 6, seeds=[1, 2]), passes_of(model)
    slices = 2 if name == "single-frame" else 1
    assert torch.equal(generate_codes(model, codes, 6, seeds=[1, 2], guidance=1.0), plain)
    assert len(masks) == 4 * slices
    led = generate_codes(model, codes, 6, seeds=[1, 2], guidance=2.0)
    assert len(masks) == 3 * 4 * slices and not torch.equal(led, plain)
    assert torch.equal(led[:, :, :6], codes[:, :, :6])
    configured, _ = masked_model(name, {"STEPS": 4, "GUIDANCE": 2.0})
    assert torch.equal(generate_codes(configured, codes, 6, seeds=[1, 2]), led)
    strict, _ = masked_model(name, {"CONTEXT_DROP": 0.0})
    with pytest.raises(UserError, match="guidance 2 needs"):
        generate_codes(strict, codes, 6, guidance=2.0)
    other = codes.clone()
    other[:, :, :6] = 10 - other[:, :, :6]
    blind = [generate_codes(model, given, 6, seeds=[1, 2], guidance=1e-9) for given in (codes, other)]
    assert torch.equal(blind[0][:, :, 6], blind[1][:, :, 6]), "almost nothing but the view without context"


def test_guidance_by_class_and_its_ramp():
    """Led from "no class"; a ramp begins with the plain sampler, and has no gap where there is one pass alone."""
    classes = {"CLASS_NUM": 3, "CLASS_DROPOUT": 0.5, "N_PRIME": 2}
    codes, labels = random_codes(SMALL["clip"]), torch.tensor([0, 2])
    made = {}
    for ramp, steps in itertools.product((True, False), (1, 4)):
        model, _ = masked_model("clip", {"STEPS": steps, "SCHEDULE": "uniform", "GUIDANCE_RAMP": ramp}, **classes)
        masks = passes_of(model)
        made[ramp, steps] = generate_codes(model, codes, 2, seeds=[1, 2], class_idx=labels, guidance=5.0)
        assert len(masks) == (2 * steps - 1 if ramp and steps > 1 else 2 * steps)
    assert torch.equal(made[True, 1], made[False, 1]) and not torch.equal(made[True, 4], made[False, 4])
    assert torch.equal(
        generate_codes(model, codes, 2, seeds=[1, 2], class_idx=labels, guidance=0.0),
        generate_codes(model, codes, 2, seeds=[1, 2]),
    ), "0 forgets the class, which is what no class is"


def patch_noise(monkeypatch, generator):
    """Noise of many samples at once, from one generator."""

    def uniform(seeds, key, shape):
        return torch.rand(len(seeds), *shape, generator=generator)

    monkeypatch.setattr("lvt.masked_sampler.uniform_noise", uniform)
    monkeypatch.setattr("lvt.masked_sampler.gumbel_noise", lambda *given: gumbel(uniform(*given)))


def test_confidence_sharpens_and_random_order_does_not(monkeypatch):
    """Two independent bits of 0.7: the more confident of two drawn codes is kept first, which makes it 0.805."""
    bits = torch.tensor([0.3, 0.7], dtype=torch.float64)
    joint, generator = bits[:, None] * bits, torch.Generator().manual_seed(0)
    patch_noise(monkeypatch, generator)
    shares = {}
    for order in ("confidence", "random"):
        model = toy_model(2, 1, 2, rule_of_joint(joint, 2, 1), ORDER=order, CHOICE_TEMPERATURE=0.0)
        codes = torch.zeros(200_000, 1, 1, 1, 2, dtype=torch.int64)
        made = generate_codes(model, codes, 0, seeds=range(200_000))
        shares[order] = float(made.float().mean())
    assert shares["confidence"] == pytest.approx(0.805, abs=0.005)
    assert shares["random"] == pytest.approx(0.700, abs=0.005)


@pytest.mark.parametrize("order", ["random", "spread"])
def test_one_code_per_pass_in_random_order_samples_the_joint(order, monkeypatch):
    """A chi-square test over all clips of two positions with two codebooks of three codes."""
    from scipy.stats import chisquare

    joint, generator = joint_of(2, 2, 3, seed=5), torch.Generator().manual_seed(1)
    patch_noise(monkeypatch, generator)
    model = toy_model(2, 2, 3, rule_of_joint(joint, 2, 2), ORDER=order)
    made = generate_codes(model, torch.zeros(50_000, 2, 1, 1, 2, dtype=torch.int64), 0, seeds=range(50_000))
    flat = made.flatten(2).transpose(1, 2).flatten(1) @ torch.tensor([27, 9, 3, 1])
    found = torch.bincount(flat, minlength=81).double()
    likely = joint.flatten() * 50_000
    rare = likely < 5  # what is expected less often is counted together
    groups = [(a[~rare].tolist() + [float(a[rare].sum())]) for a in (found, likely)]
    assert len(groups[0]) > 30 and chisquare(*groups).pvalue > 1e-3


def test_the_spread_order_soon_has_been_everywhere():
    """Each position once, and the first ones far apart."""
    for size in ((1, 8, 8), (4, 6, 8), (16, 8, 8), (1, 1, 1)):
        ranks = spread_ranks(size)
        assert sorted(ranks.tolist()) == list(range(len(ranks)))
    first = (spread_ranks((1, 8, 8)) < 16).view(8, 8).nonzero().double()
    distances = torch.cdist(first, first) + torch.eye(16) * 9
    assert float(distances.min(1).values.mean()) > 1.3, "neighbours would have 1"
    assert all((spread_ranks((1, 8, 8)) < 16).view(2, 4, 2, 4).any(3).any(1).flatten())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hop", [1, 3])
def test_long_clips_window_by_window(name, hop):
    """The length that was asked for, behind the given frames; random seeds differ from window to window."""
    model, clip = masked_model(name, {"STEPS": 2})
    window = clip[0] if STRIDES.get(name, ((1,),))[0][0] > 1 else 4
    codes = random_codes((window, *clip[1:]))
    made = generate_long(model, codes, 3, window + 4, window, hop, seeds=[1, 2])
    assert made.shape == (2, 2, window + 4, *clip[1:])
    assert torch.equal(made[:, :, :3], codes[:, :, :3])
    assert not torch.equal(made[:, :, -1], made[:, :, -2])


def test_sampling_rules_apply_and_progress_is_told():
    """Greedy and top-1 draw the likeliest code; every pass is reported."""
    model, clip = masked_model("single-frame", {"STEPS": 3, "ORDER": "spread"})
    codes, seen = random_codes(clip), []
    greedy = generate_codes(model, codes, 6, seeds=[1, 2], greedy=True, progress=lambda *now: seen.append(now))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert torch.equal(generate_codes(model, codes, 6, seeds=[8, 9], top_k=1), greedy)
    assert not torch.equal(generate_codes(model, codes, 6, seeds=[8, 9], temperature=1.5), greedy)


def test_damaged_weights_are_told():
    """NaN has a code, too."""
    model, clip = masked_model("clip", {"STEPS": 2})
    model.ch_predictor.P[1].bias.data[0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        generate_codes(model, random_codes(clip), 2)


def test_settings_of_the_rule_are_the_cached_decoders():
    """One SamplingRule for both: a temperature of 0 is refused with the same words."""
    model, clip = masked_model("clip")
    with pytest.raises(UserError, match="temperature must be positive"):
        generate_codes(model, random_codes(clip), 2, temperature=0.0)
    assert SamplingRule().choose(torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2)).tolist() == [1]
