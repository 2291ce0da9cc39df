"""The benchmark for a GPU, on a CPU at reduced size: its arithmetic, its layer comparison, its parts and their ends."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.gpu_parts import steps
from benchmarks.gpu_parts.layers import compare_layers, parted
from benchmarks.gpu_parts.measure import Contestant, Job, peak_flops, race, utilization
from tests.conftest import ROOT
from videodata.errors import UserError

JOB = Job("cpu", small=True, seconds=600.0)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", (67.0, 494.5, 989.0)),
        ("NVIDIA H100 80GB HBM3", (67.0, 494.5, 989.0)),
        ("NVIDIA A100-SXM4-40GB", (19.5, 156.0, 312.0)),
        ("NVIDIA GeForce RTX 4090", (82.6, 82.6, 165.2)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("cpu", None),
    ],
)
def test_peaks_are_those_of_whole_gpus(name, tera):
    found = [peak_flops(name, precision) for precision in ("fp32", "tf32", "bf16")]
    assert found == ([None] * 3 if tera is None else [1e12 * value for value in tera])


def test_utilization():
    """989 TFLOP in two seconds are half of what an H200 can do in bfloat16; without a peak there is no share."""
    assert utilization(989e12, 2.0, peak_flops("NVIDIA H200", "bf16")) == pytest.approx(0.5)
    assert utilization(1e12, 1.0, None) is None


def test_steps_have_their_share_of_the_peak():
    """Of ours, on a GPU that is known: two samples in two seconds, of half the FLOPs of its second each."""
    contestants = [Contestant("original's way", list, "tf32", [4.0]), Contestant("bf16", list, "bf16", [2.0, 2.0])]
    rows = list(steps.rows_of("model", contestants, 2, (494.5e12, None), "NVIDIA H200"))
    assert "MFU" not in rows[0] and rows[1]["MFU"] == pytest.approx(0.5)
    assert (rows[1]["times as fast"], rows[1]["samples per second"]) == (2.0, 1.0)
    (row,) = steps.rows_of("model", contestants[1:], 2, (494.5e12, None), "another")
    assert "MFU" not in row and row["GFLOP per sample"] == 494.5e3


class Net(nn.Module):
    """Two convolutions in a row in a block, and a layer that is called twice and writes into its input."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
        self.last = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.last(self.last(self.block(x)))


def call(model, x):
    return model(x)


def test_a_different_layer_is_found_by_name():
    """All that follows it is apart too, but by itself only this layer is."""
    torch.manual_seed(0)
    reference = Net().eval()
    other = copy.deepcopy(reference)
    with torch.no_grad():
        other.block[2].weight[0, 0, 0, 0] += 0.1
    layers, (expected, found) = compare_layers(reference, other, call, torch.randn(1, 2, 9, 9))
    assert [layer.name for layer in layers] == ["block.0", "block.1", "block.2", "block", "last", "last (call 2)"]
    assert [layer.name for layer in layers if layer.apart > 1e-5] == ["block.2", "block", "last", "last (call 2)"]
    assert [layer.name for layer in layers if (layer.alone or 0) > 1e-5] == ["block.2"]
    assert parted(layers, 1e-5, 1) == [{**vars(layers[2])}]
    assert not torch.equal(expected, found)


def test_equal_models_are_not_apart():
    """A layer that writes into its input does not blur what is compared; no hook is left behind."""
    model = Net().eval()
    layers, _ = compare_layers(model, copy.deepcopy(model), call, torch.randn(1, 2, 9, 9))
    assert len(layers) == 6 and not parted(layers, 0.0, 9)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_values_that_are_no_numbers_are_apart():
    reference, other = nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Sequential(nn.Conv2d(1, 1, 1))
    nn.init.constant_(other[0].weight, float("nan"))
    (layer,), _ = compare_layers(reference, other, call, torch.ones(1, 1, 2, 2))
    assert layer.apart == layer.alone == float("inf")


def test_flops_are_those_that_torch_counts():
    net, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 5)), torch.randn(1, 2, 8, 8)
    with FlopCounterMode(display=False) as expected:
        net(x).sum().backward()
    with steps.Flops() as found:
        net(x).sum().backward()
    assert found.total == expected.get_total_flops() > 0


def test_flops_do_not_count_what_is_computed_twice_to_save_memory():
    """With and without gradient checkpointing they are the same; a step is forward and about twice that backward."""
    found = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        work = dataclasses.replace(steps.video_vae(small=True), batch=steps.clips(1, 2, 48))
        network = work.recipe.networks["vae"]
        network.checkpointing = checkpointing
        found.append(steps.Training(work, torch.device("cpu")).flops_per_sample())
    assert found[0] == found[1] > 1e6


def test_what_fails_is_a_line_and_ends_nothing():
    def hungry():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")

    contestants = [Contestant("hungry", hungry), Contestant("odd", lambda: 1 / 0), Contestant("fine", lambda: None)]
    race(contestants, JOB)
    rows = [contestant.row("model", "clip", 1, contestants[2]) for contestant in contestants]
    assert [row.get("problem") for row in rows] == ["out of memory", "ZeroDivisionError: division by zero", None]
    assert rows[2]["times as fast"] == 1.0 and rows[2]["clips per second"] > 0


def endless(job):
    yield {"what": "first", "way": "a"}
    time.sleep(600)


def dead(job):
    yield {"what": "first", "way": "a"}
    os._exit(7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the parts of this test exist in a fork alone")
@pytest.mark.parametrize(("rows", "state"), [(endless, "stopped"), (dead, "failed")])
def test_a_part_that_ends_badly_keeps_its_rows(tmp_path, monkeypatch, capsys, rows, state):
    """One that takes too long is stopped, one that dies is told of; the file has what came before."""
    monkeypatch.setitem(gpu.PARTS, "odd", gpu.Part(rows, 0, 1))
    results = gpu.Results(tmp_path / "gpu.json", {"device": "cpu"})
    gpu.measure("odd", results, Job("cpu", seconds=2.0))
    stored = json.loads((tmp_path / "gpu.json").read_text())["parts"]["odd"]
    assert stored["state"] == state and stored["rows"] == [{"what": "first", "way": "a"}]
    assert f"## odd: {state}" in capsys.readouterr().out


@pytest.mark.slow
def test_failing_tests_are_named(tmp_path):
    """The part with the tests, on tests of its own."""
    (tmp_path / "test_it.py").write_text("def test_good(): pass\n\ndef test_bad(): assert 1 == 2, 'not equal'\n")
    *_, named, last = gpu.gpu_tests(JOB, tmp_path)
    assert named["what"] == "failed" and "test_bad" in named["name"] and "not equal" in named["name"]
    assert (last["passed"], last["failed"], last["status"]) == (1, 1, 1)


def test_parts_are_chosen_by_the_beginnings_of_their_names():
    assert gpu.chosen(["steps", "river"]) == [*(f"steps-{name}" for name in steps.MODELS), "river"]
    assert gpu.chosen(None) == list(gpu.PARTS)
    with pytest.raises(UserError, match="--only stepss: no such part"):
        gpu.chosen(["stepss"])


def test_results_of_another_machine_stay(tmp_path):
    path = tmp_path / "gpu.json"
    gpu.Results(path, {"device": "NVIDIA H200"}).write()
    with pytest.raises(UserError, match="choose another --out"):
        gpu.Results(path, {"device": "cpu"})
    assert gpu.Results(path, {"device": "NVIDIA H200"}).value["parts"] == {}


def test_a_table_has_all_columns():
    rows = [{"what": "a", "seconds": 0.01234}, {"what": "b", "problem": "out of | memory"}]
    assert gpu.table(rows).splitlines()[2:] == ["| a | 0.0123 |  |", "| b |  | out of \\| memory |"]


@pytest.mark.slow
def test_the_command_runs_on_a_cpu(tmp_path, capsys):
    """Some parts at reduced size, then one for which there is no time."""
    out = tmp_path / "folder" / "gpu.json"
    shared = ["--device", "cpu", "--small", "--out", str(out)]
    words = ["--only", "devices", "steps-vqgan", "--minutes", "60"]
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", *shared, *words]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, cwd=ROOT)
    stored = json.loads(out.read_text())
    assert stored["machine"]["device"] == "cpu" and stored["machine"]["small"] is True
    states = {name: part["state"] for name, part in stored["parts"].items()}
    assert states == {"devices": "done", "steps-vqgan": "done"}
    ways = {row["way"]: row for row in stored["parts"]["steps-vqgan"]["rows"]}
    assert list(ways) == ["original's way", "fp32", "tf32", "bf16"]
    assert not any("problem" in row or "MFU" in row for row in ways.values())  # no peak is known of a CPU
    assert ways["bf16"]["GFLOP per sample"] > 0 and ways["fp32"]["samples per second"] > 0
    last = [row for row in stored["parts"]["devices"]["rows"] if row["name"].startswith("reconstruction")]
    assert len(last) == 2 and all(row["largest"] == 0 and row["layers"] > 20 for row in last)  # one device, twice
    gpu.main([*shared, "--only", "codecs", "--minutes", "0.01"])
    assert "codecs: left out" in capsys.readouterr().out
    left_out = {"codecs": {"rows": [], "state": "left out", "seconds": 0.0}}
    assert json.loads(out.read_text())["parts"] == {**stored["parts"], **left_out}
