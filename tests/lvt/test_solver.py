"""The optimiser and the number format that a SOLVER node asks for."""

import pytest
import torch
from torch import nn

from lvt import config as configuration
from lvt.files import build_transformer
from lvt.solver import kinds_of_weights, optimizer_of, precision_of
from tests.lvt.test_config import CONFIGS
from training.optim import Muon
from videodata.errors import UserError


def tiny(*pairs):
    return configuration.load_config(CONFIGS / "VT_tiny.yaml", ["MODEL.DEVICE", "cpu", *map(str, pairs)])


def test_tables_are_no_matrices_and_heads_are_one():
    """Muon turns what multiplies features; what is picked by an index, or stands for one, moves as under AdamW."""
    model = build_transformer(tiny())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = kinds_of_weights(model)
    tables = {names[id(parameter)] for parameter in kinds["tables"]}
    assert {
        "encoder.conv.weight", "encoder.slice_embedding.weight", "decoder.conv.conv.weight",
        "decoder.ch_embedder.1.weight", "ch_predictor.P.0.weight", "encoder.block_local_attention.2.dh_bank",
    } <= tables  # fmt: skip
    assert not {"ch_predictor.U.1.weight", "encoder.linear_projector.weight"} & tables
    heads = {names[id(parameter)] for parameter in kinds["heads"]}
    assert len(heads) == 18 and all(name.endswith(("w_q", "w_k", "w_v")) for name in heads)
    optimizer = optimizer_of(model, tiny())
    assert isinstance(optimizer, Muon)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_takes_bf16_where_the_cpu_has_it(monkeypatch, bf16, amx):
    """AVX-512 BF16 or AMX; what is named stays as it is named."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision_of(tiny("SOLVER.PRECISION", "auto")) == ("bf16" if bf16 or amx else "fp32")
    assert precision_of(tiny("SOLVER.PRECISION", "fp32")) == "fp32"
    with pytest.raises(UserError, match="SOLVER.PRECISION must be one of auto, fp32, bf16, fp16, found 'fp8'"):
        precision_of(tiny("SOLVER.PRECISION", "fp8"))
    for key in ("SOLVER.PRECISION", "TEST.VT_SAMPLER.PRECISION"):
        with pytest.raises(UserError, match=f"{key} must be str, found None"):
            tiny(key, "null")


def test_originals_keep_their_optimisers():
    """The published configurations have no Muon, and weight decay by kind of parameter."""
    config = configuration.load_config(CONFIGS / "DSFVT.yaml")
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = optimizer_of(model, config)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01, 0.0}
