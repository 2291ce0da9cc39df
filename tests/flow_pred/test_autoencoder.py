"""Autoencoders: parity with the original, one interface for all types, and files that do not fit."""

import pytest
import torch

from flow_pred import build_autoencoder
from flow_pred.autoencoder import SimpleVQVAE
from tests.conftest import ROOT
from tests.flow_pred.fixture_files import Fixture, key_list, shapes_of
from tests.flow_pred.weight_rule import fill_by_rule
from videodata.errors import UserError

TINY = {
    "type": "ours",
    "encoder": {"in_channels": 3, "out_channels": 4, "width": 4},
    "decoder": {"in_channels": 4, "out_channels": 3, "width": 4},
    "vector_quantizer": {"num_embeddings": 16, "embedding_dimension": 4},
}


def test_the_simple_vqvae_equals_the_original(fixtures):
    """Keys, latents, ids, codes, reconstructions from latents, ids and one-hot ids, and the quantiser's loss."""
    fixture = Fixture(fixtures, "ours_vqvae")
    model = SimpleVQVAE(**fixture.metadata["config"])
    assert shapes_of(model) == key_list(fixtures, "ours_vqvae")
    fill_by_rule(model, fixture.metadata["weight_rule_seed"])
    state = model.eval().state_dict()
    for key, values in fixture.under("check.").items():
        assert torch.equal(state[key].flatten()[: len(values)], values)
    with torch.no_grad():
        latents = model.encode(fixture["in.images"])
        torch.testing.assert_close(latents, fixture["out.latents"], atol=2e-4, rtol=0)
        codes, ids = model.quantize(latents)
        assert torch.equal(ids, fixture["out.ids"])
        torch.testing.assert_close(codes, fixture["out.quantised"], atol=2e-4, rtol=0)
        torch.testing.assert_close(model.decode(latents), fixture["out.decode_from_latents"], atol=2e-4, rtol=0)
        one_hot = torch.nn.functional.one_hot(ids, 8192).float()
        for form in (ids, one_hot):
            torch.testing.assert_close(model.decode(form), fixture["out.decode_from_ids"], atol=2e-4, rtol=0)
        reconstruction, before, loss = model(fixture["in.images"])
        assert torch.equal(before, latents)
        torch.testing.assert_close(reconstruction, fixture["out.reconstructed"], atol=2e-4, rtol=0)
        torch.testing.assert_close(loss.mean(), fixture["out.vq_loss"][0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["f8_small", "f8", "f16"])
def test_the_published_vqgans_have_the_published_keys(fixtures, name):
    """Keys and shapes of the official sizes through build_autoencoder; tests/vqgan checks what they compute."""
    with torch.device("meta"):
        model = build_autoencoder({"type": "ldm-vq", "config": name})
    assert shapes_of(model) == key_list(fixtures, f"taming_{name}")


VQGAN = {"hidden_dims": [8, 16], "latent_dim": 4, "num_embeddings": 16, "downsample_factor": 2}
OTHERS = {
    "vqgan": ({"type": "vqgan", **VQGAN}, (4, 16, 16)),
    "vvae": ({"type": "vvae", "config": str(ROOT / "vvae" / "configs" / "config_tiny.yaml")}, (16, 4, 4)),
    "identity": ({"type": "identity"}, (3, 32, 32)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_type_encodes_and_decodes_frame_by_frame(kind):
    """Latents of the documented shape, images back, and no frame depends on its neighbours in the batch."""
    config, shape = OTHERS[kind]
    torch.manual_seed(0)
    autoencoder = build_autoencoder(config)
    images = 2 * torch.rand(3, 3, 32, 32) - 1
    latents = autoencoder.encode(images)
    assert latents.shape == (3, *shape) and autoencoder.decode(latents).shape == images.shape
    torch.testing.assert_close(autoencoder.encode(images[1:2]), latents[1:2], atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    if kind != "identity":
        with pytest.raises(UserError, match="absent"):
            build_autoencoder({**config, "ckpt_path": "absent.ckpt"})


def test_a_trained_vqgan_is_named_by_its_file_alone(tmp_path):
    """The file knows its configuration."""
    from vqgan import VQGAN as Model
    from vqgan.files import model_config, save_model

    model = Model(**VQGAN).eval()
    save_model(tmp_path / "best.pt", model, config={"model": model_config(model)})
    loaded = build_autoencoder({"type": "vqgan", "ckpt_path": str(tmp_path / "best.pt")})
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded.encode(images), model.latents(images))
    torch.testing.assert_close(loaded.decode(loaded.encode(images)), model.decode(model.encode(images)[0]))


def saved(tmp_path, form: str):
    """A file of the tiny VQVAE in one of the forms that exist."""
    model = build_autoencoder(TINY)
    state = model.state_dict()
    forms = {
        "plain": {"model": state},
        "distributed": {"model": {f"module.{key}": value for key, value in state.items()}},
        "inside a video model": {
            "model": {f"module.ae.backbone.{key}": value for key, value in state.items()}
            | {"module.vector_field_regressor.project_in.1.bias": torch.zeros(3)},
            "global_step": 3,
        },
    }
    torch.save(forms[form], tmp_path / "weights.pth")
    return model, tmp_path / "weights.pth"


@pytest.mark.parametrize("form", ["plain", "distributed", "inside a video model"])
def test_original_autoencoder_files_load_in_all_their_forms(tmp_path, form):
    """With and without `module.`, alone and inside a video model."""
    model, path = saved(tmp_path, form)
    loaded = build_autoencoder({**TINY, "ckpt_path": str(path)})
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert loaded.encode(images).shape == (1, 4, 2, 2)
    assert loaded.decode(loaded.encode(images)).shape == images.shape


def test_files_that_do_not_fit_are_reported_and_nothing_is_loaded(tmp_path):
    """Missing keys, an absent file, unknown types and sizes: one line each."""
    _, path = saved(tmp_path, "plain")
    state = torch.load(path, weights_only=True)
    state["model"].pop("encoder.conv_in.bias")
    torch.save(state, path)
    with pytest.raises(UserError, match=r"missing: encoder\.conv_in\.bias"):
        build_autoencoder({**TINY, "ckpt_path": str(path)})
    with pytest.raises(UserError, match=r"train_flow_autoencoder\.py"):
        build_autoencoder({**TINY, "ckpt_path": str(tmp_path / "absent.pth")})
    with pytest.raises(UserError, match="did you mean 'ours'"):
        build_autoencoder({"type": "our"})
    with pytest.raises(UserError, match="f8_small"):
        build_autoencoder({"type": "ldm-vq", "config": "f8_smal"})


def test_space_to_depth_and_no_codebook_shrink_the_work_and_keep_the_shapes():
    """Latents and images have the sizes that the settings say; nothing is quantised; the noise is what is added."""
    settings = {**TINY, "space_to_depth": 2, "quantize": False}
    settings["encoder"] = settings["encoder"] | {"levels": 1}
    settings["decoder"] = settings["decoder"] | {"levels": 1}
    model = build_autoencoder(settings)
    images = torch.randn(2, 3, 16, 8)
    with torch.no_grad():
        latents = model.encode(images)
        assert latents.shape == (2, *model.latent_shape(16, 8)) == (2, 4, 4, 2)
        decoded = model.decode(latents)
        assert decoded.shape == images.shape and not any("quantizer" in key for key in model.state_dict())
        assert not torch.equal(model.decode(latents + 1e-3), decoded)
        noise = torch.randn(2, 4, 4, 2)
        spread = latents.flatten(1).std(1).view(-1, 1, 1, 1)
        torch.testing.assert_close(model(images, noise=noise)[0], model.decode(latents + spread * noise))
    with pytest.raises(UserError, match="quantize: false"):
        build_autoencoder({key: value for key, value in TINY.items() if key != "vector_quantizer"})
