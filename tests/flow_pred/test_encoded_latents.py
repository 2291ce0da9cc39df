"""Latents that scripts/encode.py stored, as clips to train a predictor on."""

import numpy as np
import pytest
import torch

from flow_pred.config import parse_config
from flow_pred.latents import EncodedLatents
from flow_pred.train import prepare
from tests.flow_pred.tiny import tiny_values
from training.encoded import Encoded, encode_data
from videodata.errors import UserError
from videodata.labels import classes_of

DATA = "digits:16,frames=8,size=8,digits=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames of 8 x 8 pixels, which are their own latents."""
    folder = tmp_path_factory.mktemp("latents")
    for split in ("train", "val"):
        encode_data("identity", DATA, split, folder, size=8, dtype="float32")
    return folder


def test_windows_begin_anywhere_by_seed_and_position(folder):
    """Frames `stride` apart, the same at each call and others at other positions."""
    clips, stored = EncodedLatents(folder, "train", 3, stride=2, seed=4), Encoded(folder / "train.npy")
    first = clips[0, 5]["latents"]
    assert first.shape == (3, 3, 8, 8) and torch.equal(first, clips[0, 5]["latents"])
    video = np.moveaxis(stored.read(0), -1, 1)
    starts = {
        next(start for start in range(4) if np.array_equal(video[start : start + 5 : 2], clips[0, position]["latents"]))
        for position in range(20)
    }
    assert starts == {0, 1, 2, 3}


def test_clips_know_their_videos(folder):
    clips, stored = EncodedLatents(folder, "val", 4), Encoded(folder / "val.npy")
    assert clips.label(0) == stored.clips[0].label and clips.describe(0) == {"id": stored.clips[0].id}
    assert clips.provenance() == stored.provenance and clips.moments() == stored.moments
    assert set(classes_of(clips)) == {entry.label for entry in stored.clips}


def test_a_folder_of_latents_names_what_decodes_them(folder):
    """Whatever autoencoder the configuration has; another one that is named by hand must have the same weights."""
    values = tiny_values(latent_mean="auto", latent_std="auto", classes="auto")
    values["data"] |= {"latents": str(folder), "frames_per_sample": 5}
    values["model"]["vector_field_regressor"]["state_res"] = [8, 8]
    values["model"]["autoencoder"] = {"type": "ldm-vq", "config": "f8"}
    config = parse_config(values)
    recipe, data, validation = prepare(config, folder / "run", 0)
    assert config.model.autoencoder == {"type": "tokenizer", "ckpt_path": "identity"}
    assert config.model.latent_mean == Encoded(folder / "train.npy").moments[0]
    assert len(config.model.classes) > 1 and data[0][0]["latents"].shape == (5, 3, 8, 8) and len(validation)
    assert recipe.latent_space.autoencoder.tokenizer.space_factor == 1


def test_what_does_not_fit_is_one_line(folder, tmp_path):
    encode_data("identity", DATA, "train", tmp_path, size=8, frames=4, stride=2)
    for path, frames, stride, message in (
        (folder, 9, 1, "no clip has the 9 frames of data.frames_per_sample"),
        (tmp_path, 4, 1, "was encoded with --stride 2, and data.skip_frames \\+ 1 is 1"),
        (tmp_path / "absent", 4, 1, "no encoded data"),
    ):
        with pytest.raises(UserError, match=message):
            EncodedLatents(path, "train", frames, stride)
