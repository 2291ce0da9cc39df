"""Any autoencoder under any predictor: one key of the configuration chooses, training and prediction do the rest."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from flow_pred import build_autoencoder
from tests.conftest import ROOT
from tests.flow_pred.tiny import tiny_values
from videodata.errors import UserError

SIZE = 16
LDM = {
    "double_z": False, "z_channels": 2, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
SETTINGS = {
    "encoder": {"in_channels": 3, "out_channels": 4, "width": 4, "levels": 2},
    "decoder": {"in_channels": 4, "out_channels": 3, "width": 4, "levels": 2},
    "vector_quantizer": {"num_embeddings": 16, "embedding_dimension": 4},
    "ddconfig": LDM,
    "n_embed": 16,
    "embed_dim": 2,
    "hidden_dims": [8, 16],
    "latent_dim": 4,
    "num_embeddings": 16,
    "downsample_factor": 2,
    "config": str(ROOT / "vvae" / "configs" / "config_tiny.yaml"),
}  # of all types; each reads its own
LATENTS = {"ours": (4, 4, 4), "ldm-vq": (2, 8, 8), "vqgan": (4, 8, 8), "vvae": (16, 2, 2)}


def command(script: str, *arguments: object) -> None:
    """What `python scripts/<script> <arguments>` does."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "scripts" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def stored_autoencoder(kind: str, folder: Path) -> Path:
    """The file of an autoencoder as its own training or its publisher writes it."""
    from vqgan.files import model_config, save_model

    torch.manual_seed(0)
    autoencoder, path = build_autoencoder({"type": kind, **SETTINGS}), folder / f"{kind}.ckpt"
    if kind == "vqgan":
        save_model(path, autoencoder.model, config={"model": model_config(autoencoder.model)})
    else:
        weights = autoencoder.model.state_dict() if kind == "vvae" else autoencoder.state_dict()
        torch.save({"model" if kind == "ours" else "state_dict": weights}, path)
    return path


def write_config(folder: Path, func: str) -> Path:
    """A configuration with the settings of all autoencoders; `model.autoencoder.type` chooses one."""
    values = tiny_values(func, latent_mean="auto", latent_std="auto")
    values["data"] |= {"data_root": f"shapes:10,frames=6,size={SIZE}", "input_size": SIZE, "crop_size": SIZE}
    values["model"]["autoencoder"] = {"type": "ours", "ckpt_path": None, **SETTINGS}
    values["training"]["optimizer"]["num_training_steps"] = 2
    path = folder / f"tiny_{func}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize(("func", "flag"), [("river", "--ckpt"), ("f_nll", "--ckpt-f")], ids=["river", "sde"])
def test_each_predictor_trains_and_predicts_on_the_latents_of_each_autoencoder(tmp_path, kind, func, flag):
    """Two steps of training over stored autoencoder weights, then predictions with scores, all by the commands."""
    channels, *resolution = LATENTS[kind]
    path = stored_autoencoder(kind, tmp_path)
    command(
        "train_flow_pred.py", "--config", write_config(tmp_path, func), "--run-name", kind, "--runs", tmp_path,
        "--num-gpus", 0, "--vqvae-path", path, f"model.autoencoder.type={kind}",
        f"model.vector_field_regressor.state_size={channels}", f"model.vector_field_regressor.state_res={resolution}",
    )  # fmt: skip
    run_dir = tmp_path / f"tiny_run-{kind}"
    assert len(yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["latent_std"]) == channels
    command(
        "generate_flow_videos.py", flag, run_dir, "--context", 2, "--frames", 2, "--num-videos", 1, "--steps", 1,
        "--format", "npy", "--metrics", "--device", "cpu", "--out", tmp_path / "out",
    )  # fmt: skip
    scores = {
        score["name"]: score["mean"] for score in json.loads((tmp_path / "out/metrics.json").read_text())["scores"]
    }
    assert 0 < scores["PSNR"] < 60 and "PSNR last frame repeated" in scores


def test_latents_that_do_not_fit_the_network_are_refused_before_the_training(tmp_path):
    """One line with both shapes and the keys to set."""
    arguments = ["--run-name", "x", "--runs", tmp_path, "--num-gpus", 0, "model.autoencoder.type=vqgan"]
    with pytest.raises(UserError, match=r"latents are \(4, 8, 8\).*\(3, 4, 4\).*state_size and state_res"):
        command("train_flow_pred.py", "--config", write_config(tmp_path, "river"), *arguments)
    assert not (tmp_path / "tiny_run-x").exists()


def test_a_setting_that_no_autoencoder_has_is_named():
    """Settings of other types pass, typing errors do not."""
    assert build_autoencoder({"type": "identity", **SETTINGS}).encode(torch.ones(1)) == 1
    with pytest.raises(UserError, match="'encodr'; did you mean 'encoder'"):
        build_autoencoder({"type": "ours", **SETTINGS, "encodr": {}})


def test_the_stable_diffusion_autoencoder_says_what_it_needs(monkeypatch, tmp_path):
    """Without the package diffusers, and without the files: one line."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        build_autoencoder({"type": "sd-vae-ft-mse"})
    monkeypatch.undo()
    pytest.importorskip("diffusers", reason="the optional package diffusers is not installed")
    with pytest.raises(UserError, match="no such folder"):
        build_autoencoder({"type": "sd-vae-ft-mse", "ckpt_path": str(tmp_path / "absent")})


def test_the_stable_diffusion_autoencoder_is_the_packages(tmp_path):
    """A stored AutoencoderKL: latents are the posterior's mean, unscaled."""
    diffusers = pytest.importorskip("diffusers", reason="the optional package diffusers is not installed")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **blocks).eval()
    model.save_pretrained(tmp_path)
    autoencoder = build_autoencoder({"type": "sd-vae-ft-mse", "ckpt_path": str(tmp_path)})
    images = 2 * torch.rand(2, 3, 16, 16) - 1
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(latents, model.encode(images).latent_dist.mean)
        torch.testing.assert_close(autoencoder.decode(latents), model.decode(latents).sample)
