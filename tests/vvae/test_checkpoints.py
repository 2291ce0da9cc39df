"""Weights in and out of files: strict, readable, by the published keys, never as code."""

import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vvae.conftest import TINY, make_tiny
from vvae import AutoencoderKL2plus1D_1dcnn, CheckpointError, load_checkpoint
from vvae.src.errors import VVAEError


def same_weights(a, b) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[key]) for key, value in a.state_dict().items())


def blank(**settings) -> AutoencoderKL2plus1D_1dcnn:
    """A model of the tiny shape with other weights."""
    return AutoencoderKL2plus1D_1dcnn(**{**TINY, **settings})


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_is_written_is_read_back_under_the_published_keys(suffix, tmp_path):
    """Every bit comes back, the keys are the published ones, and the configuration is inferred from them."""
    model, path = make_tiny(), tmp_path / f"model{suffix}"
    model.save_checkpoint(path)
    keys = set(load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"])
    assert {"encoder.down.0.block.0.conv1_tmp.conv.weight", "decoder_temporal.conv_last.conv.bias"} <= keys
    assert same_weights(load_checkpoint(blank(), path), model)
    assert same_weights(AutoencoderKL2plus1D_1dcnn.from_single_file(path), model)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_groups_of_a_narrow_model_come_back_with_its_weights(tmp_path, video):
    """No shape tells how many there are; a model of the published number has no key for them."""
    assert "norm_groups" not in blank().state_dict()
    narrow = {"ddconfig": {**TINY["ddconfig"], "ch": 16, "ch_mult": [1, 1, 2, 3]}, "norm_groups": 4}
    model, path = make_tiny(**narrow), tmp_path / "model.safetensors"
    model.save_checkpoint(path)
    found = AutoencoderKL2plus1D_1dcnn.from_single_file(path).freeze()
    expected = model(video)[0]
    assert torch.equal(found(video)[0], expected)
    model.save_pretrained(tmp_path / "folder")
    assert torch.equal(AutoencoderKL2plus1D_1dcnn.from_pretrained(tmp_path / "folder").freeze()(video)[0], expected)
    with pytest.raises(VVAEError, match="ch 18: must be a multiple of 4"):
        blank(**{**narrow, "ddconfig": {**TINY["ddconfig"], "ch": 18}})


def test_a_training_checkpoint_of_the_original_loads(tmp_path):
    """Lightning and DeepSpeed containers, their prefixes, the loss's weights and unused branches are understood."""
    model = make_tiny(prune_unused=False)
    state = {**model.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(1)}
    files = {
        "lightning": {"epoch": 3, "global_step": 7, "state_dict": state, "optimizer_states": [{"state": {}}]},
        "deepspeed": {"module": {f"_forward_module.{key}": value for key, value in state.items()}},
        "wrapped": {f"module.model.{key}": value for key, value in state.items()},
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.ckpt"
        torch.save(content, path)
        pruned = load_checkpoint(blank(), path)
        assert same_weights(pruned, model)
        assert same_weights(load_checkpoint(blank(prune_unused=False), path), model)
        assert len(pruned.state_dict()) < len(model.state_dict())


def test_files_without_the_unused_branches_fill_a_complete_model(tmp_path):
    """Unused parameters may be missing; used ones may not."""
    model, path = make_tiny(), tmp_path / "pruned.safetensors"
    model.save_checkpoint(path)
    complete = load_checkpoint(blank(prune_unused=False), path)
    assert not complete.state_dict()["encoder.mid.block_1.conv3_tmp.conv.weight"].any()
    state = load_file(path)
    del state["encoder.conv_in.bias"]
    save_file({**state, "stranger": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"(?s)do not fit.*missing: encoder.conv_in.bias.*unexpected: stranger"):
        load_checkpoint(blank(), path)


def test_another_variant_is_named(tmp_path):
    """A 4-channel file for a 16-channel configuration says which of both it is."""
    make_tiny().save_checkpoint(tmp_path / "four.safetensors")
    sixteen = blank(ddconfig={**TINY["ddconfig"], "z_channels": 16}, ppconfig={"ch": 16, "hidden_channel": 32})
    with pytest.raises(CheckpointError, match="the file holds a 4z model, the configuration describes 16z"):
        load_checkpoint(sixteen, tmp_path / "four.safetensors")


def test_files_that_could_run_code_or_are_no_checkpoints_are_refused(tmp_path):
    """Pickles with other objects are not opened; damaged and missing files are one line."""
    torch.save({"state_dict": {}, "callbacks": pickle.PickleError}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="could run code; it is not opened"):
        load_checkpoint(make_tiny(), tmp_path / "evil.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name in ("torn.ckpt", "torn.safetensors", "none.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(make_tiny(), tmp_path / name)


def test_save_pretrained_keeps_settings_and_statistics(tmp_path):
    """A folder holds configuration, scaling and weights, and gives the same model back."""
    model = make_tiny()
    model.config.latents_mean, model.config.latents_std = [0.5] * 4, [2.0] * 4
    model.save_pretrained(tmp_path / "model")
    loaded = AutoencoderKL2plus1D_1dcnn.from_pretrained(tmp_path / "model")
    assert same_weights(loaded, model) and loaded.config == model.config
    latent = torch.randn(1, 4, 2, 3, 3)
    assert torch.equal(loaded.scale_latent(latent), (latent - 0.5) / 2)
    torch.testing.assert_close(loaded.unscale_latent(loaded.scale_latent(latent)), latent)
    with pytest.raises(ValueError, match="no such file; save_pretrained writes it"):
        AutoencoderKL2plus1D_1dcnn.from_pretrained(tmp_path)


def test_a_missing_checkpoint_is_a_warning_or_an_error(tmp_path, caplog):
    """Without the file of a configuration the weights are random, loudly; strict_ckpt makes that an error."""
    with caplog.at_level(logging.WARNING):
        blank(ckpt_path="ckpt/absent.ckpt")
    assert "THE WEIGHTS ARE RANDOM" in caplog.text
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        blank(ckpt_path="ckpt/absent.ckpt", strict_ckpt=True)


def test_an_image_autoencoder_is_reproduced_frame_by_frame(tmp_path):
    """Warm start: 2D weights get a time axis, and with fresh temporal layers each frame is treated alone."""
    source = make_tiny()
    image = {
        f"first_stage_model.{key}": value.squeeze(2) if value.dim() == 5 and value.shape[2] == 1 else value
        for key, value in source.state_dict().items()
        if key.startswith(("encoder.", "decoder.")) and "_tmp" not in key
    }
    torch.save({"state_dict": image}, tmp_path / "sd.ckpt")
    model = blank(ckpt_path_2d=tmp_path / "sd.ckpt").freeze()
    video = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    spatial = model.encoder.spatial_moments(video[:, :, 1:2])
    torch.testing.assert_close(
        spatial, source.encoder.spatial_moments(video[:, :, 1:2], temporal=False), atol=1e-5, rtol=0
    )
    still = video[:, :, :1].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(
        model.encoder.spatial_moments(still)[:, :, 2:3],
        model.encoder.spatial_moments(still[:, :, :1]),
        atol=1e-4,
        rtol=0,
    )
