"""Published files load strictly by their own keys, and ours can be written in their layout."""

import pytest
import torch

from lvt.files import load_transformer, load_vqvae, original_groups, read_weights, write_original
from lvt.transformer import VideoTransformer, drop_recomputable
from lvt.vqvae import VQVAE
from videodata.errors import UserError


@pytest.mark.parametrize("name", ["vt_dsf", "vt_dsf_nc1_sharep", "vt_share_embeddings", "vt_class"])
def test_published_transformer_files_go_in_and_out(load_fixture, tmp_path, name):
    """A file with index tables and non-zero masked taps loads strictly; the export has the same keys and values."""
    fixture = load_fixture(name)
    state = fixture.below("state/")
    assert state["decoder.conv.conv.weight"][:, :, -1, -1, 1:].abs().min() > 0
    torch.save({"model": state, "iteration": 7}, tmp_path / "model_final.pth")
    model = load_transformer(VideoTransformer(fixture.config["VT"]), tmp_path / "model_final.pth")
    write_original(tmp_path / "out", original_groups(model), 7, "model_0000007")
    written = torch.load(tmp_path / "out" / "netG" / "model_0000007.pth", weights_only=True)
    assert written["iteration"] == 7
    assert written["model"].keys() == state.keys()
    for key in drop_recomputable(state):
        assert torch.equal(written["model"][key], state[key]), key
    assert read_weights(tmp_path / "out" / "netG", "transformer").keys() == state.keys()


@pytest.mark.parametrize("name", ["vqvae_dvq4", "vqvae_vq1", "vqvae_vq1_noema"])
def test_published_vqvae_files_go_in_and_out(load_fixture, tmp_path, name):
    """Encoder, decoder and codebooks in three files, with and without the prefix of several codebooks."""
    fixture = load_fixture(name)
    groups = {group: fixture.below(f"state/{group}/") for group in ("netE", "netG", "netC")}
    write_original(tmp_path, groups, 0, "model_final")
    paths = {group: tmp_path / group / "model_final.pth" for group in groups}
    model = load_vqvae(VQVAE(fixture.config), paths)
    assert torch.equal(model.encode(fixture["in/images_u8"]), fixture["out/codes"])
    for group, weights in model.original_state().items():
        assert weights.keys() == groups[group].keys()


def test_what_does_not_fit_is_named(load_fixture, tmp_path):
    """Missing and unexpected keys, missing files and files of something else are one line; nothing is loaded."""
    fixture = load_fixture("vt_class")
    state, path = fixture.below("state/"), tmp_path / "file.pth"
    model = VideoTransformer(fixture.config["VT"])
    state["stranger"] = state.pop("encoder.conv.bias")
    torch.save({"model": state, "iteration": 0}, path)
    with pytest.raises(UserError, match="missing: encoder.conv.bias; unexpected: stranger"):
        load_transformer(model, path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state dict"):
        load_transformer(model, path)
    with pytest.raises(UserError, match="no such weights"):
        load_transformer(model, tmp_path / "absent.pth")
    torch.save({"model": load_fixture("vqvae_vq1").below("state/netE/"), "iteration": 0}, path)
    with pytest.raises(UserError, match=r"set MODEL.GENERATOR.WEIGHTS"):
        load_vqvae(VQVAE(load_fixture("vqvae_vq1").config), {"netE": path})
