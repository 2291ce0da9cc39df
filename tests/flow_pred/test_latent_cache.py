"""Cached latents: the same numbers as encoding, windows keyed by position, and what is refused."""

import h5py
import numpy as np
import pytest
import torch

from flow_pred import build_autoencoder
from flow_pred.latents import LatentClips, LatentSpace, encode_latents, moments_of
from tests.flow_pred.test_autoencoder import TINY
from videodata import open_clips
from videodata.errors import UserError
from videodata.labels import classes_of

DATA = "shapes:6,frames=20,size=16"


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder(TINY)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("fp16", 2e-3)])
def test_cached_latents_are_those_of_the_frames(tmp_path, autoencoder, dtype, tolerance):
    """A window of the cache equals the encoded window of the pictures, also with a stride."""
    encode_latents(autoencoder, DATA, "train", tmp_path, size=16, dtype=dtype)
    cached = LatentClips(tmp_path, "train", frames=4, stride=3, seed=5)
    pictures = open_clips(DATA, 4, 16, 3, "train", seed=5)
    assert len(cached) == len(pictures)
    for key in (0, 2, (1, 7), (1, 8)):
        expected = autoencoder.encode(pictures[key].transpose(0, 1))
        torch.testing.assert_close(cached[key]["latents"], expected, atol=tolerance, rtol=tolerance)
    assert len({float(cached[(1, position)]["latents"].sum()) for position in range(20)}) > 5


def test_normalised_latents_have_mean_zero_and_variance_one(tmp_path, autoencoder):
    """With the moments of the cache, which are those of all its frames; decoding undoes the normalisation."""
    encode_latents(autoencoder, DATA, "train", tmp_path, size=16, dtype="float32")
    cached = LatentClips(tmp_path, "train", frames=20)
    space = LatentSpace(autoencoder, *cached.moments())
    latents = space.normalize(torch.cat([cached[index]["latents"] for index in range(len(cached))]))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
    images = open_clips(DATA, 2, 16, split="train")[0].transpose(0, 1)
    torch.testing.assert_close(space.decode(space.encode(images)), autoencoder.decode(autoencoder.encode(images)))
    measured = moments_of(autoencoder, (open_clips(DATA, 20, 16, split="train")[index] for index in range(len(cached))))
    assert measured.mean() == pytest.approx(cached.moments()[0], abs=1e-4)


def test_another_autoencoders_cache_and_a_missing_one_are_refused(tmp_path, autoencoder):
    """By the hash of the weights; the error names the command that makes a cache."""
    encode_latents(autoencoder, DATA, "val", tmp_path, size=16)
    cached = LatentClips(tmp_path, "val", 2)
    cached.check(autoencoder)
    with pytest.raises(UserError, match="another autoencoder"):
        cached.check(build_autoencoder(TINY))
    with pytest.raises(UserError, match=r"encode_latents\.py"):
        LatentClips(tmp_path, "train", 2)
    with pytest.raises(UserError, match="clip spans"):
        LatentClips(tmp_path, "val", 21)
    assert cached.describe(0)["id"] and cached.fingerprint()


def test_a_cache_keeps_labels_and_can_be_a_part_of_the_videos(tmp_path, autoencoder):
    """Each clip has its video's label; `most` spreads over the split; older files name the command that mends them."""
    encode_latents(autoencoder, DATA, "train", tmp_path, size=16)
    cached, pictures = LatentClips(tmp_path, "train", 2), open_clips(DATA, 2, 16, split="train")
    labels = [pictures.label(index) for index in range(len(pictures))]
    assert [cached.label(index) for index in range(len(cached))] == labels and all(labels)
    assert classes_of(cached) == classes_of(pictures)
    encode_latents(autoencoder, DATA, "train", tmp_path / "part", size=16, most=2)
    part = LatentClips(tmp_path / "part", "train", 2)
    assert [part.ids[0], part.ids[1]] == [cached.ids[0], cached.ids[-1]] and len(part) == 2
    assert part.provenance()["ids"] == [cached.provenance()["ids"][place] for place in (0, -1)]
    with h5py.File(tmp_path / "train.hdf5", "a") as file:
        del file["label"]
    with pytest.raises(UserError, match="encode again"):
        LatentClips(tmp_path, "train", 2).label(0)


@pytest.mark.parametrize("name", ["id", "label", "offset", "latents", "mean", "std", "autoencoder"])
def test_a_damaged_cache_is_one_line(tmp_path, name):
    """Another data set, or another attribute, in the place of one is found when the cache is opened."""
    with h5py.File(tmp_path / "train.hdf5", "w") as file:
        file["latents"], file["offset"] = np.zeros((8, 3, 2, 2), "f2"), np.array([0, 4, 8])
        for text in ("id", "label"):
            file.create_dataset(text, data=["a", "b"], dtype=h5py.string_dtype())
        file.attrs.update(format="flow-latents", autoencoder="ab", mean="[0, 0, 0]", std="[1, 1, 1]")
    assert len(LatentClips(tmp_path, "train", 2)) == 2
    with h5py.File(tmp_path / "train.hdf5", "r+") as file:
        if name in file.attrs:
            file.attrs[name] = 5
        else:
            del file[name]
            file[name] = np.zeros(5)
    with pytest.raises(UserError, match="train.hdf5: cannot be read") as caught:
        LatentClips(tmp_path, "train", 2)
    assert "\n" not in str(caught.value)


def test_a_cache_that_another_program_stored_in_chunks_gives_the_same_clips(tmp_path, autoencoder):
    """Ours is mapped, in one piece; one that was packed anew is read through HDF5."""
    path = encode_latents(autoencoder, DATA, "train", tmp_path, size=16)
    mapped, chunked = LatentClips(tmp_path, "train", 4, stride=3), LatentClips(tmp_path, "train", 4, stride=3)
    clips = [mapped[(0, position)]["latents"] for position in range(5)]
    assert isinstance(mapped._latents.get(), np.memmap)
    with h5py.File(path, "r+") as file:
        values = file["latents"][()]
        del file["latents"]
        file.create_dataset("latents", data=values, chunks=(1, *values.shape[1:]), compression="lzf")
    for position, clip in enumerate(clips):
        torch.testing.assert_close(chunked[(0, position)]["latents"], clip, atol=0, rtol=0)
    assert isinstance(chunked._latents.get(), h5py.Dataset)
