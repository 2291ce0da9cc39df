"""A disk that is full for a while, or for good: what each writer of a run does."""

import errno
import json
import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.training.runs import run, settings
from tests.training.tiny_gan import TinyClips, TinyGAN
from training import loop, train, writing
from training.checkpoint import load_checkpoint
from training.cli import explain
from training.writing import Attempts, GrowingFile, check_place
from videodata.errors import UserError


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def refuse(monkeypatch):
    """Lets lines, TensorBoard's files and pictures be refused from one step on until another."""

    def install(first, last, recipe):
        now, losses = [0], recipe.losses
        append, record, pictures = writing.append, RecordWriter.write, loop.write_pictures

        def counted(batch, step, networks):
            now[0] = step.index + 1
            return losses(batch, step, networks)

        def unless_full(function, partly=None):
            def call(*arguments):
                if not first <= now[0] <= last:
                    return function(*arguments)
                if partly and now[0] == first:
                    partly(*arguments)
                return full()

            return call

        recipe.losses = counted
        half_a_line = lambda descriptor, content: os.write(descriptor, content[:5])  # noqa: E731
        monkeypatch.setattr(writing, "append", unless_full(append, half_a_line))
        monkeypatch.setattr(RecordWriter, "write", unless_full(record))
        monkeypatch.setattr(loop, "write_pictures", unless_full(pictures))
        return recipe

    return install


def test_what_is_refused_for_a_while_is_written_later(tmp_path, refuse, caplog, capfd):
    """No line of metrics.jsonl and train.log is lost, half or double; one warning, no traceback, the same weights."""
    straight = run(tmp_path / "straight")
    caplog.clear()
    result = run(tmp_path / "full", refuse(3, 9, TinyGAN()))
    assert result.digest == straight.digest and result.finished
    rows = [json.loads(line) for line in (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    log = (tmp_path / "full" / "train.log").read_text()
    assert [log.count(f" step {step}/12 ") for step in range(1, 13)] == [1] * 12
    assert caplog.text.count("metrics.jsonl not saved") == 1 and "written again" in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_lines_that_are_refused_to_the_end_are_no_success(tmp_path, refuse, caplog, capfd):
    """The weights are there, the run says what is missing and how to mend it, and the same command goes on."""
    with pytest.raises(UserError, match=r"the last metrics.jsonl could not be saved .*; free disk space"):
        run(tmp_path, refuse(9, 99, TinyGAN()))
    assert load_checkpoint(tmp_path)["step"] == 12
    assert "Traceback" not in capfd.readouterr().err
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == list(range(1, 9))


def test_pictures_three_times_in_vain(tmp_path, monkeypatch):
    """What is lost each time ends the run, with the remedy for the error of the disk."""
    recipe = TinyGAN()
    recipe.pictures = lambda batch, step, networks: {"a": torch.zeros(1, 3, 4, 4)}
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(loop, "write_pictures", lambda *_: (_ for _ in ()).throw(denied))
    with pytest.raises(UserError, match=r"no pictures saved in 3 attempts .*; check the permissions"):
        run(tmp_path, recipe, pictures_every=2)


def test_the_older_checkpoints_cannot_be_removed(tmp_path, monkeypatch, caplog):
    """A warning; the next time they go."""
    calls, unlink = [], type(tmp_path).unlink

    def once(path, **options):
        if path.suffix == ".json" and not calls:
            calls.append(path)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return unlink(path, **options)

    monkeypatch.setattr(type(tmp_path), "unlink", once)
    run(tmp_path, save_every=2, keep=1)
    assert "older checkpoints not saved" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step-0000012.pt"]


def test_a_growing_file_on_a_device_that_is_always_full(tmp_path):
    """The real error, from the kernel; a line that no encoding knows is written all the same."""
    if os.path.exists("/dev/full"):
        file = GrowingFile(type(tmp_path)("/dev/full"))
        with pytest.raises(OSError, match="No space"):
            file.add("one\n")
        with pytest.raises(OSError, match="No space"):
            file.close()
    file = GrowingFile(tmp_path / "a.txt")
    file.add("one\udcff\n")
    file.close()
    assert (tmp_path / "a.txt").read_text() == "one\\udcff\n"


def test_the_policy_by_itself(tmp_path, caplog):
    """Success in between starts the count anew; what waits never ends the run."""
    attempts = Attempts(tmp_path)
    for _ in range(2):
        attempts.attempt("file", full)
        attempts.attempt("file", full)
        attempts.attempt("file", lambda: None)
    attempts.finish()
    for _ in range(9):
        attempts.attempt("lines", full, waits=True)
    assert caplog.text.count("lines not saved") == 1
    with pytest.raises(UserError, match="the last lines could not be saved"):
        attempts.finish()


def test_a_place_is_tried_before_computing(tmp_path):
    """A folder in the way, a file in place of a folder above, a name that is too long: one line each."""
    check_place(tmp_path / "new" / "deep" / "a.json")
    assert list(tmp_path.iterdir()) == []  # what is refused later leaves no empty folders
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        check_place(tmp_path)
    if os.path.exists("/dev/null"):
        with pytest.raises(UserError, match="/dev/null: is no plain file"):
            check_place(Path("/dev/null"))
    for path in (tmp_path / "file" / "a.json", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be written"):
            check_place(path)


class SlowMetrics(TinyGAN):
    """Sends itself SIGTERM in the second batch of the first evaluation; each batch would take a while."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def evaluate(self, batch, step, networks):
        self.batches += 1
        if self.batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return {"psnr": torch.zeros(len(batch))}


@pytest.mark.parametrize("steps", [12, 4])
def test_a_stop_waits_for_one_batch_of_an_evaluation(tmp_path, steps, caplog):
    """Saved and left after the batch in which the signal came; the same command evaluates and ends as in one go."""
    chosen = {"steps": steps, "evaluate_every": 4, "evaluate_batches": 0}
    recipe, held_out = SlowMetrics(), TinyClips(40)
    result = train(recipe, TinyClips(), settings(tmp_path / "a", **chosen), {"model": {}}, held_out)
    assert (recipe.batches, result.step, result.finished) == (2, 4, False)
    assert load_checkpoint(tmp_path / "a")["step"] == 4 and "by SIGTERM" in caplog.text
    recipe = SlowMetrics()
    recipe.batches = 2  # no signal
    result = train(recipe, TinyClips(), settings(tmp_path / "a", **chosen), {"model": {}}, held_out)
    assert result.finished and result.metrics == {"psnr": 0.0}
    assert result.digest == run(tmp_path / "b", **chosen).digest
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation/psnr" in row for row in rows if row["step"] == steps) == 1


def test_log_lines_outlive_the_run(tmp_path):
    """The handler is gone after the run, so that a later log line does not reach a closed file."""
    before = list(logging.getLogger().handlers)
    run(tmp_path, steps=1)
    assert logging.getLogger().handlers == before


def test_an_error_of_the_disk_is_one_line_whoever_raised_it():
    """HDF5 hides the number in its message; of a copy, the file that is written is named."""
    hidden = OSError("Unable to flush file's data (file write failed: errno = 28, error message = 'No space left')")
    assert explain(hidden) == "No space left on device; free disk space or choose another folder"
    page = OSError(
        errno.ENOSPC, "Unable to synchronously create file (file write failed: time = now\n, filename = ...)"
    )
    assert explain(page) == "No space left on device; free disk space or choose another folder"
    copied = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "from.mp4", None, "to.mp4")
    assert explain(copied) == "to.mp4: No space left on device; free disk space or choose another folder"
    assert explain(OSError("of some library")) is None
