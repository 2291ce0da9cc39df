"""The VQ-VAE computes what the original computes: codes, frames, losses, codebook updates."""

import pytest
import torch
from torch.testing import assert_close

from lvt.vqvae import VQVAE

FILES = ["vqvae_dvq4", "vqvae_dvq4_seq", "vqvae_kdvq4", "vqvae_vq1", "vqvae_vq1_noema"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def build(fixture):
    groups = {name: fixture.below(f"state/{name}/") for name in ("netE", "netG", "netC")}
    return VQVAE(fixture.config).eval().load_original(groups), groups


@pytest.mark.parametrize("name", FILES)
def test_codes_and_frames_equal_the_original(load_fixture, name):
    """Layers of the encoder, codes exactly, looked-up vectors, decoded frames, mean squared error."""
    fixture = load_fixture(name)
    model, groups = build(fixture)
    images = fixture["in/images_u8"]
    x = model.normalize(images.flatten(0, -4))
    assert_close(x.view(images.shape), fixture["mid/x_normalized"], **CLOSE)
    with torch.no_grad():
        for number, layer in enumerate(model.encoder.layers):
            x = layer(x)
            if f"mid/enc_layer_{number}" in fixture:
                assert_close(x, fixture[f"mid/enc_layer_{number}"], **CLOSE)
    assert_close(x, fixture["mid/z_e"], **CLOSE)
    codes = model.encode(images)
    assert torch.equal(codes, fixture["out/codes"])
    flat = codes.flatten(0, 1) if images.ndim == 5 else codes
    assert_close(model.quantizer.look_up(flat), fixture["mid/z_q"], **CLOSE)
    decoded = model.decode(codes)
    assert_close(decoded, fixture["out/decoded"], **CLOSE)
    shown = ((model.denormalize(decoded.flatten(0, -4)) + 1) / 2).view(decoded.shape)
    assert_close(shown, fixture["out/inference_reconstruction"], **CLOSE)
    assert_close((shown - images / 255).square().mean()[None], fixture["out/eval_mse"], **CLOSE)
    written = model.original_state()
    assert {n: set(group) for n, group in written.items()} == {n: set(group) for n, group in groups.items()}
    assert all(torch.equal(written[n][key], value) for n, group in groups.items() for key, value in group.items())


@pytest.mark.parametrize("name", FILES)
def test_training_equals_the_original(load_fixture, name):
    """Losses, first gradients, codebooks after each of three Adam steps, final weights."""
    fixture = load_fixture(name)
    model, _ = build(fixture)
    solver = fixture.config["SOLVER"]
    optimizer = torch.optim.Adam(model.parameters(), solver["LR_G"], (solver["BETA1_G"], solver["BETA2_G"]))
    frames = model.normalize(fixture["in/images_u8"].flatten(0, -4))
    model.train()
    rows = []
    for step in range(3):
        terms = model.losses(frames, model(frames))
        total = sum(terms.values())
        zero = torch.zeros(())
        shares = [terms["reconstruction"], terms.get("codebook", zero), terms["commitment"], total]
        rows.append([share.item() for share in shares])
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            gradients = {f"netE/{key}": p.grad for key, p in model.encoder.named_parameters()}
            gradients |= {f"netG/{key}": p.grad for key, p in model.decoder.named_parameters()}
            gradients |= {f"netC/{key.removeprefix('ve.0.')}": p.grad for key, p in model.quantizer.named_parameters()}
            check(gradients, fixture.below("out/train/grad0/"))
        optimizer.step()
        codebooks = fixture.below(f"out/train/step{step}/")
        assert bool(codebooks) == model.config.codebook.ema
        check(model.quantizer.state_dict(), codebooks)
    assert_close(torch.tensor(rows).double(), fixture["out/train/losses"], **CLOSE)
    final = {f"{n}/{key}": value for n, group in model.original_state().items() for key, value in group.items()}
    check(final, fixture.below("out/train/final/"))


def check(actual, expected):
    for name, value in expected.items():
        assert_close(actual[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
