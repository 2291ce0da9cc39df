"""Evaluations that are killed: what was measured is kept, and the run that goes on gives the same numbers."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation.journal import Journal
from evaluation.protocol import Protocol
from evaluation.runner import Source, evaluate_model
from evaluation.subject import Subject
from tests.training import processes
from training.randomness import SampleNoise

DATA = "digits:400,frames=8,size=24,digits=1"
METRICS = ("psnr", "ssim", "energy", "coverage", "diversity", "identity", "recognised", "motion")
METRICS += ("identity-in-place", "fd-pca", "fvd", "kvd", "fvd-digits")
BATCHES = 6


class Interrupted(Exception):
    pass


class Mortal(Subject):
    """Adds noise behind the first frame, and dies in the batch `dies_at`, counted from the first that it makes."""

    random, context = True, 1

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.made = dies_at, 0

    def make(self, batch):
        if batch.sample == 0 and self.made == self.dies_at:
            raise Interrupted
        self.made += batch.sample == 0
        noise = SampleNoise(batch.seed, batch.items).normal(*batch.clips.shape[1:])
        return torch.cat([batch.clips[:, :, :1], (batch.clips + 0.2 * noise)[:, :, 1:]], dim=2)

    def baselines(self, clips):
        return {"grey": torch.zeros_like(clips)}


class Unpaired(Mortal):
    paired, context = False, 0


def measured(result, subject, num_clips=12, **changes):
    subject.made_for(8, (24, 24))
    options = {"metrics": METRICS, "samples": 2, "batch_size": 2, "force": True, "allow_random_features": True}
    protocol = Protocol(**{**options, **changes})
    return evaluate_model("mortal", subject, Source(DATA, "val", num_clips), protocol, "", "none", result=result)


def numbers(report):
    return json.dumps(report.to_dict()["scores"], sort_keys=True)


def test_an_evaluation_that_dies_twice_gives_the_same_numbers(tmp_path):
    """And makes no batch twice but the one that it died in; nothing is left beside the result."""
    whole = measured(tmp_path / "whole.json", Mortal())
    for place in (2, 1):  # batches 3 and 4
        with pytest.raises(Interrupted):
            measured(tmp_path / "killed.json", Mortal(place))
    last = Mortal()
    report = measured(tmp_path / "killed.json", last)
    assert last.made == BATCHES - 3
    assert numbers(report) == numbers(whole)
    report.deliver(tmp_path / "killed.json")
    assert [path.name for path in tmp_path.glob("killed*")] == ["killed.json"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 3}, {"batch_size": 3}, {"quantize": False}])
def test_another_protocol_finds_nothing(tmp_path, change):
    with pytest.raises(Interrupted):
        measured(tmp_path / "result.json", Mortal(2), metrics=("psnr",))
    other = Mortal()
    measured(tmp_path / "result.json", other, metrics=("psnr",), **change)
    assert other.made == -(-12 // change.get("batch_size", 2))


def test_a_batch_that_was_cut_short_is_measured_again(tmp_path):
    with pytest.raises(Interrupted):
        measured(tmp_path / "result.json", Mortal(3), metrics=("psnr",))
    first, *_ = sorted(tmp_path.glob("*.partial/*.pt"))
    first.write_bytes(first.read_bytes()[:100])
    last = Mortal()
    report = measured(tmp_path / "result.json", last, metrics=("psnr",))
    assert last.made == BATCHES - 2
    assert numbers(report) == numbers(measured(None, Mortal(), metrics=("psnr",)))


def test_more_clips_are_invented_than_there_are_real_ones(tmp_path):
    """Of drawn classes; the real set holds each real clip once, and both go on where they were killed."""
    options = {"metrics": ("fd-pca", "fvd"), "samples": 1, "generated": 20, "unequal_sets": True}
    whole = measured(None, Unpaired(), **options)
    assert {score.notes["sizes"]["real"] for score in whole.scores} == {12}
    assert {score.notes["sizes"]["generated"] for score in whole.scores} == {20}
    with pytest.raises(Interrupted):
        measured(tmp_path / "result.json", Unpaired(7), **options)
    last = Unpaired()
    assert numbers(measured(tmp_path / "result.json", last, **options)) == numbers(whole)
    assert last.made == 3


def in_processes(path):
    measured(path, Mortal()).write(path.with_suffix(".scores"))


def test_two_processes_go_on_where_one_was_killed(tmp_path):
    with pytest.raises(Interrupted):
        measured(tmp_path / "result.json", Mortal(3))
    processes.launch(in_processes, 2, tmp_path, tmp_path / "result.json")
    found = json.loads((tmp_path / "result.scores").read_text())["scores"]
    expected = json.loads(numbers(measured(None, Mortal())))
    for one, other in zip(found, expected, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], rel=1e-9) and one["per_clip"] == other["per_clip"]


def test_nothing_is_kept_without_a_result(tmp_path):
    journal = Journal(None)
    journal.write("batch", {"a": 1})
    assert journal.read("batch") is None and len(journal) == 0
