"""The network against results of the published code, for all fixtures; and what must not be equal."""

import hashlib
import zlib

import numpy as np
import pytest
import torch

from tests.tokenizer3d.parity import CASES, FRAME_ERROR, LATENT_ERROR, config_of, errors, io_of, largest, load
from tokenizer3d import Tokenizer3D
from tokenizer3d.blocks import Norm


@pytest.mark.parametrize("gradients", [True, False], ids=["whole", "in_steps"])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_latents_tokens_and_frames_are_those_of_the_published_code(name, case, gradients, fixtures):
    """Both as a training computes them and as an inference does."""
    model, stored = load(name, fixtures)
    with torch.set_grad_enabled(gradients):
        latent, frame = errors(model, stored, case)
    assert latent < LATENT_ERROR and frame < FRAME_ERROR


@pytest.mark.parametrize("name", ["fsq_causal_488", "fsq_causal_888_v1_1"])
def test_the_auxiliary_loss_is_that_of_the_published_code(name, fixtures):
    model, stored = load(name, fixtures)
    values = {key.split(".")[0]: value for key, value in stored.items() if key.endswith("aux_loss")}
    assert values
    for case, expected in values.items():
        for step, value in zip((0, 1000, 2000, 100_000), expected, strict=True):
            found = model.quantizer.auxiliary_loss(stored[f"{case}.pre"], step)
            torch.testing.assert_close(found, value, rtol=1e-4, atol=0)


def test_the_tolerance_sees_another_epsilon(fixtures):
    """LayerNorm's usual 1e-5 gives other frames than the published 1e-6."""
    model, stored = load("kl_causal_488", fixtures)
    for module in model.modules():
        if isinstance(module, Norm):
            module.norm.eps = 1e-5
    latent, frame = errors(model, stored, "t5")
    assert latent > LATENT_ERROR and frame > FRAME_ERROR


def test_the_version_is_no_matter_of_taste(fixtures):
    """Weights of 1.0 under the rules of 1.1 load, and are wrong."""
    model, stored = load("kl_causal_488", fixtures, version="1.1")
    found = model.encode(stored["t5.x"])
    assert largest(found.mean, stored["t5.mean"]) > 0.1


@pytest.mark.parametrize("name", ["kl_causal_488", "kl_noncausal_488", "kl_causal_488_v1_1"])
def test_a_sample_is_the_mean_and_scaled_noise(name, fixtures):
    model, stored = load(name, fixtures)
    case = next(key.split(".")[0] for key in stored if key.endswith("dec_sample"))
    posterior = model.encode(stored[f"{case}.x"])
    z = posterior.sample(noise=stored[f"{case}.noise"])
    assert largest(model.decode(z, length_mode="original"), stored[f"{case}.dec_sample"]) < FRAME_ERROR


def recipe(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The weights that the fixtures' README describes."""
    state = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    values = 2.0 * state.random_sample(int(np.prod(shape, dtype=np.int64))) - 1.0
    if key.endswith("mix_factor"):
        values = 0.4 + values
    elif len(shape) >= 2:
        values = values * np.sqrt(3.0 / np.prod(shape[1:], dtype=np.int64))
    elif key.endswith(".weight"):
        values = 1.0 + 0.25 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


@pytest.mark.exhaustive
def test_the_full_width_is_that_of_the_published_code(fixtures):
    """The 157 million parameters of kl_causal_488_4chn, by recipe."""
    stored, metadata = io_of("full_kl_causal_488_4chn", fixtures)
    model = Tokenizer3D.from_config(config_of(metadata)).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: recipe(key, shape, int(metadata["seed"])) for key, shape in shapes.items()}
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(weights[key].numpy().tobytes())
    assert digest.hexdigest() == metadata["sha256"]
    model.load_state_dict(weights)
    with torch.no_grad():
        latent, frame = errors(model, stored, "t5")
    assert latent < LATENT_ERROR and frame < FRAME_ERROR
