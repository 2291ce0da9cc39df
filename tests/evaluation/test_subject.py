"""What the runner offers a model beyond clips and their reconstruction, and what a report says about the clips."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import training
import videodata
from evaluation import psnr
from evaluation.codebook import BitsPerToken
from evaluation.protocol import Protocol
from evaluation.report import Report
from evaluation.runner import Source, evaluate, evaluate_model, metrics_of, trained_on_of
from evaluation.subject import Subject
from scripts import evaluate as command
from videodata import open_clips
from videodata.errors import UserError

DATA = "shapes:20,frames=12,size=24"


class Dim(Subject):
    """Half as bright; the frames after the given one are scored apart, beside a baseline made from what it made."""

    context = 1

    def make(self, batch):
        return torch.cat([batch.clips[:, :, :1], batch.clips[:, :, 1:] / 2 - 0.5], dim=2)

    def compared(self, batch, made):
        return {"": made, "black": torch.full_like(made, -1.0), "twice": (made - 1) / 2}

    def parts(self, frames):
        return {"": None, "even frames": range(0, frames, 2)}

    def facts(self):
        return {"dimmed": True}


def test_rows_of_parts_and_of_baselines_that_need_what_was_made():
    """Each row is once over all scored frames and once over a part of them; the watcher sees what is compared."""
    seen = []
    scores = evaluate(
        Dim(),
        lambda seed: open_clips(DATA, 6, 24, seed=seed, total_videos=5),
        Protocol(metrics=("psnr",), batch_size=2),
        watch=lambda batch, made, rows: seen.append((batch.items, tuple(made.shape), list(rows))),
    )
    found = {score.name: score for score in scores}
    assert list(found) == [
        *("PSNR", "PSNR even frames", "PSNR black", "PSNR even frames, black"),
        *("PSNR twice", "PSNR even frames, twice"),
    ]
    assert len(found["PSNR"].per_frame) == 5 and len(found["PSNR even frames"].per_frame) == 3
    assert found["PSNR even frames"].per_frame == pytest.approx(found["PSNR"].per_frame[::2])
    assert seen[0] == ([0, 1], (2, 1, 3, 6, 24, 24), ["", "black", "twice"]) and len(seen) == 3


class Frames(Subject):
    """Gives frames back."""

    def make(self, batch):
        assert batch.clips.shape[1:3] == (3, 1) and batch.clips.is_floating_point()
        assert not torch.is_grad_enabled()
        return batch.clips.clone()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_are_clips_of_one_frame(dtype):
    """A data set of pictures, stored or as floats."""
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = pixels if dtype == torch.uint8 else pixels / 127.5 - 1
    (score,) = evaluate(Frames(), lambda seed: pictures, Protocol(metrics=("psnr",)))
    assert score.per_clip == [100.0] * 3


class Codes(Subject):
    """A model of codes: nothing to look at, bits of its own."""

    visible, metrics, own_metrics = False, ("bits",), ("bits",)

    def __init__(self):
        self.bits = BitsPerToken()

    def make(self, batch):
        codes = batch.clips["codes"]
        self.bits.update(torch.full((len(codes),), 4 * torch.log(torch.tensor(2.0))), codes[0].numel())

    def own_scores(self):
        return {"bits": [self.bits.over_processes().score(4)]}


def test_a_model_of_codes_has_only_metrics_of_its_own():
    """Items may be dictionaries; FVD of codes is refused."""
    windows = [{"codes": torch.zeros(1, 2, 2, dtype=torch.int64), "class_index": number} for number in range(5)]
    (score,) = evaluate(Codes(), lambda seed: windows, Protocol(metrics=Codes.metrics, batch_size=2))
    assert score.mean == pytest.approx(1.0) and len(score.per_clip) == 5 and score.notes["tokens"] == 20
    assert metrics_of(Codes()) == ("bits",)
    with pytest.raises(UserError, match="this model has bits"):
        evaluate(Codes(), lambda seed: windows, Protocol(metrics=("fvd",)))


def scored(split=None, metrics=("psnr",)):
    subject = Dim().made_for(6, (24, 24))
    subject.runs = ("runs/dim",)
    return evaluate_model("dim", subject, Source(DATA, split), Protocol(metrics=metrics))


def test_val_is_scored_unless_a_test_part_is_declared(monkeypatch, caplog):
    """The split stands in the log and in the file; `all` is everything."""
    with caplog.at_level(logging.INFO):
        report = scored()
    assert report.details["split"] == "val" and report.clips == 2 and report.details["dimmed"]
    assert f"2 clips of {DATA} (split val, the default)" in caplog.text
    assert scored("all").clips == 20 and scored("train").clips == 16
    monkeypatch.setattr(videodata, "declared_splits", lambda path: {"train", "test"}, raising=False)
    assert scored().details["split"] == "test"
    with pytest.raises(UserError, match=r"few for a 'test' split \(--split test is the default here"):
        evaluate_model("dim", Dim().made_for(6, (24, 24)), Source("shapes:2,frames=12,size=24"), Protocol())


@pytest.fixture
def memory(monkeypatch):
    """Runs that say what they were trained on: {folder's name: clips of it that any data set holds}."""
    known = {}
    monkeypatch.setattr(
        training, "trained_on", lambda run: {"run": run.name} if run.name in known else None, raising=False
    )
    monkeypatch.setattr(videodata.clips, "overlap", lambda record, clips: known[record["run"]], raising=False)
    return known


def test_clips_of_the_training_set_are_counted(memory, tmp_path):
    """Several parts of a model: the most; unknown unless all are known, or some clips are."""
    a, b, silent = (tmp_path / name for name in ("a", "b", "silent"))
    memory |= {"a": 0, "b": 3}
    assert trained_on_of([a], None) == 0 and trained_on_of([b], None) == 3 and trained_on_of([a, b], None) == 3
    assert trained_on_of([silent], None) is None and trained_on_of([], None) is None
    assert trained_on_of([a, silent], None) is None and trained_on_of([b, silent], None) == 3


@pytest.mark.parametrize(("count", "words"), [(None, "it is not known how many"), (0, "0 were"), (7, "WARNING: of")])
def test_a_report_says_how_many_clips_were_trained_on(count, words, tmp_path):
    """In the table and in the file."""
    report = Report("m", None, "d", 8, 1, 16, 16, clips=9, clips_trained_on=count)
    assert words in report.table().splitlines()[-1] and "these 9 clips" in report.table()
    assert json.loads(report.write(tmp_path / "r.json").read_text())["clips_trained_on"] == count
    assert Report("videos", None, "d", 8, 1, 16, 16).note == ""


def test_the_command_ends_with_the_warning(memory, monkeypatch, tmp_path, capsys):
    """On stderr, after the path of the file, where it is the last thing that is seen."""
    (tmp_path / "dim").mkdir()
    memory["dim"] = 2

    def open_subject(args):
        subject = Dim().made_for(args.frames or 6, (24, 24))
        subject.runs = (args.checkpoint,)
        return subject

    monkeypatch.setitem(command.MODELS, "vqgan", command.MODELS["vqgan"]._replace(open_subject=open_subject))
    output = tmp_path / "e.json"
    arguments = ["--checkpoint", tmp_path / "dim", "--data", DATA, "--device", "cpu", "--output", output]
    command.main(["vqgan", *map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.err.strip().endswith(
        "WARNING: of these 2 clips, 2 were in this run's training set: the numbers are not those of new clips"
    )
    assert "WARNING" in printed.out and json.loads(output.read_text())["clips_trained_on"] == 2
    assert [score["name"] for score in json.loads(output.read_text())["scores"]][:2] == ["PSNR", "SSIM"]


def test_score_of_half_brightness_is_psnr():
    """The rows hold what `evaluation.psnr` gives for the frames after the given one."""
    clips = open_clips(DATA, 6, 24, total_videos=2)
    (score, *_) = evaluate(Dim(), lambda seed: clips, Protocol(metrics=("psnr",)))
    batch = torch.stack([clips[0], clips[1]])[:, :, 1:]
    assert score.per_clip == pytest.approx(psnr(batch, batch / 2 - 0.5).tolist())


def test_flags_and_interface_do_not_wait_for_torch():
    """What the help of a command needs."""
    modules = "scripts.evaluate_models, evaluation.protocol, evaluation.subject"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0
