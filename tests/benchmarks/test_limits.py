"""The benchmark of limits: every path runs at a reduced size, and a fraction is one."""

import json

import pytest
import torch

from benchmarks import limits
from vvae.src.modules.utils import Conv3d

ALWAYS = ("river tiny step",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path if path in ALWAYS else pytest.param(path, marks=pytest.mark.exhaustive) for path in limits.PATHS]
)
def test_every_path_is_measured(tmp_path, capsys, path):
    """With its arithmetic or its least; nothing is faster than its limit but for the noise of a short measurement."""
    limits.main(["--quick", "--rounds", "1", "--only", path, "--out", str(tmp_path / "limits.json")])
    written = json.loads((tmp_path / "limits.json").read_text())
    assert set(written["paths"]) == {path} and path in capsys.readouterr().out
    result = written["paths"][path]
    assert 0 < result["fraction"] < 1.5 and result["seconds"] > 0
    assert (result["gflop"] > 0) == (path != "preparing 320x240")
    assert written["references"]["reading"]["unit"] == "GB/s"


def test_convolutions_that_are_named_count_as_well():
    """VideoVAE+ calls oneDNN's by name where a clip is small: multiplications and additions of each output."""
    layer, clip = Conv3d(4, 8, 3, padding=1), torch.randn(1, 4, 2, 6, 6)
    with torch.no_grad():
        flop = limits.counted(limits.Work(lambda: layer(clip)))
    assert flop == 2 * (8 * 2 * 6 * 6) * (4 * 27)
