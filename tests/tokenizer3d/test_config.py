"""Configurations: the 23 published ones, the original's parameters, and what does not fit together."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.tokenizer3d.tiny import tiny
from tokenizer3d import Tokenizer3D
from tokenizer3d.config import PUBLISHED, Tokenizer3DConfig, config_from, published
from tokenizer3d.weights import structure_of
from videodata.errors import UserError


def on_meta(config: Tokenizer3DConfig) -> Tokenizer3D:
    with torch.device("meta"):
        return Tokenizer3D(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_has_the_published_keys_and_shapes(name, fixtures):
    """At full size; the name, and the original's parameters, give the same model."""
    keys = json.loads((fixtures / "tokenizer3d" / "keys_published.json").read_text())[name]
    stored = json.loads((fixtures / "tokenizer3d" / "configs_published.json").read_text())[name]
    model = on_meta(published(name))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == keys
    assert sum(value.numel() for value in model.parameters()) == stored["num_params"]
    found = replace(config_from(stored), name=name, regularizer_options={})
    assert found == published(name) == config_from(name.removeprefix("vidtok_"))


def test_the_published_names_are_complete(fixtures):
    stored = json.loads((fixtures / "tokenizer3d" / "configs_published.json").read_text())
    assert set(stored) == set(PUBLISHED) and len(PUBLISHED) == 23


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_structure_is_read_from_shapes(name):
    """All of it but the version."""
    config = published(name)
    assert structure_of(on_meta(config).state_dict(), config.version, name) == config


def test_facts_of_a_configuration():
    config = published("fsq_causal_888_32768_v1_1")
    assert (config.version, config.temporal_factor, config.spatial_factor, config.codebook_size) == ("1.1", 8, 8, 32768)
    assert published("kl_causal_41616_4chn").spatial_factor == 16
    assert published("kl_causal_444_4chn").spatial_factor == 4
    assert published("kl_causal_488_4chn").codebook_size is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("kl_causal_488_5chn", "did you mean"),
        ({"versoin": "1.0"}, "did you mean 'version'"),
        ({"version": "1.2"}, "unknown version"),
        ({"version": "1.1", "causal": False}, "version 1.1 is of causal models"),
        ({"regularizer": "fsq", "levels": [8, 8]}, "as many levels"),
        ({"levels": [8] * 4}, "regularizer is kl"),
        ({"time_down": [0, 3]}, "time_down"),
        ({"space_down": [1, 2], "time_down": [0, 1]}, "space_down"),
        ({"space_down": [1, 2], "time_down": [1]}, "as often"),
        ({"ch": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line(values, said):
    with pytest.raises(UserError, match=said) as error:
        Tokenizer3D.from_config(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_type": "groupnorm"}, "only layernorm"),
        ({"interpolation_mode": "nearest"}, "only trilinear"),
        ({"time_downsample_factor": 8}, "does not fit tempo_ds"),
        ({"double_z": False}, "double_z"),
        ({"chanels": 3}, "unknown key of a tokenizer|encoder_params.chanels"),
    ],
)
def test_the_originals_parameters_are_checked(change, said):
    stored = {"ch": 8, "ch_mult": [1, 2, 4, 4], "z_channels": 4, "num_res_blocks": 2, "double_z": True, **change}
    values = {"version": "1.1", "causal": True, "regularizer": "kl", "encoder_params": stored, "regularizer_params": {}}
    with pytest.raises(UserError, match=said):
        Tokenizer3D.from_config(values)


def test_the_text_of_a_files_metadata_is_a_configuration():
    encoder = {"ch": 8, "ch_mult": [1, 2, 4, 4], "z_channels": 3, "num_res_blocks": 2, "double_z": False}
    model = Tokenizer3D.from_config(
        {
            "version": "1.0",
            "causal": "False",
            "regularizer": "fsq",
            "encoder_params": json.dumps(encoder),
            "regularizer_params": json.dumps({"levels": [8, 6, 5], "entropy_loss_weight": 0.2}),
        }
    )
    assert not model.is_causal and model.codebook_size == 240 and model.quantizer.entropy_loss_weight == 0.2


def test_a_new_model_begins_as_one_of_single_frames():
    """The second convolution of each block in time is zero, and the resampling is mostly pooling."""
    model = Tokenizer3D.from_config({"ch": 8, "num_res_blocks": 1})
    state = model.state_dict()
    zero = [key for key in state if "_temporal" in key and ".block." in key and ".conv2.conv." in key]
    assert zero and all(not state[key].any() for key in zero)
    assert all(state[key].item() == 2.0 for key in state if key.endswith("mix_factor"))


def test_the_originals_tiling_settings_are_taken_with_one_warning(caplog, monkeypatch):
    monkeypatch.setattr("tokenizer3d.model.TilingSwitch.told", False)
    model = Tokenizer3D.from_config({"ch": 8, "num_res_blocks": 1, "use_tiling": True, "t_chunk_enc": 8})
    model.use_overlap = True
    assert (model.use_tiling, model.t_chunk_enc, model.use_overlap, tiny().use_tiling) == (True, 8, True, False)
    assert sum("no effect" in record.message for record in caplog.records) == 1


def test_import_and_building_need_nothing_large():
    """Neither the network nor Lightning, torchvision or decord; the names alone do not even need torch."""
    code = (
        "import sys, socket; socket.socket.connect = None\n"
        "import tokenizer3d, tokenizer3d.config\n"
        "assert 'torch' not in sys.modules\n"
        "tokenizer3d.Tokenizer3D.from_config({'ch': 8})\n"
        "unwanted = {'torchvision', 'lightning', 'pytorch_lightning', 'decord', 'lpips', 'av'} & set(sys.modules)\n"
        "assert not unwanted, unwanted\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
