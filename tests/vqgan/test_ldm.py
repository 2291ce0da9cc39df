"""The latent-diffusion architecture: published keys, values and files."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from videodata.errors import UserError
from vqgan import LDMVQModel
from vqgan.files import load_model, model_config, save_model

GOLDEN = 0x9E3779B97F4A7C15
TINY = {"z_channels": 4, "resolution": 32, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,)}


def by_rule(key: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """The weights that the fixtures' rule gives for a key: scaled splitmix64 of the key's hash and the index."""
    base = 0xCBF29CE484222325
    for byte in key.encode():
        base = ((base ^ byte) * 0x100000001B3) % 2**64
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64((base + (seed + 1) * GOLDEN) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        r = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) * 2 / 2**24 - 1
    if key.endswith("embedding.weight"):
        scaled = r
    elif len(shape) > 1:
        scaled = r * np.sqrt(3 / np.prod(shape[1:]))
    else:
        scaled = 1 + 0.1 * r if key.endswith("weight") else 0.1 * r
    return torch.from_numpy(scaled.astype(np.float32)).reshape(shape)


def load_fixture(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), json.loads(metadata["ddconfig"]), metadata


def test_small_model_reproduces_the_published_code(fixtures):
    """Latents, codes, both ways of decoding and the quantiser's loss are those of the published implementation."""
    stored, ddconfig, _ = load_fixture(fixtures / "flow_pred" / "taming_small.safetensors")
    model = LDMVQModel(ddconfig, ddconfig["n_embed"], ddconfig["embed_dim"]).eval()
    model.load_state_dict({key[3:]: value for key, value in stored.items() if key.startswith("sd.")})
    with torch.no_grad():
        latents = model.encode(stored["in.images"])
        codes, indices = model.quantize(latents)
        assert torch.equal(indices, stored["out.indices"])
        assert torch.allclose(latents, stored["out.latents"], atol=1e-4)
        assert torch.allclose(codes, stored["out.quantised"], atol=1e-5)
        assert torch.allclose(model.decode(latents), stored["out.decoded"], atol=1e-4)
        again = model.decode(codes, force_not_quantize=True)
        assert torch.allclose(again, stored["out.decoded_from_quantised"], atol=1e-4)
        assert torch.allclose(model.quantize.lookup(indices), stored["out.codebook_entry"], atol=1e-6)
        loss = model.quantize.loss(latents, codes)
        assert torch.allclose(loss, stored["out.commit_loss"][0], atol=1e-5)
        assert torch.equal(model.decode_indices(indices), again)


@pytest.mark.parametrize("name", ["f8_small", "f8", "f16"])
def test_official_sizes_reproduce_the_published_code(fixtures, name):
    """Keys, shapes, latents, codes and decoded frames of the published configurations."""
    stored, _, metadata = load_fixture(fixtures / "flow_pred" / f"taming_{name}.safetensors")
    with torch.device("meta"):
        model = LDMVQModel.from_name(name)
    keys = json.loads((fixtures / "flow_pred" / f"keys_taming_{name}.json").read_text())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == keys
    seed = int(metadata["weight_rule_seed"])
    model.load_state_dict({key: by_rule(key, tuple(shape), seed) for key, shape in keys.items()}, assign=True)
    check = [key for key in stored if key.startswith("check.")]
    assert all(torch.equal(model.state_dict()[key[6:]].flatten()[:8], stored[key]) for key in check)
    with torch.no_grad():
        latents = model.eval().encode(stored["in.images"])
        codes, indices = model.quantize(latents)
        assert torch.equal(indices, stored["out.indices"])
        assert torch.allclose(latents, stored["out.latents"], atol=2e-4)
        assert torch.allclose(model.decode(codes, force_not_quantize=True), stored["out.decoded"], atol=2e-4)


def test_published_files_load_by_their_keys(tmp_path):
    """`state_dict` is found, `loss.*` is ignored, and a missing key is an error that names it and changes nothing."""
    torch.manual_seed(0)
    source, target = LDMVQModel(TINY, 16, 4), LDMVQModel(TINY, 16, 4)
    state = {**source.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "model.ckpt")
    target.load_published(tmp_path / "model.ckpt")
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    del state["quant_conv.weight"]
    torch.save({"state_dict": state}, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match="missing: quant_conv.weight"):
        target.load_published(tmp_path / "wrong.ckpt")


def test_our_file_of_an_ldm_model_is_a_published_file(tmp_path):
    """What we write for an LDM model loads as ours, with its configuration, and by the published reader."""
    torch.manual_seed(0)
    model = LDMVQModel(TINY, 16, 4)
    save_model(tmp_path / "best_model_gan.pt", model, config={"model": model_config(model)})
    loaded = load_model(tmp_path / "best_model_gan.pt")
    other = LDMVQModel(TINY, 16, 4)
    other.load_published(tmp_path / "best_model_gan.pt")
    for copy in (loaded, other):
        assert all(torch.equal(value, copy.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_file_with_code_in_it_is_refused(tmp_path):
    """A checkpoint that holds other objects than tensors gives one line of advice and runs nothing."""
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "callback": print}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="objects beside tensors"):
        LDMVQModel(TINY, 16, 4).load_published(tmp_path / "model.ckpt")


@pytest.mark.parametrize("change", [{"ch": 48}, {"double_z": True}, {"attn_resolution": (16,)}])
def test_impossible_configurations_are_one_line(change):
    """Unknown keys, widths that group norm cannot divide, and a variance are refused."""
    with pytest.raises(UserError):
        LDMVQModel({**TINY, **change}, 16, 4)


def test_a_position_has_a_code_of_its_own():
    """Changing all channels at one position changes the index of that position and of no other."""
    torch.manual_seed(0)
    model = LDMVQModel(TINY, 128, 4).eval()
    model.quantize.start(torch.randn(1024, 4), tokens=64)
    latents = torch.randn(1, 4, 8, 8)
    changed = latents.clone()
    changed[0, :, 5, 2] = -3 * latents[0, :, 5, 2]
    different = model.quantize(latents)[1] != model.quantize(changed)[1]
    assert different.nonzero().tolist() == [[0, 5, 2]]


def test_gradients_follow_the_paper():
    """The codebook term has weight 1 and the commitment term `commitment_cost` (VQ-VAE, equation 3)."""
    model = LDMVQModel(TINY, 16, 4, commitment_cost=0.25).train()
    vectors = torch.randn(1, 2, 2, 4, requires_grad=True)
    codes = torch.randn(1, 2, 2, 4, requires_grad=True)
    model.quantize.loss(vectors, codes).backward()
    difference = 2 * (codes - vectors).detach() / codes.numel()
    assert torch.allclose(codes.grad, difference)
    assert torch.allclose(vectors.grad, -0.25 * difference)
