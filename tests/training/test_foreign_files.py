"""Files that are given as weights and are something else: told what they are."""

import gzip

import pytest
import torch
from safetensors.torch import save_file

import flow_pred.files
import vqgan.files
from training import checkpoint, pretrained
from training.checkpoint import load_checkpoint, load_weights, read_tensors
from videodata.errors import UserError
from vvae.src.checkpoints import _read
from vvae.src.errors import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FORMS = {
    "a pointer of Git LFS.*git lfs pull": POINTER,
    "a web page.*login": b"\n  <!DOCTYPE html>\n<html><title>Sign in</title></html>",
    "is a web page": b"<HTML><body>404</body></HTML>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "is a text": b'{"error": "rate limit"}',
    "a gzip file": gzip.compress(b"weights"),
    "is empty": b"",
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_every_reader_says_what_it_is(tmp_path, form, suffix):
    """Whatever the name promises."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(FORMS[form])
    readers = [read_tensors, load_checkpoint]
    if suffix == ".safetensors":
        readers += [load_weights, pretrained.read_facts]
    for read in readers:
        with pytest.raises(UserError, match=form) as refusal:
            read(path)
        assert "\n" not in str(refusal.value) and "could run code" not in str(refusal.value)


@pytest.mark.parametrize("content", [POINTER, b"<html>"])
def test_the_reader_of_the_package_does_too(tmp_path, content):
    """vvae is copied into other projects, and has a reader of its own."""
    path = tmp_path / "sota.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Git LFS|web page"):
        _read(path)


# A pickle of the older form whose last opcode wants more than the stack holds, in place of a checkpoint cut off.
SHORT = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01R."


def test_a_pickle_that_ends_in_the_middle(tmp_path):
    path = tmp_path / "sota.ckpt"
    path.write_bytes(SHORT)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        _read(path)
    with pytest.raises(UserError, match="not a readable weight file"):
        read_tensors(path)


@pytest.mark.parametrize("config", [{"model": 7}, {"model": [1]}, {"model": "tiny"}])
def test_a_model_that_no_file_describes(tmp_path, config):
    """The configuration in a file is what somebody wrote there."""
    published, trained = tmp_path / "model.pt", tmp_path / "state.pt"
    torch.save({"format": vqgan.files.FORMAT, "state_dict": {"a": torch.ones(2)}, "config": config}, published)
    state = {"format": checkpoint.FORMAT, "recipe": "river", "step": 1, "config": config, "networks": {}, "ema": {}}
    torch.save(state, trained)
    with pytest.raises(UserError, match="configuration does not describe a model"):
        vqgan.files.load_model(published)
    with pytest.raises(UserError, match="not of a video predictor"):
        flow_pred.files.load_model(trained)


def test_a_configuration_that_is_no_mapping(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"format": vqgan.files.FORMAT, "state_dict": {"a": torch.ones(2)}, "config": 7}, path)
    with pytest.raises(UserError, match="its config is no dict"):
        vqgan.files.load_model(path)


@pytest.mark.parametrize("length", [0x7B, 0x3C, 0x20])
def test_weights_whose_first_byte_looks_like_text(tmp_path, length):
    """The length of the header of a .safetensors may be the code of a brace."""
    path = tmp_path / "a.safetensors"
    for padding in range(600):
        save_file({"weight": torch.ones(2)}, path, metadata={"pad": "x" * padding})
        if path.read_bytes()[0] == length:
            break
    else:
        pytest.skip("the writer rounds the length of its header")
    assert torch.equal(read_tensors(path)["weight"], torch.ones(2))


def test_the_guard_of_the_length_itself(tmp_path):
    """A file that begins like the header of .safetensors is left to its reader."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"{" + bytes(7) + b'{"a": 1}')
    checkpoint.check_form(path)
