"""Projection to codes: resumable, exact, and in the layout that the video transformer reads."""

import json

import numpy as np
import pytest
import torch

from lvt.codes import CodesFile
from tests.vqgan.tiny import TINY_LDM
from videodata.errors import UserError
from videodata.shapes import Shapes
from vqgan import VQGAN, LDMVQModel
from vqgan.data import merge_patches, split_patches
from vqgan.project import Projection, project


class Interrupted(Exception):
    """Stands for the end of the process."""


def projection(model, made_from="a", frames=3):
    source = Shapes(4, frames=frames, size=16)
    return Projection(model, source, [0, 1, 3], (16, 16), 2, 1, {"model": made_from}, frames_at_a_time=2)


TOKENIZERS = {
    "vqgan": lambda: VQGAN((8, 16), 4, 32, 2),
    "ldm": lambda: LDMVQModel(TINY_LDM, 32, 4),
}


@pytest.fixture(params=TOKENIZERS)
def model(request):
    torch.manual_seed(0)
    return TOKENIZERS[request.param]().eval()


def test_codes_are_those_of_the_frames_and_decode_exactly(model, tmp_path):
    """Each stored map is the merged indices of the frame's patches, and decodes to what the quantised latents do."""
    path = project(projection(model), tmp_path, "train")
    codes = np.load(path, mmap_mode="r")
    assert codes.dtype == np.int16 and codes.shape == (3, 3, 1, 8, 8)
    frames = torch.from_numpy(Shapes(4, frames=3, size=16).read(3)[:2]).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        quantized, indices = model.quantize(model.latents(split_patches(frames, 2, 1)))
        decoded = merge_patches(model.decode(quantized), 2, 1)
        stored = split_patches(torch.from_numpy(codes[2, :2, 0].astype(np.int64)), 2, 1)
        from_codes = merge_patches(model.decode_indices(stored), 2, 1)
    assert np.array_equal(merge_patches(indices, 2, 1).numpy(), codes[2, :2, 0])
    assert torch.equal(from_codes, decoded)
    assert np.array_equal(np.load(tmp_path / "codebook.npy"), model.quantizer.codebook.numpy())


def test_an_interrupted_projection_goes_on(model, tmp_path, monkeypatch):
    """After an interruption in the second video, the next call encodes only what is missing; the bytes are the same."""
    straight = project(projection(model), tmp_path / "straight", "train").read_bytes()
    encode, calls = Projection.encode, []

    def interrupted(self, frames):
        calls.append(len(frames))
        if len(calls) == 4:
            raise Interrupted
        return encode(self, frames)

    monkeypatch.setattr(Projection, "encode", interrupted)
    with pytest.raises(Interrupted):
        project(projection(model), tmp_path, "train")
    assert json.loads((tmp_path / "train.npy.progress").read_text())["done"] == 1
    assert not (tmp_path / "train.npy").exists()
    assert project(projection(model), tmp_path, "train").read_bytes() == straight
    assert sum(calls) == 3 + 3 + 6  # all of video 1, video 2 up to the interruption, videos 2 and 3
    project(projection(model), tmp_path, "train")
    assert sum(calls) == 12, "a finished projection is not made again"
    assert sorted(entry.name for entry in tmp_path.glob("train*")) == ["train.json", "train.npy"]


def test_an_array_that_another_model_began_is_kept(model, tmp_path, monkeypatch):
    """What is there may have taken hours: it is refused, not replaced."""
    with monkeypatch.context() as patch:
        patch.setattr("vqgan.project.write_file", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            project(projection(model), tmp_path, "train")
    before = (tmp_path / "train.npy.partial").read_bytes()
    other = projection(model)
    other.made_from = {**other.made_from, "model": "another"}
    with pytest.raises(UserError, match="was begun from .*; remove it, or name another folder"):
        project(other, tmp_path, "train")
    assert (tmp_path / "train.npy.partial").read_bytes() == before


def test_a_note_of_an_earlier_array_says_nothing_of_a_new_one(model, tmp_path, monkeypatch):
    """A kill leaves the note beside a finished array; when that is removed and made again, killed, and made again."""
    path = project(projection(model), tmp_path, "train")
    straight = path.read_bytes()
    noted = {"done": 3, "made_from": projection(model).made_from}
    path.with_name("train.npy.progress").write_text(json.dumps(noted))
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Projection, "encode", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            project(projection(model), tmp_path, "train")
    assert project(projection(model), tmp_path, "train").read_bytes() == straight


def test_codes_of_another_model_are_not_mixed_in(model, tmp_path):
    """A folder that holds the codes of another model is refused in one line."""
    project(projection(model), tmp_path, "train")
    codebook = (tmp_path / "codebook.npy").read_bytes()
    other = VQGAN((8, 16), 4, 32, 2).eval()
    with pytest.raises(UserError, match="was made from"):
        project(projection(other, made_from="b"), tmp_path, "train")
    with pytest.raises(UserError, match="codes of another model"):
        project(projection(other, made_from="b"), tmp_path, "val")
    assert (tmp_path / "codebook.npy").read_bytes() == codebook


def test_the_video_transformer_reads_the_codes(model, tmp_path):
    """Ids, labels, lengths and codes arrive in its reader."""
    path = project(projection(model), tmp_path, "val")
    codes = CodesFile(path)
    assert [video.label for video in codes.videos] == ["Circles", "Squares", "Mixed"] and codes.size == 32
    assert np.array_equal(codes.read(1, 1, 2), np.load(path)[1, 1:])
