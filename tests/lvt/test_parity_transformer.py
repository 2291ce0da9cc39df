"""The transformer computes what the original computes: intermediates, logits, losses, gradients."""

import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lvt.layers import BlockLocalAttention, inverse_timescales, position_signal
from lvt.subscale import context_ids, put_slice, slice_ids, slice_of_position, slice_offset, take_slices
from lvt.transformer import CausalConv3d, VideoTransformer, attention_tables, cross_entropy, recomputable
from tests.training.processes import START

FILES = ["vt_dsf", "vt_dss", "vt_dst", "vt_dsf_nc1_sharep", "vt_share_embeddings", "vt_class"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def build(fixture):
    model = VideoTransformer(fixture.config["VT"]).eval()
    model.load_state_dict(fixture.below("state/"))
    return model


@pytest.mark.parametrize("number", range(4))
def test_slices_and_contexts_are_those_of_the_original(load_fixture, number):
    """Order of slices, owner of each position and every cell of every context."""
    fixture = load_fixture("units")
    case = fixture.config["subscale"][number]
    clip, stride, kernel = (case["T"], case["H"], case["W"]), tuple(case["stride"]), tuple(case["kernel"])
    expected = fixture.below(f"subscale{number}/")
    order = torch.tensor([slice_offset(index, stride) for index in range(len(expected["order_abc"]))])
    assert torch.equal(order, expected["order_abc"])
    assert torch.equal(slice_of_position(clip, stride), expected["slice_of_position"])
    assert torch.equal(context_ids(clip, stride, kernel), expected["context_ids"])


def test_slices_put_back_give_the_clip():
    """Taking all slices and writing them back restores every code."""
    codes, stride = torch.arange(2 * 3 * 8 * 4 * 6).view(2, 3, 8, 4, 6), (4, 2, 3)
    again = torch.full_like(codes, -1)
    for index in range(len(slice_ids((8, 4, 6), stride))):
        put_slice(again, stride, index, take_slices(codes, stride, torch.full((2,), index)))
    assert torch.equal(again, codes)


@pytest.mark.parametrize("number", range(4))
def test_block_local_attention_equals_the_original(load_fixture, number):
    """Output and bias of one layer; its index tables can be computed."""
    fixture = load_fixture("units")
    case, tensors = fixture.config["bla"][number], fixture.below(f"bla{number}/")
    block, causal = tuple(case["block"]), case["masked"]
    layer = BlockLocalAttention(case["d"], case["n_head"], case["da"], block, causal)
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    tables = attention_tables(block, causal)
    for name, table in tables.items():
        assert torch.equal(table, state.pop(name)), name
    layer.load_state_dict(state)
    with torch.no_grad():
        assert_close(layer(tensors["x"].movedim(1, -1)).movedim(-1, 1), tensors["y"], **CLOSE)
        allowed = layer.bias().isfinite()
        assert_close(layer.bias()[allowed], tensors["bias_B"][allowed], **CLOSE)
    assert causal != bool(allowed.all())


def flex_equals_sdpa():
    """Raises unless both kernels give the same features."""
    torch.manual_seed(0)
    for block, causal in [((1, 4, 4), True), ((2, 4, 4), False), ((2, 2, 4), True)]:
        layer = BlockLocalAttention(32, 4, 12, block, causal, attention="sdpa")
        for bank in (layer.dt_bank, layer.dh_bank, layer.dw_bank):
            torch.nn.init.normal_(bank)
        x = torch.randn(2, 2, 4, 8, 32)
        with torch.no_grad():
            expected = layer(x)
            layer.attention = "flex"
            assert_close(layer(x), expected, **CLOSE)


def test_flex_attention_equals_fused_attention():
    """Both kernels compute the same. In a process of its own: flex starts threads that forbid forking afterwards."""
    process = multiprocessing.get_context(START).Process(target=flex_equals_sdpa)
    process.start()
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.parametrize("number", range(3))
def test_position_signal_equals_the_original(load_fixture, number):
    """Frequencies and signal, also for widths that six does not divide."""
    fixture = load_fixture("units")
    case, tensors = fixture.config["posenc"][number], fixture.below(f"posenc{number}/")
    assert_close(inverse_timescales(case["d"]), tensors["inv_timescales"])
    assert_close(position_signal(tuple(case["THW"]), case["d"]).movedim(-1, 0), tensors["signal"], **CLOSE)


def test_causal_convolution_equals_the_original(load_fixture):
    """Masked taps are ignored, whatever they hold, and the matrix form computes the same."""
    tensors = load_fixture("units").below("maskedconv/")
    outputs, inputs = tensors["state/conv.weight"].shape[:2]
    layer = CausalConv3d(inputs, outputs)
    layer.load_state_dict({key.removeprefix("state/"): v for key, v in tensors.items() if key.startswith("state/")})
    with torch.no_grad():
        assert_close(layer(tensors["x"].movedim(1, -1)).movedim(-1, 1), tensors["y"], **CLOSE)
        padded = F.pad(tensors["x"], (1, 1, 2, 0, 2, 0))[0].movedim(0, -1)  # (t, h, w, inputs)
        windows = padded.unfold(0, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1).flatten(4)[..., :25].transpose(-1, -2)
        matrix = windows.flatten(3) @ layer.matrix(one_frame=False) + layer.conv.bias
        assert_close(matrix.movedim(-1, 0), tensors["y"][0], **CLOSE)


@pytest.mark.parametrize("name", FILES)
def test_intermediates_equal_the_original(load_fixture, name):
    """Context, convolutions, position signal and each attention layer of the slices in the file."""
    fixture = load_fixture(name)
    model, codes, classes = build(fixture), fixture["in/codes"], fixture.get("in/class_idx")
    for number in fixture.config["mid_slices"]:
        expected = fixture.below(f"mid/slice{number}/")
        index = torch.full((len(codes),), number)
        with torch.no_grad():
            context, slice_codes = model.slice_inputs(codes, index)
            assert torch.equal(context, expected["context"])
            assert torch.equal(slice_codes, expected["slice"])
            actual = features_of(model, context, slice_codes, index, classes)
        assert set(actual) == set(expected) - {"context", "slice"}
        for key, value in actual.items():
            assert_close(value.movedim(-1, 1), expected[key], **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


def features_of(model, context, slice_codes, index, classes):
    """Every intermediate result that the files hold, by their names."""
    encoder, decoder, found = model.encoder, model.decoder, {}
    found["enc_conv"] = encoder.conv(context)
    x = found["enc_proj"] = encoder.project(found["enc_conv"], index, classes)
    for number, layer in enumerate(encoder.block_local_attention):
        x = found[f"enc_block_{number}"] = layer(x)
    encoded = found["zl"] = x
    x = found["dec_masked_conv"] = decoder.conv(decoder.embed(slice_codes))
    x = found["dec_posenc"] = x + position_signal(tuple(x.shape[1:4]), x.shape[-1])
    found["dec_zl_proj"] = F.linear(encoded, decoder.linear_projector.weight.flatten(1))
    x = x + found["dec_zl_proj"]
    for number, layer in enumerate(decoder.block_local_attention):
        x = found[f"dec_block_{number}"] = layer(x)
    found["yl"] = x
    assert_close(decoder(slice_codes, encoded), x)
    return found


@pytest.mark.parametrize("name", FILES)
def test_logits_of_whole_clips_equal_the_original(load_fixture, name):
    """Teacher-forced logits of given and of generated clips, also longer ones than the model was made for."""
    fixture = load_fixture(name)
    model, classes = build(fixture), fixture.get("in/class_idx")
    assert_close(model.clip_logits(fixture["in/codes"], classes), fixture["out/logits"], **CLOSE)
    assert_close(model.clip_logits(fixture["out/greedy_codes"], classes), fixture["out/greedy_logits"], **CLOSE)
    if "in/codes_long" in fixture:
        assert_close(model.clip_logits(fixture["in/codes_long"]), fixture["out/logits_long"], **CLOSE)


@pytest.mark.parametrize("name", FILES)
def test_training_equals_the_original(load_fixture, name):
    """Gradients of the first step and the losses of three RMSprop steps."""
    fixture = load_fixture(name)
    model, batch, options = build(fixture), fixture.below("in/train/"), fixture.config["optimizer"]
    optimizer = torch.optim.RMSprop(
        model.parameters(), options["lr"], options["alpha"], options["eps"], momentum=options["momentum"]
    )
    losses = []
    for step in range(4):
        logits = model(batch["context"], batch["slice"], batch["slice_idx"], fixture.get("in/class_idx"))
        loss = cross_entropy(logits, batch["slice"], batch["ignore_mask"])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_gradients(model, fixture.below("out/train/grad0/"))
        optimizer.step()
    assert_close(torch.tensor(losses).double(), fixture["out/train/losses"], **CLOSE)


def check_gradients(model, expected):
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected
    for name, value in expected.items():
        actual = own[name]
        if name == "decoder.conv.conv.weight":
            actual, value = (t.flatten(2)[:, :, :25] for t in (actual, value))
        assert_close(actual, value, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", FILES)
def test_tables_of_a_published_file_can_be_computed(load_fixture, name):
    """Weights and computed tables together are exactly the keys, shapes, types and tables of the original's file."""
    fixture = load_fixture(name)
    state, model = fixture.below("state/"), build(fixture)
    tables = recomputable(model.config)
    written = {**model.state_dict(), **tables}
    assert {key: (v.shape, v.dtype) for key, v in written.items()} == {
        key: (v.shape, v.dtype) for key, v in state.items()
    }
    for key, table in tables.items():
        assert_close(table, state[key])


def test_slices_of_one_frame_skip_the_taps_of_the_frames_before():
    """The causal convolution of one frame is that of the same frame after two empty ones."""
    torch.manual_seed(0)
    conv = CausalConv3d(5, 7)
    x = torch.randn(2, 1, 4, 6, 5)
    empty = torch.zeros(2, 2, 4, 6, 5)
    torch.testing.assert_close(conv(x), conv(torch.cat([empty, x], 1))[:, 2:])


def test_attention_in_training_is_the_fused_attention():
    """On a CPU a pass with gradients multiplies matrices; one without takes the fused kernel."""
    torch.manual_seed(0)
    for causal in (False, True):
        layer = BlockLocalAttention(24, 2, 8, (1, 3, 4), causal)
        with torch.no_grad():
            layer.dh_bank.normal_()
        x = torch.randn(2, 2, 3, 4, 24)
        with torch.no_grad():
            fused = layer(x)
        torch.testing.assert_close(layer(x), fused, atol=1e-5, rtol=1e-5)
