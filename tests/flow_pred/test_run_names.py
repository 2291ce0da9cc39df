"""Which run and which step a name stands for, and what of it can be opened."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from flow_pred.files import documented, load_model, read_component, role_of
from flow_pred.train import go_back
from scripts import train_flow_pred
from tests.flow_pred.tiny import tiny_values
from tests.training.runs import run as train_other
from training.checkpoint import checkpoints_in, load_checkpoint
from videodata.errors import UserError


def train(folder, name, func="f_nll", *, run_name=None, steps=4, **model):
    """The documented command for a tiny network; gives its exit status's cause, None."""
    config = Path(folder) / f"tiny_{name}.yaml"
    config.write_text(yaml.safe_dump(tiny_values(func, **model)))
    named = ["--run-name", run_name] if run_name else []
    train_flow_pred.main([
        "--config", str(config), *named, "--runs", str(Path(folder) / "runs"), "--num-gpus", "0",
        "--steps", str(steps), "--save_every", "2", "--keep", "5",
    ])  # fmt: skip


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A folder with the run of a flow whose name has the other word for nll."""
    folder = tmp_path_factory.mktemp("flow")
    train(folder, "f-01-nll", run_name="f-01-null")
    return folder


def test_null_and_nll_name_the_same_run(flow, tmp_path, monkeypatch, capsys):
    """The run is written under the documented name and found under both; a diffusion trains on either path."""
    assert [path.name for path in (flow / "runs").iterdir()] == ["tiny_run-f-01-nll"]
    for word in ("nll", "null"):
        assert role_of(flow / "runs" / f"tiny_run-f-01-{word}", None) == "f"
    file = flow / "runs" / "tiny_run-f-01-null" / "checkpoints" / "final_step_300000.pth"  # of the published length
    train(tmp_path, "g-01-nll", "g", f_ckpt_path=str(file))
    old = tmp_path / "runs" / "tiny_run-h-null"  # of a run from before
    shutil.copytree(flow / "runs" / "tiny_run-f-01-nll", old)
    train(tmp_path, "f-01-nll", run_name="h-nll")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny_run-g-01-nll", "tiny_run-h-null"]


def test_the_path_that_a_training_prints_can_be_opened(flow):
    """final_step_<n>.pth has no configuration in it; that of its run lies beside it."""
    run = flow / "runs" / "tiny_run-f-01-nll"
    file = run / "checkpoints" / "final_step_4.pth"
    assert role_of(file, None) == "f"
    whole, part = read_component(run, "f").network.state_dict(), read_component(file, "f").network.state_dict()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert load_model(file).config.name == "tiny"


def test_a_file_that_is_not_there_keeps_its_name(tmp_path, monkeypatch):
    """A folder checkpoints/ in the current folder is nobody's run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in ("runs/missing", "runs/a/checkpoints/step-0000001.pt"):
        assert documented(name) == Path(name)
        with pytest.raises(UserError, match=f"^{name}: no such checkpoint"):
            read_component(name, "f")


def test_a_run_of_another_model_is_told(tmp_path):
    """Not by one of its unknown keys."""
    train_other(tmp_path / "gan", steps=1)
    with pytest.raises(UserError, match="gan: is a run of tiny_gan, not of a video predictor"):
        role_of(tmp_path / "gan", None)
    with pytest.raises(UserError, match="is a run of tiny_gan"):
        read_component(tmp_path / "gan", "f")


def test_any_kept_step_can_be_gone_back_to(flow, tmp_path):
    """Newer checkpoints are set aside, not lost; the run then ends with the same bits."""
    run = Path(shutil.copytree(flow / "runs" / "tiny_run-f-01-nll", tmp_path / "run"))
    with pytest.raises(UserError, match="step 3 is not kept; there are 2, 4"):
        go_back(run, 3)
    go_back(run, -1)
    assert [entry.step for entry in checkpoints_in(run / "checkpoints")] == [4, 2]
    before = load_checkpoint(run)["networks"]["regressor"]
    go_back(run, 2)
    assert [entry.step for entry in checkpoints_in(run / "checkpoints")] == [2]
    assert [entry.step for entry in checkpoints_in(run / "checkpoints" / "newer-than-2")] == [4]
    config = tmp_path / "tiny_f-01-nll.yaml"
    config.write_text(yaml.safe_dump(tiny_values("f_nll")))
    train_flow_pred.main(["--config", str(config), "--run-dir", str(run), "--num-gpus", "0", "--resume-step", "2",
                          "--save_every", "2", "--keep", "5"])  # fmt: skip
    after = load_checkpoint(run)["networks"]["regressor"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    damaged = run / "checkpoints" / "step-0000002.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match="choose another step"):
        go_back(run, 2)
