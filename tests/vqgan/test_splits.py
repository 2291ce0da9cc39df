"""Nothing is trained on that the data declares as validation or test, and an evaluation says what was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import evaluate, train_vqgan
from training import trained_on
from training.folder import open_run_folder
from videodata.errors import UserError
from videodata.npy import NpySource
from videodata.shapes import Shapes
from vqgan import train
from vqgan.files import load_model

COUNTS = {"train": 5, "val": 2, "test": 3}
SMALL = [
    *("--patch_size", "16", "--num_patches_h", "2", "--num_patches_w", "1", "--downsample_factor", "4"),
    *("--hidden_dims", "8", "16", "16", "--latent_dim", "4", "--num_embeddings", "16", "--perceptual_weight", "0"),
    *("--batch_size", "2", "--workers", "0", "--device", "cpu", "--steps", "2", "--gan_steps", "2"),
]  # fmt: skip


@pytest.fixture
def divided(tmp_path):
    """A folder with train.npy, val.npy and test.npy."""
    (tmp_path / "data").mkdir()
    for seed, (name, count) in enumerate(COUNTS.items()):
        videos = Shapes(count, frames=3, size=32, seed=seed)
        np.save(tmp_path / "data" / f"{name}.npy", np.stack([videos.read(index) for index in range(count)]))
    return tmp_path / "data"


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are read before the finished model is scored, and afterwards."""
    names, read, score = {"training": set(), "scoring": set()}, NpySource.read, train.write_test_scores
    phase = ["training"]

    def noting(self, *arguments, **options):
        names[phase[0]].add(Path(self.path).name)
        return read(self, *arguments, **options)

    def scoring(*arguments):
        phase[0] = "scoring"
        score(*arguments)

    monkeypatch.setattr(NpySource, "read", noting)
    monkeypatch.setattr(train, "write_test_scores", scoring)
    return names


def scores_of(run_dir, data, split):
    """The JSON file of an evaluation of the best model."""
    path = run_dir / f"{split}.json"
    evaluate.main(
        ["vqgan", "--checkpoint", str(run_dir / "best_model_gan.pt"), "--data", str(data), "--split", split,
         "--frames", "2", "--device", "cpu", "--out", str(path)]
    )  # fmt: skip
    return json.loads(path.read_text())


def test_declared_test_clips_are_not_trained_on(divided, opened, tmp_path, capsys):
    """The files that are opened and trained_on.json say so; all train clips are known again, no test clip is."""
    run_dir = tmp_path / "run"
    train_vqgan.main(["--data", str(divided), "--run_dir", str(run_dir), *SMALL])
    assert opened == {"training": {"train.npy", "val.npy"}, "scoring": {"test.npy"}}
    for record in (trained_on(run_dir / "best_model_gan.pt"), trained_on(run_dir / "stage1"), trained_on(run_dir)):
        assert record["split"] == "train" and len(record["ids"]) == COUNTS["train"]
        assert all(name.startswith("train.npy#") for name in record["ids"])
    scores = json.loads((run_dir / "results" / "test_scores.json").read_text())
    assert scores["patches"] == COUNTS["test"] * 3 * 2 and scores["clips_trained_on"] == 0 < scores["clips"]
    capsys.readouterr()

    assert scores_of(run_dir, divided, "test")["clips_trained_on"] == 0
    assert "of these 3 clips, 0 were" in capsys.readouterr().out.lower()
    assert scores_of(run_dir, divided, "train")["clips_trained_on"] == COUNTS["train"]
    printed = capsys.readouterr()
    assert "WARNING: of these 5 clips, 5 were" in printed.out and "WARNING" in printed.err


def test_weights_of_unknown_training_make_it_unknown(divided, tmp_path):
    """What begins with a file that does not say what it was trained on does not claim to know."""
    flags = ["--data", str(divided), *SMALL, "--gan_steps", "0"]
    train_vqgan.main([*flags, "--run_dir", str(tmp_path / "first"), "--test_patches", "4"])
    scores = json.loads((tmp_path / "first" / "results" / "test_scores.json").read_text())
    assert (scores["patches"], scores["clips"]) == (4, COUNTS["test"] * 3)
    folder, file = (load_model(tmp_path / "first" / name)[0] for name in ("", "best_model_stage1.pt"))
    assert all(torch.equal(a, b) for a, b in zip(folder.state_dict().values(), file.state_dict().values(), strict=True))
    (tmp_path / "first" / "best_model_stage1.pt").rename(tmp_path / "bare.pt")
    train_vqgan.main([*flags, "--run_dir", str(tmp_path / "second"), "--resume", str(tmp_path / "bare.pt")])
    assert trained_on(tmp_path / "second") is None and trained_on(tmp_path / "second" / "stage1") is not None


def test_data_without_declared_test_clips_is_scored_on_its_validation_clips(divided, tmp_path):
    """A declared division always holds: without test.npy no test clips are made out of the others."""
    (divided / "test.npy").unlink()
    train_vqgan.main(["--data", str(divided), "--run_dir", str(tmp_path / "run"), *SMALL])
    assert json.loads((tmp_path / "run" / "results" / "test_scores.json").read_text())["split"] == "val"


def test_a_folder_of_another_model_is_refused(divided, tmp_path):
    """Either way round: a run keeps its files apart from those of other models."""
    other, own = tmp_path / "other", tmp_path / "own"
    other.mkdir()
    (other / "config.yaml").write_text("model: {}\n")
    with pytest.raises(UserError, match="other: holds another model's run; use another folder"):
        train_vqgan.main(["--data", str(divided), "--run_dir", str(other), *SMALL])
    own.mkdir()
    (own / "trained_on.json").write_text("{}")
    with (
        pytest.raises(UserError, match="own: holds models of another training; use another folder"),
        open_run_folder(own),
    ):
        pass
