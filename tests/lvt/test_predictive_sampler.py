"""Any window, in any batch, gives the clips that one position after the other gives."""

import pytest
import torch

from lvt import cached_decoder, generate_codes
from lvt.cached_decoder import RowProduct, products_pay, run_length
from lvt.predictive_sampler import PredictiveSampler, paying_window
from lvt.sampling import SamplingRule
from tests.lvt.test_classes import CLASSES
from tests.lvt.test_generate import STRIDES, random_model
from tests.training import processes
from videodata.errors import UserError

WHOLE = {  # attention blocks as wide and high as the slice, as in the published configurations: windows of any length
    "whole frame": {"STRIDE": (8, 1, 1), "KERNEL": (7, 1, 1), "BLOCKS_D": [(1, 6, 8)] * 2},
    "whole, several frames": {"STRIDE": (1, 2, 2), "KERNEL": (1, 3, 3), "BLOCKS_D": [(2, 3, 4), (4, 3, 4)]},
}
NAMES = [*STRIDES, *WHOLE]
RULES = [{}, {"temperature": 0.5}, {"top_k": 4}, {"temperature": 1.4, "top_p": 0.8}, {"greedy": True}]
CASES = [  # all models with some rule, all rules with some model; the rest takes as long again three times
    pytest.param(name, rule, marks=() if row == column or name == "whole frame" else pytest.mark.exhaustive)
    for row, name in enumerate(NAMES) for column, rule in enumerate(RULES)
]  # fmt: skip


def model_of(name, **options):
    """A model with random weights, and random clips (32, 2, T, H, W)."""
    model, clip = random_model("spatial" if "several" in name else "single-frame" if name in WHOLE else name,
                               **WHOLE.get(name, {}), **options)  # fmt: skip
    return model, torch.randint(11, (32, 2, *clip), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_window_changes_nothing(name, options):
    """Windows of 2, 7 and the whole block, for one clip and for three."""
    model, codes = model_of(name)
    alone = torch.cat([
        generate_codes(model, codes[row : row + 1], 7, seeds=[row], at_once=1, **options) for row in range(3)
    ])  # fmt: skip
    assert torch.equal(generate_codes(model, codes[:3], 7, seeds=range(3), at_once=1, **options), alone)
    for window in (2, 7, 1000):
        assert torch.equal(generate_codes(model, codes[:3], 7, seeds=range(3), at_once=window, **options), alone)
        assert torch.equal(generate_codes(model, codes[2:3], 7, seeds=[2], at_once=window, **options), alone[2:])
    assert len(alone[:, :, 7:].unique()) > 5


@pytest.mark.parametrize(
    ("batch", "given"),
    [(8, 7), (32, 7), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((8, 0), (2, 3)))],
)
@pytest.mark.parametrize("name", ["whole frame", "whole, several frames"])
def test_nor_does_a_batch(name, batch, given):
    """The default window of each batch, and a longer one, many seeds; some frames given, or none."""
    model, codes = model_of(name)
    plain = generate_codes(model, codes[:batch], given, seeds=range(100, 100 + batch), at_once=1)
    for window in (None, 6):
        made = generate_codes(model, codes[:batch], given, seeds=range(100, 100 + batch), at_once=window)
        assert torch.equal(made, plain)
    alone = generate_codes(model, codes[batch - 1 : batch], given, seeds=[99 + batch])
    assert torch.equal(alone, plain[batch - 1 :])


@pytest.mark.parametrize("name", ["whole frame", "spatio-temporal"])
def test_guidance_and_classes(name):
    """Both halves of the batch see the same guesses."""
    model, codes = model_of(name, **CLASSES)
    options = {"seeds": [1, 2, 3], "class_idx": torch.tensor([0, 2, 1]), "top_p": 0.9}
    for guidance in (1.0, 2.5):
        plain = generate_codes(model, codes[:3], 7, at_once=1, guidance=guidance, **options)
        assert torch.equal(generate_codes(model, codes[:3], 7, at_once=5, guidance=guidance, **options), plain)


def test_where_rounding_decides_the_plain_network_does(monkeypatch):
    """Every second code is as likely as the one before, but for the last digits, and those of the caches are wrong."""
    model, codes = model_of("whole frame")
    with torch.no_grad():
        for layer in model.ch_predictor.P:
            layer.weight[1:11:2], layer.bias[1:11:2] = layer.weight[0:10:2], layer.bias[0:10:2]
            layer.weight.mul_(1 + 1e-7 * torch.randn(layer.weight.shape))
    exact = RowProduct.__call__

    def rounded(self, x):
        made = exact(self, x)
        return made * (1 + 1e-7 * torch.randn(made.shape))

    monkeypatch.setattr(RowProduct, "__call__", rounded)

    def samples(**options):
        made = [generate_codes(model, codes[:1], 7, seeds=[1], at_once=at_once, **options) for at_once in (1, 1, 9)]
        return [torch.equal(made[0], other) for other in made[1:]]

    assert samples(greedy=True) == [True, True] and samples(top_k=3) == [True, True]
    monkeypatch.setattr("lvt.cached_decoder.ROUNDING", 0.0)
    assert samples(greedy=True) == [False, False], "the test would not have seen anything"


def test_right_guesses_take_a_window_each():
    """A network that always says the same: the slice before is the right guess, and each call reaches a window on."""
    model, codes = model_of("whole frame")
    with torch.no_grad():
        for layer in model.ch_predictor.P:
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(11) * 100.0)
    seen = []
    for rows, window, calls in ((1, 16, 3), (2, 16, 3), (2, 20, 3), (1, 48, 1), (1, 1, 48)):
        clips = codes[:rows].clone()
        clips[:, :, 5:] = 0
        clips[:, :, 5] = 10
        sampler = PredictiveSampler(model, clips, 6, SamplingRule(), None, [0] * rows, window=window)
        made = sampler.run(lambda *now: seen.append(now))
        assert (made[:, :, 6:] == 10).all() and sampler.calls == 2 * calls
        assert seen[-1] == (96, 96) and len(seen) == 2 * calls and [*seen] == sorted(seen)
        seen.clear()


def test_samples_wait_for_no_other():
    """Calls of a batch are those of its slowest sample in each slice, not more."""
    model, codes = model_of("whole frame")
    counts = []
    for rows in ([0], [1], [2], [0, 1, 2]):
        clips = codes[rows].clone()
        clips[:, :, 7:] = 0
        sampler = PredictiveSampler(model, clips, 7, SamplingRule(temperature=0.5), None, rows, window=8)
        sampler.run()
        counts.append(sampler.calls)
    assert counts[3] == max(counts[:3]) and min(counts) < 48


def test_windows_end_with_their_block():
    """Raster positions of one block in a row: a frame's columns, its rows, or several frames."""
    assert [run_length((4, 6, 8), block) for block in ((1, 3, 4), (2, 3, 8), (2, 6, 8), (4, 6, 8))] == [4, 24, 96, 192]
    assert paying_window(1, torch.float32) > paying_window(1000, torch.float32) == 1


def codes_with_and_without_compiler():
    compiler = torch.compile
    torch.compile = lambda function, **options: compiler(function, backend="eager", **options)
    model, codes = model_of("whole, several frames")
    for window in (1, 5):
        made = [
            generate_codes(model, codes[:2], 7, seeds=[1, 2], compiled=way, at_once=window) for way in (False, True)
        ]
        assert torch.equal(*made)


@pytest.mark.slow
def test_a_compiled_call_gives_the_same_codes():
    """Traced, and run without the code generator, which takes a minute; in a process of its own, because the compiler
    starts threads.
    """
    assert processes.status_of(codes_with_and_without_compiler) == 0


def test_autocast():
    """Trainings in bf16 show samples; those of one clip and of several are whole clips there, too."""
    model, codes = model_of("whole frame")
    with torch.autocast("cpu", torch.bfloat16):
        for batch, window in ((1, 1), (1, 9), (3, 1), (3, 9)):
            made = generate_codes(model, codes[:batch], 7, seeds=range(batch), at_once=window)
            assert int(made.min()) >= 0 and int(made.max()) < 11 and len(made[:, :, 7:].unique()) > 3


@pytest.mark.parametrize("options", [{}, {"at_once": 1}, {"top_p": 0.9, "temperature": 0.8}])
def test_half_precision(options):
    """Rounding changes few codes as long as what is before them is the same; the model itself stays in float32."""
    model, codes = model_of("whole frame")
    found = {
        precision: generate_codes(model, codes, 7, seeds=range(32), precision=precision, **options)
        for precision in ("fp32", "bf16")
    }
    again = generate_codes(model, codes, 7, seeds=range(32), precision="bf16", **options)
    assert torch.equal(again, found["bf16"]) and not torch.equal(again, found["fp32"])
    assert torch.equal(again[:, :, :7], codes[:, :, :7])
    first = found["fp32"][:, 0, 7, 0, 0] == again[:, 0, 7, 0, 0]
    assert first.float().mean() > 0.9
    assert model.encoder.conv.weight.dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_row_products(rows):
    """In each layout, with and without a bias, as a linear layer gives them."""
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        weight, bias, x = (torch.randn(*shape, dtype=dtype) for shape in ((96, 32), (96,), (rows, 32)))
        for own in (None, bias):
            made = RowProduct(weight, own, rows)(x)
            assert made.dtype == dtype
            true = torch.nn.functional.linear(x.double(), weight.double(), None if own is None else own.double())
            assert (made.double() - true).abs().max() < tolerance * true.abs().max()


@pytest.mark.parametrize("name", ["whole frame", "whole, several frames"])
def test_both_ways_of_attention(name, monkeypatch):
    """Whichever is faster here, the codes are the same."""
    model, codes = model_of(name)
    made = []
    for pays in (True, False):
        monkeypatch.setattr(cached_decoder, "products_pay", lambda cache, pays=pays: pays)
        made.append(generate_codes(model, codes[:4], 7, seeds=range(4), at_once=1))
    assert torch.equal(*made)
    assert isinstance(products_pay(torch.zeros(2, 3, 2, 8, 8)), bool)
    assert not products_pay(torch.zeros(2, 1, 2, 8, 8)) and not products_pay(torch.zeros(2, 3, 2, 8, 8).bfloat16())


def test_damaged_weights_are_told():
    """NaN has a code, too."""
    model, codes = model_of("whole frame")
    model.ch_predictor.P[1].bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate_codes(model, codes[:1], 7)
