"""The fuzzing harness: it knows good from bad, every kind runs, and a fault that is planted is found."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

if sys.platform != "linux" or not hasattr(os, "fork"):
    pytest.skip("the harness measures and limits its processes by /proc", allow_module_level=True)

from benchmarks import fuzz
from benchmarks.fuzzing import cases
from benchmarks.fuzzing.cases import ALL, FLAGS, Limits, run_case, seeds_of
from benchmarks.fuzzing.data import OUTPUTS, Seed
from videodata.errors import UserError
from vvae.src.errors import VVAEError

REFUSED = {"rar"}  # of these the shared samples hold some that must be refused as they are


@pytest.mark.parametrize("kind", ALL)
def test_a_case_is_its_kind_and_number_alone(tmp_path, kind):
    """The valid files are read by every reader, some damaged ones of a few are refused, and a case can be repeated."""
    for number, seed in enumerate(seeds_of(kind)[:3]):
        for place, read in enumerate(seed.readers):
            if kind not in REFUSED:
                read(cases.written(tmp_path / f"{number}-{place}", seed.files, seed.target))
    results = [run_case(kind, number % 4, tmp_path / str(number), Limits()) for number in range(8)]
    assert [result.outcome for result in results[:4]] == [result.outcome for result in results[4:]]
    assert {result.outcome for result in results} <= {"right", "refused", "finding"}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("npy", 200297),  # a setting of several lines in a side-car
        ("pt", 200048),  # a configuration whose model is a number
        ("pt", 200557),  # a pickle that ends in the middle
        ("pt", 3314),  # a checkpoint without averages
        ("rar", 3569),  # a time that no calendar has
        ("run", 200767),  # a text among the pixel statistics of a VQ-VAE
        ("safetensors", 200467),
    ],
)
def test_what_was_found_stays_mended(tmp_path, kind, number):
    """Cases that were findings, as the harness makes them; most have a plainer test beside what was mended, too."""
    result = run_case(kind, number, tmp_path, Limits())
    assert result.outcome in ("right", "refused"), result.details


def test_flags_are_tried_with_every_value():
    """Each typed argument of each script, below sub-commands too; a flag that takes all texts is no finding."""
    listed = cases.flag_cases()
    assert {("main", "--batch_size"), ("main", "--learning_rate")} <= {(script, *flag) for script, _, flag, _ in listed}
    assert {"prepare_ucf101", "scripts.evaluate", "scripts.prepare_data"} <= {script for script, *_ in listed}
    assert {cases.judge_flag(number).outcome for number in range(0, len(listed), 97)} <= {"right", "refused"}


def raises(path: Path) -> None:
    raise ValueError("planted")


def speaks_in_lines(path: Path) -> None:
    raise VVAEError("one line\nand another")


def hangs(path: Path) -> None:
    while True:
        pass


def dies(path: Path) -> None:
    os.abort()


def takes_memory(path: Path) -> None:
    b"x" * (300 << 20)  # written, not only reserved


def leaves_a_half_file(path: Path) -> None:
    (path.parent / "result.npy.partial").write_bytes(b"half")
    raise UserError("refused")


def refuses(path: Path) -> None:
    raise UserError("it is damaged")


def writes_its_output(path: Path) -> None:
    (path.parent / OUTPUTS[0]).mkdir()


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        (raises, "ValueError"),
        (speaks_in_lines, "message of several lines"),
        (hangs, "hang"),
        (dies, "the process died, status -6"),
        (takes_memory, "memory"),
        (leaves_a_half_file, "files left behind"),
        (lambda path: path.stat().st_size, "fewer items without a word"),
    ],
    ids=["error", "lines", "hang", "death", "memory", "debris", "fewer"],
)
def test_a_planted_fault_is_found(tmp_path, monkeypatch, capsys, reader, what):
    """Each kind of finding ends with status 1, a line that says how to repeat it, and its input in a folder."""
    monkeypatch.setitem(ALL, "planted", lambda: [Seed({"x.bin": bytes(range(256)) * 20}, "x.bin", (reader,))])
    monkeypatch.setattr(fuzz, "PATIENCE", 1000)  # a busy machine is no finding
    count = 200 if what.startswith("fewer") else 1  # which only a file that was cut off can show
    limits = ["--seconds", "2", "--megabytes", "200"]
    out = ["--out", str(tmp_path / "found")]
    assert fuzz.main(["--kinds", "planted", "--cases", str(count), "--minutes", "5", *limits, *out]) == 1
    (finding,) = (tmp_path / "found").iterdir()
    assert f"{what}  --case {finding.name.replace('-', ':')}" in capsys.readouterr().out
    assert (finding / "finding.txt").is_file() and len(list(finding.iterdir())) >= 2


@pytest.mark.parametrize("reader", [refuses, writes_its_output, lambda path: None], ids=["refuses", "writes", "reads"])
def test_a_reader_that_does_right_is_no_finding(tmp_path, monkeypatch, reader):
    """Refusing in one line, writing what it is asked for, and reading."""
    monkeypatch.setitem(ALL, "planted", lambda: [Seed({"x.bin": bytes(range(256))}, "x.bin", (reader,))])
    out = ["--out", str(tmp_path / "found")]
    assert fuzz.main(["--kinds", "planted", "--cases", "30", "--minutes", "1", *out]) == 0
    assert fuzz.main(["--case", "planted:3", *out]) == 0
    assert not (tmp_path / "found").exists()


def test_the_time_is_shared_and_kept(tmp_path, monkeypatch):
    """Without --cases a kind runs until its share of the minutes is over; the first case has the number --seed."""
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setitem(ALL, "planted", lambda: [Seed({"x.bin": b"x"}, "x.bin", (lambda path: None,))])
    monkeypatch.setattr(fuzz, "run_case", lambda kind, number, *_: (seen / str(number)).touch() or right(number))
    begin = time.monotonic()
    assert fuzz.main(["--kinds", "planted", FLAGS, "--seed", "7", "--minutes", "0.02", "--out", str(tmp_path)]) == 0
    assert time.monotonic() - begin < 20
    assert "7" in os.listdir(seen) and "6" not in os.listdir(seen)


def right(number: int) -> cases.Result:
    return cases.Result("planted", number, "right")
