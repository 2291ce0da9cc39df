"""Faults of the disk and of what is on it: full, damaged, foreign, changed."""

import errno
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.training import faults, processes
from tests.training.runs import run, settings, weights
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import checkpoint as checkpoints
from training import cli, train
from training.checkpoint import (
    best_checkpoint,
    checkpoints_in,
    load_checkpoint,
    newest_checkpoint,
    write_tensors,
    write_weights,
)
from training.folder import check_config, check_free_space
from videodata.errors import UserError
from videodata.files import HashingFile, remove_debris, write_file


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with checkpoints of steps 8 and 12, and its digest."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(folder, save_every=4).digest


@pytest.fixture
def a_copy(finished, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_a_full_disk_at_one_save_is_a_warning(tmp_path, finished, monkeypatch, caplog):
    """The run goes on with its old checkpoints, leaves no debris, saves the next time, and ends with the same bits."""
    faults.install("full_in_save@8", monkeypatch.setattr)
    result = run(tmp_path, save_every=4)
    assert result.digest == finished[1]
    assert "WARN checkpoint not saved" in caplog.text
    assert files(tmp_path) == [
        *("step-0000004.json", "step-0000004.pt", "step-0000012.json", "step-0000012.pt"),
        *("weights-0000004.safetensors", "weights-0000008.safetensors", "weights-0000012.safetensors"),
    ]


def test_a_file_size_limit_while_writing_leaves_no_debris(tmp_path):
    """An error in the middle of a file, reported by the disk, arrives as OSError and removes the temporary file."""

    class FullFile:
        def write(self, data):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def write(file):
        file.file = FullFile()
        torch.save({"weights": torch.zeros(1000)}, file)

    with pytest.raises(OSError, match="File too large"):
        write_file(tmp_path / "step.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_stays_full_ends_the_run(tmp_path, monkeypatch):
    """After several saves in a row without success training is given up with one line."""
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError, match="no checkpoint saved in 3 attempts"):
        run(tmp_path, save_every=2)


def test_a_failed_last_save_is_no_success(tmp_path, monkeypatch):
    """The run ends, but not with status 0."""
    faults.install("full_in_save@12", monkeypatch.setattr)
    with pytest.raises(UserError, match="last checkpoint could not be saved"):
        run(tmp_path, save_every=4)
    assert load_checkpoint(tmp_path)["step"] == 8


def test_free_space_is_checked_before_the_start(tmp_path, caplog):
    """Too little for one checkpoint is an error, too little for all to keep a warning."""
    with pytest.raises(UserError, match="a checkpoint needs"):
        check_free_space(tmp_path, 10**18, 3)
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path, free // 2, 3)
    assert "3 checkpoints" in caplog.text


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(a_copy, finished, caplog, damage):
    """One flipped byte, a cut or a missing file: warned of, step 8 continues, and the final bits are the same."""
    newest = a_copy / "checkpoints" / "step-0000012.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[:-100])
    if damage == "removed":
        newest.unlink()
    else:
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(newest)
    assert newest_checkpoint(a_copy / "checkpoints").step == 8
    assert run(a_copy, save_every=4).digest == finished[1]
    assert "damaged" in caplog.text or damage == "removed"


def test_only_damaged_checkpoints_never_start_over_silently(a_copy):
    """When nothing is valid, the run refuses to overwrite what might be restored."""
    for path in (a_copy / "checkpoints").glob("*.pt"):
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run(a_copy)


@pytest.mark.parametrize("folder", ["/proc/videogen/run", "file/run"])
@pytest.mark.posix
def test_an_unwritable_run_folder_is_refused_before_any_computing(tmp_path, folder, monkeypatch):
    """One line that names the folder; the recipe is never asked for a loss."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    recipe = TinyGAN()
    recipe.losses = None
    with pytest.raises(UserError, match=f"{folder}: cannot be written"):
        run(Path(folder), recipe)


@pytest.mark.posix
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_read_only_run_folder_is_refused(tmp_path):
    """A folder without write permission gives one line."""
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "run")


class OtherRecipe(TinyGAN):
    name = "other"


def test_a_checkpoint_of_another_model_is_refused_readably(a_copy):
    """Other recipe, other shapes: one line each, with at most ten keys per kind."""
    with pytest.raises(UserError, match="is of recipe 'tiny_gan', not 'other'"):
        run(a_copy, OtherRecipe())
    with pytest.raises(UserError, match=r"other shape: encoder.weight is \(8, .*\) in the file and \(4, ") as report:
        run(a_copy, TinyGAN(width=4))
    assert "\n" not in str(report.value)
    many = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(UserError, match=r"missing: 0.weight.* and 30 more"):
        checkpoints.strict_load(many, {}, "weights.pt")


def test_older_formats_are_migrated_and_newer_ones_refused(a_copy, monkeypatch):
    """A table of functions brings old states up to date."""
    state = load_checkpoint(a_copy)
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    monkeypatch.setattr(checkpoints, "MIGRATIONS", {1: lambda old: {**old, "migrated": True}})
    assert load_checkpoint(a_copy)["migrated"] and load_checkpoint(a_copy)["format"] == 2
    with pytest.raises(UserError, match="format 3, this version reads up to 2"):
        checkpoints.migrate({**state, "format": 3}, "x.pt")
    monkeypatch.setattr(checkpoints, "MIGRATIONS", {})
    with pytest.raises(UserError, match="can no longer be read"):
        load_checkpoint(a_copy)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    """A checkpoint file that would run code is an error, and its code does not run."""

    class Malicious:
        def __reduce__(self):
            return (Path(tmp_path / "marker").touch, ())

    torch.save({"format": 1, "networks": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint of tensors and plain types"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()


def test_a_changed_configuration_needs_permission(a_copy, caplog):
    """Changed keys are listed; below model never, elsewhere with allow_config_change, free keys always."""
    with pytest.raises(UserError, match=r"engine.seed: 0 -> 1, engine.clip: 1.0 -> 2.0.*--allow-config-change"):
        run(a_copy, seed=1, clip=2.0)
    run(a_copy, clip=2.0, steps=13, allow_config_change=True)
    assert "engine.clip: 1.0 -> 2.0" in caplog.text
    with pytest.raises(UserError, match=r"its run has another model \(model.width: 8 -> 9\)"):
        train(TinyGAN(), TinyClips(), settings(a_copy, allow_config_change=True), {"model": {"width": 9}})


def test_a_run_from_before_the_key_engine_continues():
    """Its settings stood under `training`, among the model's own; only what differs is named."""
    new = {
        "model": {},
        "training": {"optimizer": "adam"},
        "engine": {**asdict(settings(Path("run"))), "milestones": []},
    }
    gone = ("warmup", "warmup_start", "milestones", "gamma", "final_rate")
    kept = {name: value for name, value in new["engine"].items() if name not in gone}
    old = {"model": {}, "training": {"optimizer": "adam", **kept}}
    check_config(old, new, False, frozenset(), Path("run"))
    check_config({"model": {}, "training": kept}, {**new, "training": None}, False, frozenset(), Path("run"))
    changed = {**old, "training": {**old["training"], "schedule": "cosine"}}
    with pytest.raises(
        UserError, match=r"changed \(engine.schedule: 'cosine' -> 'constant'\); add --allow-config-change"
    ):
        check_config(changed, new, False, frozenset(), Path("run"))


def test_a_finished_run_is_extended_by_asking_for_more_steps(a_copy, finished, tmp_path):
    """12 steps and then 16 end with the bits of 16 in one go; asking again for 12 changes nothing."""
    again = run(a_copy, save_every=4)
    assert (again.digest, again.finished, again.step) == (finished[1], True, 12)
    assert run(a_copy, steps=16, log_every=2, keep=3).digest == run(tmp_path / "straight", steps=16).digest


def test_resume_never_refuses_a_used_folder(a_copy):
    """A run that must be new does not touch the folder of another."""
    with pytest.raises(UserError, match="--resume auto"):
        run(a_copy, resume="never")


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    """The newest two and the one with the best metric are kept, each with manifest and weights."""
    recipe, values = TinyGAN(), iter([1.0, 5.0, 2.0, 3.0, 4.0])
    recipe.evaluate = lambda batch, step, networks: {"psnr": torch.full((len(batch),), next(values))}
    chosen = settings(tmp_path, steps=5, save_every=1, evaluate_every=1, keep=2, evaluate_batches=1)
    train(recipe, TinyClips(), chosen, {"model": {}}, TinyClips(4))
    steps = [entry.step for entry in checkpoints_in(tmp_path / "checkpoints")]
    assert steps == [5, 4, 2]
    assert len(files(tmp_path)) == 9
    assert best_checkpoint(tmp_path, ("psnr", "max")).name == "step-0000002.pt"
    assert best_checkpoint(tmp_path, ("psnr", "min")).name == "step-0000004.pt"


def test_nothing_is_deleted_unless_the_new_checkpoint_is_verified(a_copy, monkeypatch, caplog):
    """When the disk returns other bytes than were written, the old checkpoints stay and the new one does not count."""
    monkeypatch.setattr(checkpoints, "sha256_of", lambda path: "0" * 64)
    monkeypatch.setattr(checkpoints.Checkpoint, "damage", lambda self: None)
    with pytest.raises(UserError, match="returns other bytes"):
        run(a_copy, steps=13, save_every=4)
    assert [entry.step for entry in checkpoints_in(a_copy / "checkpoints")] == [12, 8]


def test_a_checkpoint_without_manifest_is_ignored_and_reported(a_copy, caplog):
    """What a crash between file and manifest leaves is not used and not touched."""
    (a_copy / "checkpoints" / "step-0000012.json").unlink()
    assert newest_checkpoint(a_copy / "checkpoints").step == 8
    assert "no manifest" in caplog.text
    assert (a_copy / "checkpoints" / "step-0000012.pt").exists()


def test_debris_of_a_killed_run_is_removed(a_copy):
    """Unfinished files go at the next start."""
    (a_copy / "checkpoints" / "step-0000016.pt.tmp").write_bytes(b"half")
    (a_copy / "metrics.jsonl.tmp").write_bytes(b"half")
    (a_copy / "samples" / "step-0000016").mkdir(parents=True)
    (a_copy / "samples" / "step-0000016" / ".a.mp4.1.tmp").write_bytes(b"half")
    run(a_copy)
    assert not list(a_copy.rglob("*.tmp"))


def test_the_weights_file_is_the_averaged_weights(finished):
    """weights-*.safetensors holds what evaluation uses, with recipe, step and configuration."""
    folder, _ = finished
    shared = load_checkpoint(folder / "checkpoints" / "weights-0000012.safetensors")
    state = load_checkpoint(folder)
    assert (shared["recipe"], shared["step"], shared["config"]["model"]) == ("tiny_gan", 12, {"width": 8})
    for key, value in shared["networks"]["autoencoder"].items():
        assert torch.equal(value, state["ema"]["autoencoder"][key])
    for key, value in shared["networks"]["discriminator"].items():
        assert torch.equal(value, state["networks"]["discriminator"][key])


def test_changed_data_is_warned_of(a_copy, caplog):
    """A data set with another fingerprint continues with a warning."""
    run(a_copy, dataset=TinyClips(20), steps=13)
    assert "data set is not the one of the checkpoint" in caplog.text


def test_metrics_have_no_gap_and_no_double_after_resume(tmp_path, caplog):
    """Rows after the resumed step and a cut-off row are dropped and written again."""
    run(tmp_path, steps=6, save_every=4)
    path = tmp_path / "metrics.jsonl"
    for name in ("step-0000006.json", "step-0000006.pt"):
        (tmp_path / "checkpoints" / name).unlink()
    path.write_text(path.read_text() + '{"step": 7, "lo')
    run(tmp_path, save_every=4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(row["samples"] == 4 * row["step"] for row in rows)
    assert re.search(r"final weights sha256=[0-9a-f]{64}", (tmp_path / "train.log").read_text())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; free disk space"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npy"), "a.npy: No such file or directory"),
        (UserError("first\nsecond"), r"first\nsecond"),
    ],
)
def test_scripts_explain_the_disk_in_one_line(error, line, capsys):
    """Status 2 and one line on stderr; --debug lets the error through."""

    def main(argv):
        assert argv == ["--flag"]
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main, ["--flag"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}") and err.count("\n") == 1
    with pytest.raises(type(error)):
        cli.run(main, ["--debug", "--flag"])


def test_the_epoch_hook_gets_the_state_that_a_checkpoint_would_hold(tmp_path, monkeypatch):
    """Called after each epoch on the main process, with the complete state; a full disk there ends in an error."""
    recipe, seen = TinyGAN(), []
    recipe.on_epoch_end = lambda epoch, checkpoint: seen.append((epoch, checkpoint()["step"]))
    run(tmp_path / "fine", recipe)
    assert seen == [(1, 4), (2, 8), (3, 12)]
    recipe.on_epoch_end = lambda epoch, checkpoint: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    with pytest.raises(UserError, match="last files of the epoch could not be saved"):
        run(tmp_path / "full", recipe, steps=8)


def test_wandb_without_the_package_is_one_line(tmp_path, monkeypatch):
    """The optional logger is named with its remedy, before training."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the wandb package: pip install wandb"):
        run(tmp_path, wandb=True)


def test_weights_of_two_kinds_of_run_are_comparable(finished):
    """`weights` finds trained and averaged tensors, so that comparisons in these tests compare something."""
    names = set(weights(finished[0]))
    assert {"networks.autoencoder.encoder.weight", "ema.autoencoder.encoder.weight"} <= names


@pytest.mark.parametrize(
    ("part", "value"),
    [("config", None), ("step", "x"), ("networks", {"net": 3}), ("ema", {"net": {1: 2}}), ("optimizers", [])],
)
def test_a_state_with_damaged_parts_is_one_line(tmp_path, part, value):
    """Each part is checked when the file is read, whoever asks for it later."""
    state = {"format": 1, "recipe": "tiny", "step": 3, "config": {}, "networks": {}, "ema": {}, "optimizers": {}}
    torch.save(state, tmp_path / "x.pt")
    assert load_checkpoint(tmp_path / "x.pt")["step"] == 3
    torch.save({**state, part: value}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="x.pt: damaged"):
        load_checkpoint(tmp_path / "x.pt")


def test_weights_by_other_names_are_one_line(tmp_path):
    """A tensor of no network, and metadata that is no mapping."""
    facts = {"recipe": "tiny", "step": 3, "config": {}}
    for name, stored in (("weight", facts), ("net.weight", [1]), ("net.weight", {**facts, "config": 3})):
        save_file({name: torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"run": json.dumps(stored)})
        with pytest.raises(UserError, match="not a weights file of this project|damaged"):
            load_checkpoint(tmp_path / "x.safetensors")


def test_what_is_no_tensor_is_named_when_weights_are_loaded():
    with pytest.raises(UserError, match="no tensor: weight"):
        checkpoints.strict_load(torch.nn.Linear(1, 1), {"weight": "x", "bias": torch.zeros(1)}, "x.pt")


def test_tensors_are_written_as_the_library_reads_them(tmp_path):
    """Every type, odd sizes, views, none at all; open to whom any new file is open."""
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int64, torch.int32]
    types += [torch.int16, torch.int8, torch.uint8]
    tensors = {f"é.{kind}": torch.arange(-3, 4).to(kind) for kind in types}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "view": torch.arange(12.0).view(3, 4).T}
    path, metadata = tmp_path / "a.safetensors", {"run": json.dumps({"é": 1})}
    write_file(path, lambda file: write_tensors(file, tensors, metadata))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    none = tmp_path / "none.safetensors"  # not the file above, which the tensors read from it may still be mapped to
    write_file(none, lambda file: write_tensors(file, {}, metadata))
    assert load_file(none) == {}


@pytest.mark.posix
def test_a_kill_while_weights_are_written_leaves_what_the_next_run_removes(tmp_path):
    """No file as large as the weights stays for ever."""

    def killed_in_the_second_write(path):
        write, calls = HashingFile.write, []

        def killed(self, data):
            calls.append(len(calls) == 1 and os.kill(os.getpid(), signal.SIGKILL))
            return write(self, data)

        HashingFile.write = killed
        write_weights(path, {"networks": {"a": {"w": torch.zeros(9)}}, "ema": {}})

    status = processes.status_of(killed_in_the_second_write, tmp_path / "weights.safetensors")
    assert status == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and remove_debris(tmp_path) == left
