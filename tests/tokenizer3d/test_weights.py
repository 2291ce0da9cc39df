"""Files with weights: published forms, ours, and the causes that are named where one does not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.tokenizer3d.parity import load
from tests.tokenizer3d.tiny import clip, tiny
from tokenizer3d import Tokenizer3D
from videodata.errors import UserError

FSQ = {"regularizer": "fsq", "levels": (8, 8, 8, 8)}


def same(a: Tokenizer3D, b: Tokenizer3D) -> bool:
    """Whether two models have the same configuration and weights."""
    ours, theirs = a.state_dict(), b.state_dict()
    return a.config == b.config and list(ours) == list(theirs) and all(map(torch.equal, ours.values(), theirs.values()))


@pytest.mark.parametrize("settings", [{}, {"causal": False}, {"version": "1.1"}, FSQ], ids=str)
def test_a_saved_model_is_the_same(settings, tmp_path):
    model = tiny(**settings)
    model.save_pretrained(tmp_path / "model", source="made up")
    again = Tokenizer3D.from_pretrained(tmp_path / "model")
    assert same(model, again) and not again.training
    assert torch.equal(model(clip(5))[1], again(clip(5))[1])
    assert same(model, Tokenizer3D.from_single_file(tmp_path / "model" / "model.safetensors"))  # its notes say all
    assert json.loads((tmp_path / "model" / "config.json").read_text())["source"] == "made up"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_config_and_weights_of_two_models_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path / "a")
    tiny(version="1.1").save_pretrained(tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
    with pytest.raises(UserError, match="two different models"):
        Tokenizer3D.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: missing"):
        Tokenizer3D.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("wrapped", ["plain", "module", "compiled"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "state_dict"])
def test_training_checkpoints_give_the_model_alone(wrapped, nested, tmp_path, fixtures):
    """Keys of losses and averages go, and so do the names that wrappers put in."""
    model = tiny()
    state = {key.replace("encoder.", "encoder._orig_mod.") if wrapped == "compiled" else key: value
             for key, value in model.state_dict().items()}  # fmt: skip
    if wrapped == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    ignored = json.loads((fixtures / "tokenizer3d" / "keys_ignored_loss.json").read_text())
    names = [key for group in ignored.values() for key in group]
    assert names and all(key.startswith("loss.") for key in names)
    extra = {
        **dict.fromkeys(names, torch.zeros(1)),
        "model_ema.decay": torch.ones(()),
        "model_ema.num_updates": torch.ones(()),
    }
    extra |= {"model_ema." + key.replace(".", ""): value + 1 for key, value in state.items()}
    content = {"state_dict": {**state, **extra}, "global_step": 7} if nested else {**state, **extra}
    torch.save(content, tmp_path / "last.ckpt")
    assert same(model, Tokenizer3D.from_single_file(tmp_path / "last.ckpt", version="1.0"))
    averaged = Tokenizer3D.from_single_file(tmp_path / "last.ckpt", version="1.0", ema=True).state_dict()
    assert all(torch.equal(averaged[key], value + 1) for key, value in model.state_dict().items())


def test_averages_that_are_not_there_are_asked_for_in_vain(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds no average of"):
        Tokenizer3D.from_single_file(tmp_path / "a.safetensors", "1.0", ema=True)


def test_the_version_is_never_guessed(fixtures, tmp_path):
    path = fixtures / "tokenizer3d" / "kl_causal_488_weights.safetensors"
    with pytest.raises(UserError, match='version="1.0" or version="1.1"'):
        Tokenizer3D.from_single_file(path)
    model, _ = load("kl_causal_488", fixtures)
    assert same(model, Tokenizer3D.from_single_file(path, version="1.0"))
    torch.save(model.state_dict(), tmp_path / "anything_v1_1.ckpt")
    assert Tokenizer3D.from_single_file(tmp_path / "anything_v1_1.ckpt").config.version == "1.1"
    assert Tokenizer3D.from_single_file(tmp_path / "anything_v1_1.ckpt", "1.0").config.version == "1.0"
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other_v1_1.safetensors")
    with pytest.raises(UserError, match="its name says version 1.1, its notes 1.0"):
        Tokenizer3D.from_single_file(tmp_path / "other_v1_1.safetensors")


def test_other_levels_are_given(tmp_path):
    model = tiny(regularizer="fsq", levels=(8, 6, 5, 4))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert Tokenizer3D.from_single_file(tmp_path / "a.safetensors", "1.0").codebook_size == 8**4
    assert same(model, Tokenizer3D.from_single_file(tmp_path / "a.safetensors", "1.0", levels=(8, 6, 5, 4)))


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            lambda: tiny(causal=False).state_dict(),
            "the file is of a model that is not causal, the configuration of one",
        ),
        (lambda: tiny(**FSQ).state_dict(), "the file is of regularizer fsq, the configuration of kl"),
        (lambda: tiny("288").state_dict(), r"time_down is \(1,\) in the file and \(1, 2\) in the configuration"),
        (lambda: tiny(ch=16).state_dict(), "ch is 16 in the file and 8"),
        (lambda: without(tiny().state_dict(), "decoder.norm_out.norm.bias"), "missing: decoder.norm_out.norm.bias"),
        (lambda: without(tiny().state_dict(), "encoder.conv_in.conv.weight"), "no weights of a 3-D tokenizer"),
        (lambda: {**tiny().state_dict(), "encoder.more": torch.ones(1)}, "unexpected: encoder.more"),
        (lambda: {"model.weight": torch.ones(1)}, "no weights of a 3-D tokenizer"),
    ],
)
def test_what_does_not_fit_is_named(state, said, tmp_path):
    save_file(state(), tmp_path / "a.safetensors")
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as error:
        model.load_file(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"<html>", b"garbage"])
def test_files_that_hold_no_weights_are_one_line(content, tmp_path):
    for suffix in (".ckpt", ".safetensors"):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(UserError):
            Tokenizer3D.from_single_file(tmp_path / f"a{suffix}", "1.0")
    with pytest.raises(UserError, match="no such file"):
        Tokenizer3D.from_single_file(tmp_path / "none.ckpt", "1.0")
