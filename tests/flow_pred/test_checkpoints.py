"""Files: original checkpoints in all forms, our own runs, and what is refused."""

import pytest
import torch
import yaml

from flow_pred.checkpoints import read_weights
from flow_pred.config import load_config, parse_config, plain_config
from flow_pred.files import default_run, load_component, load_neural_sde, load_river
from flow_pred.latents import LatentSpace
from flow_pred.train import build_recipe, prepare, write_final
from tests.flow_pred.tiny import RandomClips, tiny_recipe, tiny_values
from training import TrainSettings, train
from videodata.errors import UserError

VQVAE = {
    "type": "ours",
    "encoder": {"in_channels": 3, "out_channels": 3, "width": 2},
    "decoder": {"in_channels": 3, "out_channels": 3, "width": 2},
    "vector_quantizer": {"num_embeddings": 8, "embedding_dimension": 3},
}
LDM_VQ = {
    "type": "ldm-vq",
    "ddconfig": {
        "double_z": False, "z_channels": 3, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    "n_embed": 8,
    "embed_dim": 3,
}  # fmt: skip
AUTOENCODERS = {"ours": VQVAE, "ldm-vq": LDM_VQ}


def trained(tmp_path, func: str):
    """A finished run folder with its final file."""
    recipe = tiny_recipe(func)
    config = parse_config(tiny_values(func))
    settings = TrainSettings(run_dir=tmp_path / func, steps=1, batch_size=2, device="cpu")
    train(recipe, RandomClips(), settings, plain_config(config))
    return tmp_path / func, write_final(tmp_path / func, recipe, config, 1), recipe


def config_file(tmp_path, func: str, **model):
    path = tmp_path / f"tiny_{func}.yaml"
    path.write_text(yaml.safe_dump(tiny_values(func, **model)))
    return path


def original(tmp_path, func: str, prefix: str, kind: str = "ours"):
    """A file as the original writes it: everything in one state dict, the autoencoder inside."""
    from flow_pred import build_autoencoder

    recipe, autoencoder = tiny_recipe(func), build_autoencoder(AUTOENCODERS[kind])
    inside = {"ours": "ae.backbone.", "ldm-vq": "ae."}[kind]
    state = {f"vector_field_regressor.{key}": value for key, value in recipe.networks["regressor"].state_dict().items()}
    state |= {inside + key: value for key, value in autoencoder.state_dict().items()}
    path = tmp_path / f"step_{func}.pth"
    content = {"model": {prefix + key: value for key, value in state.items()}, "global_step": 7, "optimizer": {}}
    torch.save(content, path)
    return path, recipe.networks["regressor"], autoencoder


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["ours", "ldm-vq"])
def test_original_files_load_with_their_autoencoder_inside(tmp_path, prefix, kind):
    """With and without the prefix of distributed training; the network and the autoencoder give the same values.

    The autoencoder's own file is not needed, even where the configuration names one.
    """
    path, network, autoencoder = original(tmp_path, "river", prefix, kind)
    config = config_file(tmp_path, "river", autoencoder={**AUTOENCODERS[kind], "ckpt_path": "absent.ckpt"})
    predictor, _ = load_river(str(path), str(config), torch.device("cpu"))
    for key, value in network.state_dict().items():
        assert torch.equal(predictor.regressor.state_dict()[key], value)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(predictor.autoencoder.encode(images), autoencoder.encode(images))
    assert predictor.predict(torch.rand(1, 3, 2, 32, 32), 1, steps=1).shape == (1, 3, 3, 32, 32)


def test_a_file_of_another_network_is_refused_with_the_keys_that_miss(tmp_path):
    """A wrong file never loads in part, and a file without configuration asks for one."""
    path, _, _ = original(tmp_path, "river", "module.")
    state = torch.load(path, weights_only=True)
    state["model"].pop("module.vector_field_regressor.project_in.1.weight")
    torch.save(state, path)
    with pytest.raises(UserError, match=r"missing: project_in\.1\.weight"):
        load_river(str(path), str(config_file(tmp_path, "river", autoencoder=VQVAE)), torch.device("cpu"))
    with pytest.raises(UserError, match="configuration file"):
        load_component(path, None, "river")
    with pytest.raises(UserError, match="not of component f"):
        load_component(trained(tmp_path, "d")[0], None, "f")
    with pytest.raises(UserError, match="f_ckpt_path"):
        prepare(parse_config(tiny_values("g")), tmp_path, 0)


def test_our_runs_and_their_final_files_hold_the_same_networks(tmp_path):
    """Run folder, final_step file, and the documented path where only the run folder exists."""
    folder, final, recipe = trained(tmp_path, "f_nll")
    expected = recipe.networks["regressor"].state_dict()
    config = config_file(tmp_path, "f_nll")
    for path in (folder, final, folder / "checkpoints" / "final_step_300000.pth"):
        state = load_component(path, config, "f").network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize("func", ["river", "f_nll"])
def test_a_training_starts_from_another_ones_weights(func, tmp_path):
    """Of the same sizes and role; anything else is refused in one line."""
    folder, _, recipe = trained(tmp_path, func)
    space = LatentSpace(tiny_recipe("d").latent_space.autoencoder)
    started = build_recipe(parse_config(tiny_values(func, start_from=str(folder))), space).networks["regressor"]
    expected = recipe.networks["regressor"].state_dict()
    assert all(torch.equal(started.state_dict()[key], value) for key, value in expected.items())
    assert all(parameter.requires_grad for parameter in started.parameters()) and started.training
    with pytest.raises(UserError, match="not of component d"):
        build_recipe(parse_config(tiny_values("d", start_from=str(folder))), space)


def test_a_diffusion_run_and_its_file_carry_flow_and_denoiser(tmp_path):
    """g is trained on a stored flow; its final file holds f and d; all three make a sampler."""
    flow, denoiser = trained(tmp_path, "f_nll")[0], trained(tmp_path, "d")[0]
    config = parse_config(tiny_values("g", f_ckpt_path=str(flow), d_ckpt_path=str(denoiser)))
    recipe = build_recipe(config, LatentSpace(tiny_recipe("d").latent_space.autoencoder))
    run_dir = tmp_path / "g"
    train(
        recipe, RandomClips(), TrainSettings(run_dir=run_dir, steps=1, batch_size=2, device="cpu"), plain_config(config)
    )
    stored = read_weights(write_final(run_dir, recipe, config, 1))
    assert set(stored.networks) == {"regressor", "flow", "denoiser"}
    files = {"f": (str(flow), None), "d": (str(denoiser), None), "g": (str(run_dir), None)}
    sde, _ = load_neural_sde(files, torch.device("cpu"))
    assert sde.predict(RandomClips()[0][None, :, :2], 2).shape == (1, 3, 4, 4, 4)


def test_components_of_other_latents_are_refused(tmp_path):
    """A diffusion over a flow that was trained with another normalisation is an error."""
    flow, _, _ = trained(tmp_path, "f_nll")
    config = parse_config(tiny_values("g", f_ckpt_path=str(flow), latent_mean=[1.0] * 3, latent_std=[2.0] * 3))
    with pytest.raises(UserError, match="latent_mean"):
        build_recipe(config, LatentSpace(tiny_recipe("d").latent_space.autoencoder))


def test_configurations_are_checked_and_null_means_nll(tmp_path):
    """Keys that nobody reads pass, unknown ones are named, impossible values are refused."""
    path = config_file(tmp_path, "f_nll").rename(tmp_path / "tiny_f-01-nll.yaml")
    config, _ = load_config(tmp_path / "tiny_f-01-null.yaml")
    assert config.model.func == "f_nll"
    assert default_run("tiny", path).as_posix() == "runs/tiny_run-f-01-nll"
    values = tiny_values("f_nll")
    values["training"]["num_epochs"] = 7
    values["model"]["vector_field_regressor"]["type"] = "vit"
    assert parse_config(values).training.num_observations == 5
    for part, key, value, message in (
        ("model", "func", "h", "model.func"),
        ("model", "noise_stdd", 0.1, "noise_std"),
        ("training", "num_observations", 2, "at least 3"),
        ("data", "frames_per_sample", 3, "frames_per_sample"),
    ):
        broken = tiny_values("f_nll")
        broken[part][key] = value
        with pytest.raises(UserError, match=message):
            parse_config(broken)


def test_every_shipped_configuration_is_valid():
    """All files of configs/flow_pred parse, and their run folders are those that the diffusion's paths name."""
    from tests.conftest import ROOT

    files = sorted((ROOT / "configs" / "flow_pred").glob("*.yaml"))
    assert len(files) >= 12
    for path in files:
        config, _ = load_config(path)
        assert path.stem.startswith(config.name + "_")
        for part in (config.model.f_ckpt_path, config.model.d_ckpt_path):
            if part:
                run_name = part.split("/")[1].removeprefix(f"{config.name}_run-")
                assert (path.parent / f"{config.name}_{run_name}.yaml").is_file(), part
