"""What would only fail or surprise late is said before a training begins."""

import pytest

from tests.training.runs import run
from training import loop
from training.checkpoint import load_checkpoint
from videodata.errors import UserError


def test_fewer_steps_than_taken(tmp_path):
    """No silent success, and what the run was asked for before stays on record."""
    run(tmp_path, steps=6)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="has taken 6 steps, more than the 4"):
        run(tmp_path, steps=4)
    assert (tmp_path / "config.yaml").read_text() == before and load_checkpoint(tmp_path)["step"] == 6
    assert run(tmp_path, steps=6).finished


def test_a_schedule_that_is_stretched_says_what_becomes_of_the_rate(tmp_path, caplog):
    """A finished cosine that goes on starts high again; a constant rate stays as it is."""
    run(tmp_path / "cosine", steps=6, schedule="cosine")
    run(tmp_path / "cosine", steps=60, schedule="cosine")
    assert "the learning rate goes from 0 to 0.9" in caplog.text and "60 steps in place of 6" in caplog.text
    caplog.clear()
    run(tmp_path / "constant", steps=6)
    run(tmp_path / "constant", steps=8)
    assert "learning rate goes" not in caplog.text


def test_no_more_loader_processes_than_cores(tmp_path, monkeypatch, recwarn):
    """torch warns of more, and they only take time from each other; the samples are the same."""
    monkeypatch.setattr(loop, "available_cores", lambda: 1)
    seen = []
    batches = loop.batches
    monkeypatch.setattr(loop, "batches", lambda data, keys, s, device: seen.append(s.workers) or batches(
        data, keys, s, device))  # fmt: skip
    result = run(tmp_path / "a", steps=2, workers=16)
    assert seen == [1] and result.digest == run(tmp_path / "b", steps=2).digest
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]


def test_wandb_that_is_missing_leaves_no_folder(tmp_path, monkeypatch):
    """Looked for before the run folder is made."""
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the wandb package"):
        run(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()
