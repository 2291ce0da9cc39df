"""scripts/tokenizer3d.py: folders of videos to latents and back, conversion, and what it says of mistakes."""

import pytest
import torch

from scripts.tokenizer3d import main
from tests.tokenizer3d.test_films import RATE, film
from tests.tokenizer3d.tiny import tiny
from tokenizer3d import Tokenizer3D
from videodata import UserError, probe, read_video


@pytest.fixture
def checkpoint(tmp_path):
    tiny(regularizer="fsq", levels=(8,) * 4).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def call(*arguments):
    main([str(argument) for argument in arguments])


def test_a_folder_goes_to_tokens_and_back(checkpoint, tmp_path, capsys):
    """What is done is passed over, and what fails does not keep the rest."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    film(tmp_path / "in" / "a.mp4", 6)
    film(tmp_path / "in" / "deep" / "b.mp4", 3)
    call("encode", tmp_path / "in", tmp_path / "tokens", "--checkpoint", checkpoint)
    assert capsys.readouterr().out.count("\n") == 2
    (tmp_path / "in" / "c.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="1 of 3 files failed: .*c.mp4"):
        call("encode", tmp_path / "in", tmp_path / "tokens", "--checkpoint", checkpoint)
    assert not capsys.readouterr().out
    call("decode", tmp_path / "tokens", tmp_path / "out", "--checkpoint", checkpoint, "--step-latents", 2)
    assert read_video(tmp_path / "out" / "deep" / "b.mp4")[0].shape == (3, 18, 22, 3)
    assert probe(tmp_path / "out" / "a.mp4").fps == RATE


def test_a_file_is_reconstructed_in_half_precision(checkpoint, tmp_path):
    source = film(tmp_path / "a.mp4", 6)
    call("reconstruct", source, tmp_path / "b.mp4", "--checkpoint", checkpoint, "--precision", "bf16", "--tile", 2)
    assert read_video(tmp_path / "b.mp4")[0].shape == (6, 18, 22, 3)
    with pytest.raises(UserError, match="must end in .mp4"):
        call("reconstruct", source, tmp_path / "b.avi", "--checkpoint", checkpoint)


def test_weights_are_converted_and_described(tmp_path, capsys):
    model = tiny(version="1.1")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match='version="1.0" or version="1.1"'):
        call("convert", tmp_path / "model", "--checkpoint", tmp_path / "a.ckpt")
    assert not (tmp_path / "model").exists()
    call("convert", tmp_path / "model", "--checkpoint", tmp_path / "a.ckpt", "--version", "1.1")
    assert Tokenizer3D.from_pretrained(tmp_path / "model").config == model.config
    call("info", "--checkpoint", tmp_path / "model")
    assert "compression: 4 x 8 x 8" in capsys.readouterr().out
