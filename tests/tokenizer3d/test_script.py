"""scripts/tokenizer3d.py: folders of videos to latents and back, conversion, and what it says of mistakes."""

import pytest
import torch

from scripts.tokenizer3d import main
from tests.tokenizer3d.test_films import RATE, film
from tests.tokenizer3d.tiny import tiny
from tokenizer3d import Tokenizer3D
from videodata import UserError, probe, read_video, write_video


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


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_files_whose_results_would_have_one_name_keep_their_suffixes(command, checkpoint, tmp_path):
    """a.gif was passed over in silence as done, or took the place of what a.mp4 had become."""
    film(tmp_path / "in" / "a.mp4", 2)
    write_video(tmp_path / "in" / "a.gif", torch.zeros(3, 2, 16, 16), 10)
    film(tmp_path / "in" / "b.mp4", 2)
    call(command, tmp_path / "in", tmp_path / "out", "--checkpoint", checkpoint)
    ending = ".mp4" if command == "reconstruct" else ".safetensors"
    names = [f"a.gif{ending}", f"a.mp4{ending}", f"b{ending}"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_no_video_is_replaced_by_its_reconstruction(checkpoint, tmp_path):
    source = film(tmp_path / "in" / "a.mp4", 2)
    before = source.read_bytes()
    for arguments in ((source, source), (source.parent, source.parent)):
        with pytest.raises(UserError, match="is the video itself"):
            call("reconstruct", *arguments, "--checkpoint", checkpoint)
    assert source.read_bytes() == before


def test_names_that_cannot_be_used_keep_nothing_from_being_written(checkpoint, tmp_path):
    """A link to nothing, and a name that is too long with another suffix; a refused file makes no folder."""
    film(tmp_path / "in" / "b.mp4", 2)
    film(tmp_path / "in" / f"{'n' * 246}.mp4", 2)
    (tmp_path / "in" / "a.mp4").symlink_to("nothing.mp4")
    with pytest.raises(UserError, match="2 of 3 files failed: .*link to nothing.*too long"):
        call("encode", tmp_path / "in", tmp_path / "out", "--checkpoint", checkpoint)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.safetensors"]
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="not a readable video"):
        call("encode", tmp_path / "bad.mp4", tmp_path / "new" / "bad.safetensors", "--checkpoint", checkpoint)
    assert not (tmp_path / "new").exists()


def test_a_conversion_replaces_no_files_of_others(checkpoint, tmp_path):
    call("convert", tmp_path / "own", "--checkpoint", checkpoint)
    call("convert", tmp_path / "own", "--checkpoint", checkpoint)
    for name, content in (("config.json", b'{"mine": 1}'), ("config.json", b"mine"), ("model.safetensors", b"mine")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            call("convert", tmp_path / "mine", "--checkpoint", checkpoint)
        assert [path.read_bytes() for path in (tmp_path / "mine").iterdir()] == [content]
        (tmp_path / "mine" / name).unlink()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    """One infinite bias of the last layer is a white film, which looks like any other; a training learns nothing."""
    model = tiny()
    model.decoder.conv_out.conv.bias.data[0] = value
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="not finite, first decoder.conv_out.conv.bias.*use another checkpoint"):
        call("convert", tmp_path / "new", "--checkpoint", tmp_path / "model")
    assert not (tmp_path / "new").exists()
