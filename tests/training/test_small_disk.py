"""A real disk that is full: one line, nothing half-written, and after there is room the same bytes as ever."""

import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from evaluation.gallery import Gallery, Row
from evaluation.set_distance import FeatureCache
from flow_pred.files import build_autoencoder
from flow_pred.generate import open_h5
from flow_pred.latents import encode_latents
from lvt.codes import write_codes
from tests.small_disk import leave, small_disk
from tests.training.runs import run, weights
from training.cli import explain
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.npy import allocated_array
from vvae import VVAEError
from vvae.src.latent_files import LatentInfo, latent_writer

LITTLE = 64 << 10  # bytes


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp("small") / "disk") as disk:
        yield disk


@pytest.fixture
def disk(mounted):
    """The disk, empty."""
    yield mounted
    for path in mounted.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def names(disk):
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())


def test_an_array_that_is_filled_in_place_has_its_room_first(disk):
    """To write to a page without room would end the process with SIGBUS, which no test would survive."""
    ballast = leave(disk, 1 << 20)
    with pytest.raises(OSError, match="No space left on device: .*a.npy") as failure:
        allocated_array(disk / "a.npy", np.int16, (4 << 20,))
    assert explain(failure.value).endswith("a.npy: No space left on device; free disk space or choose another folder")
    assert names(disk) == ["ballast"]
    ballast.unlink()
    array = allocated_array(disk / "a.npy", np.int16, (4 << 20,))
    leave(disk, 0)
    array[:] = 7  # there is room for these, although the disk is full
    array.flush()
    assert (np.load(disk / "a.npy") == 7).all()


def test_codes_of_a_data_set(disk):
    """The command that extracts codes refuses and then goes on."""
    videos, codes = [(f"v{n}", None, 128) for n in range(8)], np.arange(2 << 20, dtype=np.int64) % 8
    codes = codes.reshape(8, 128, 2, 32, 32)
    ballast = leave(disk, 1 << 20)
    with pytest.raises(UserError, match=r"codes.npy: no room left .*run the same command again"):
        write_codes(disk / "codes.npy", videos, codes.__getitem__, 8)
    assert names(disk) == ["ballast"]
    ballast.unlink()
    write_codes(disk / "codes.npy", videos, codes.__getitem__, 8)
    assert np.array_equal(np.load(disk / "codes.npy", mmap_mode="r"), codes)
    assert names(disk) == ["codes.json", "codes.npy"]


@pytest.mark.parametrize("free", [0, 4 << 20])
def test_latents_of_a_data_set(disk, free):
    """HDF5 would crash when a file is closed on a full disk: it is asked before."""
    autoencoder, data = build_autoencoder({"type": "identity"}), "shapes:6,frames=8,size=16"
    ballast = leave(disk, free)
    with pytest.raises(OSError, match="No space left") as failure:
        encode_latents(autoencoder, data, "train", disk, size=16)
    assert "train.hdf5: No space left on device; free disk space" in explain(failure.value)
    assert names(disk) == ["ballast"]
    ballast.unlink()
    with h5py.File(encode_latents(autoencoder, data, "train", disk, size=16)) as file:
        assert np.isfinite(file["latents"][()]).all()


def test_predictions_in_hdf5(disk):
    """videos.h5 is whole or absent."""
    prediction = SimpleNamespace(generated=torch.zeros(1, 3, 4, 16, 16), target=None)
    leave(disk, 4 << 20)
    with pytest.raises(OSError, match="No space left"), open_h5(disk / "videos.h5") as writer:
        writer.add(prediction)
    assert names(disk) == ["ballast"]


@pytest.mark.parametrize("free", [0, 1 << 20])
@pytest.mark.parametrize("suffix", [".npy", ".hdf5"])
def test_latents_of_a_film(disk, suffix, free):
    """The package that is copied into other projects says it in one line of its own."""
    info = LatentInfo("a.mp4", 25, 64, 512, 512, 16, 16, 4)
    leave(disk, free)
    with pytest.raises((VVAEError, OSError), match="No space left"), latent_writer(disk / f"a{suffix}", info) as writer:
        for _ in range(4):
            writer.append(torch.zeros(16, 4, 64, 64))
    assert names(disk) == ["ballast"]


def test_a_film(disk):
    """Nothing is left of a film that did not fit."""
    frames = np.random.default_rng(0).integers(256, size=(16, 64, 64, 3), dtype=np.uint8)
    leave(disk, LITTLE)
    with pytest.raises(UserError, match=r"a.mp4: no room left .*free some space"):
        write_video(disk / "a.mp4", frames, 8, lossless=True)
    assert names(disk) == ["ballast"]


def test_a_gallery(disk, tmp_path):
    """The page comes last, so that there is none without its films; then all of it."""
    film = write_video(tmp_path / "a.mp4", np.zeros((4, 64, 64, 3), np.uint8), 8)
    gallery = Gallery("A page")
    gallery.add_section("A model", "Films.", clips=[Row("Films", [("one", film)])])
    ballast = leave(disk, 0)
    with pytest.raises((OSError, UserError)) as failure:
        gallery.write(disk / "page")
    assert "No space left" in explain(failure.value) and "page" in explain(failure.value)
    assert names(disk) == ["ballast"]
    ballast.unlink()
    assert gallery.write(disk / "page").is_file()


def test_features_that_cannot_be_kept_cost_no_evaluation(disk, caplog):
    """They are a cache."""
    leave(disk, 0)
    FeatureCache(disk, {"key": 1}).write(torch.zeros(400, 400))
    assert "are not kept" in caplog.text and names(disk) == ["ballast"]


def test_a_training(disk, tmp_path):
    """Refused where not even one checkpoint fits; on a disk that is full later, an error; then the weights as ever."""
    straight = run(tmp_path / "straight")
    ballast = leave(disk, 0)
    with pytest.raises(UserError) as failure:
        run(disk / "run")
    assert "free" in explain(failure.value)
    ballast.unlink()
    assert run(disk / "run").digest == straight.digest
    assert weights(disk / "run").keys() == weights(tmp_path / "straight").keys()
    rows = [json.loads(line) for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
