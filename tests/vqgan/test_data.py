"""Patches, batch files, splits and augmentation."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from videodata.errors import UserError
from vqgan import data
from vqgan.data import (
    PatchDataset,
    color_jitter,
    find_batch_files,
    merge_patches,
    open_frames,
    open_videos,
    split_patches,
    write_batch_files,
)


@pytest.fixture
def npy(tmp_path):
    """Ten sequences of three 12x16 frames, of five videos with a group for each two sequences."""
    frames = np.random.default_rng(0).integers(0, 256, (10, 3, 12, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "clips.npy", frames)
    videos = [
        {"id": f"v{n}", "label": "A", "group": f"g{n}", "fps": "25/1", "frames": 6, "first_sequence": 2 * n,
         "sequences": 2}
        for n in range(5)
    ]  # fmt: skip
    facts = {"format": "videodata-npy", "version": 1, "color": "RGB", "num_frames": 3, "height": 12, "width": 16}
    (tmp_path / "clips.json").write_text(json.dumps({**facts, "prepare": {}, "videos": videos, "skipped": []}))
    return tmp_path / "clips.npy"


def test_patches_are_numbered_patch_then_frame_then_video(npy):
    """Item i is the patch at (video, frame, row, column) with the column varying fastest, in [-1, 1]."""
    patches = PatchDataset(open_frames(npy, None, None), 3, 4)
    frames = np.load(npy)
    assert len(patches) == 10 * 3 * 12
    index = ((4 * 3 + 2) * 3 + 1) * 4 + 3  # video 4, frame 2, row 1, column 3
    expected = frames[4, 2, 4:8, 12:16].transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(patches[index].numpy(), expected, atol=1e-6)
    described = patches.describe(index)
    assert (described["frame_idx"], described["patch_h"], described["patch_w"]) == (2, 1, 3)
    assert described["group"] == "g2"


def test_batch_files_hold_the_data_unchanged(npy, tmp_path):
    """Cut into files of four sequences, the videos, groups and pixels are those of the .npy."""
    files = write_batch_files(npy, tmp_path / "batches", 4)
    assert [path.name for path in files] == [f"ucf101_subset_batch_{k}.npy" for k in range(3)]
    assert np.array_equal(np.concatenate([np.load(path) for path in files]), np.load(npy))
    source, videos = open_videos(tmp_path / "batches", None, test_batch=13)
    whole, _ = open_videos(npy, None, test_batch=13)
    assert [source.group(video) for video in videos] == [whole.group(video) for video in range(10)]
    assert np.array_equal(source.read(7, 1, 2), whole.read(7, 1, 2))
    with pytest.raises(UserError, match="holds batch files already"):
        write_batch_files(npy, tmp_path / "batches", 4)


@pytest.mark.posix
def test_batch_files_are_there_together_or_not_at_all(npy, tmp_path, monkeypatch):
    """Some of them would pass for the whole data set. Killed while writing or naming them, the same command goes on."""
    folder = tmp_path / "batches"
    for function, at, there in (("write_sidecar", 2, 0), ("publish", 4, 0), ("publish", 5, 1)):
        calls, original = [], getattr(data, function)

        def killed(*arguments, calls=calls, original=original, at=at):
            calls.append(arguments)
            if len(calls) == at:
                os._exit(9)
            original(*arguments)

        monkeypatch.setattr(data, function, killed)
        child = os.fork()
        if child == 0:
            write_batch_files(npy, folder, 4)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        monkeypatch.setattr(data, function, original)
        assert len(find_batch_files(folder)) == there
    files = write_batch_files(npy, folder, 4)
    assert np.array_equal(np.concatenate([np.load(path) for path in files]), np.load(npy))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"ucf101_subset_batch_{k}{suffix}" for k in range(3) for suffix in (".json", ".npy")
    )


def test_splits_share_no_group_and_the_test_batch_is_the_test_split(npy, tmp_path):
    """Training and validation come from the other files and divide their groups; file 2 alone is for testing."""
    write_batch_files(npy, tmp_path / "batches", 4)
    groups = {}
    for name in ("train", "val", "test"):
        source, videos = open_videos(tmp_path / "batches", name, test_batch=2)
        groups[name] = {source.group(video) for video in videos}
    assert groups["test"] == {"g4"}
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]
    assert groups["train"] | groups["val"] == {"g0", "g1", "g2", "g3"}


def test_augmentation_is_a_function_of_the_position(npy):
    """The same position gives the same patch, another one another patch; without augmentation all are equal."""
    augmented = PatchDataset(open_frames(npy, None, None, flip=True), 3, 4, jitter=0.05)
    assert torch.equal(augmented[(5, 7)], augmented[(5, 7)])
    assert not torch.equal(augmented[(5, 7)], augmented[(5, 8)])
    plain = PatchDataset(open_frames(npy, None, None), 3, 4)
    assert torch.equal(plain[(5, 7)], plain[(5, 8)])
    assert float(augmented[(5, 7)].abs().max()) <= 1


def test_jitter_of_nothing_changes_nothing():
    """With draws of zero the picture stays, and gray stays gray under any hue."""
    picture = torch.rand(3, 4, 4) * 2 - 1
    assert torch.allclose(color_jitter(picture, torch.zeros(4), 0.05), picture, atol=1e-5)
    gray = torch.full((3, 2, 2), 0.2)
    assert torch.allclose(color_jitter(gray, torch.tensor([0.0, 0.0, 1.0, 1.0]), 0.05), gray, atol=1e-5)


def test_a_grid_that_does_not_fit_is_one_line(npy):
    """Frames of 16x12 have no 5x5 patches."""
    with pytest.raises(UserError, match="5x5 patches"):
        PatchDataset(open_frames(npy, None, None), 5, 5)
    with pytest.raises(UserError, match="5x5 patches"):
        split_patches(torch.zeros(1, 3, 12, 16), 5, 5)


def test_maps_of_indices_are_cut_and_merged_like_frames():
    """`merge_patches(split_patches(x)) == x` for pictures and for index maps."""
    for value in (torch.randn(2, 3, 12, 16), torch.arange(2 * 12 * 16).reshape(2, 12, 16)):
        pieces = split_patches(value, 3, 4)
        assert pieces.shape[0] == 24 and torch.equal(merge_patches(pieces, 3, 4), value)
    assert torch.equal(split_patches(value, 3, 4)[5], value[0, 4:8, 4:8])


def test_only_numbered_files_are_batch_files(tmp_path):
    """Other files in the folder are left alone, and numbers sort as numbers."""
    for name in ("ucf101_subset_batch_10.npy", "ucf101_subset_batch_2.npy", "other.npy"):
        (tmp_path / name).touch()
    assert list(find_batch_files(tmp_path)) == [2, 10]
    assert find_batch_files("shapes:3") == {}


def test_hidden_files_are_no_batch_files(npy):
    """`._x_batch_0.npy` of a Macintosh does not take the place of a batch file."""
    written = write_batch_files(npy, npy.parent / "batches", 5)
    for path in written:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert list(find_batch_files(npy.parent / "batches").values()) == written


def test_data_that_is_not_there_names_what_makes_it(tmp_path):
    """The command that writes batch files, and that any source will do."""
    for opened in (open_frames, open_videos):
        with pytest.raises(
            UserError, match=r"UCFData: no such file or folder; scripts/split_batch_files.py --output_dir"
        ):
            opened(tmp_path / "UCFData", "train", *([None] if opened is open_frames else [13]))


def test_the_test_script_takes_the_data_that_is_there(tmp_path):
    """run_testing.sh: DATA_PATH, else data/UCFData, else generated shapes."""

    def data_path(**variables: str) -> str:
        script = Path(__file__).parents[2] / "scripts" / "run_testing.sh"
        run = subprocess.run(
            ["bash", script], cwd=tmp_path, env=os.environ | {"PYTHON": "echo"} | variables, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        return run.stdout.partition("--data_path ")[2].split()[0]

    assert data_path() == "shapes:10,frames=4" and data_path(DATA_PATH="mine") == "mine"
    (tmp_path / "data" / "UCFData").mkdir(parents=True)
    assert data_path() == "data/UCFData"
