"""The parity fixtures as models and tensors; the tests of several files need them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tokenizer3d import Tokenizer3D

CASES = {
    "kl_causal_488": ("t1", "t5", "t17", "t6", "t16"),
    "fsq_causal_488": ("t1", "t5", "t17"),
    "kl_noncausal_488": ("t16", "t8", "t7"),
    "kl_causal_488_v1_1": ("t1", "t5", "t17", "t33", "t6", "t16"),
    "fsq_causal_888_v1_1": ("t1", "t17", "t5"),
}
LATENT_ERROR, FRAME_ERROR = 5e-5, 3e-4  # largest that the arithmetic of another machine may make


def io_of(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Inputs and outputs of a fixture, and its metadata."""
    path = folder / "tokenizer3d" / f"{name}_io.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def config_of(metadata: dict[str, str]) -> dict:
    """The configuration that the metadata of a fixture holds."""
    return {
        "version": metadata["version"],
        "causal": json.loads(metadata["causal"].lower()),
        "regularizer": metadata["regularizer"],
        "encoder_params": json.loads(metadata["encoder_params"]),
        "regularizer_params": json.loads(metadata["regularizer_params"]),
    }


def load(name: str, folder: Path, **changes: object) -> tuple[Tokenizer3D, dict[str, Tensor]]:
    """The model of a fixture with its weights, in eval mode, and the fixture's tensors."""
    stored, metadata = io_of(name, folder)
    model = Tokenizer3D.from_config({**config_of(metadata), **changes})
    model.load_state_dict(load_file(folder / "tokenizer3d" / f"{name}_weights.safetensors"), strict=True)
    return model.eval(), stored


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference; of different shapes it has none."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return (a - b).abs().max().item()


def errors(model: Tokenizer3D, stored: dict[str, Tensor], case: str) -> tuple[float, float]:
    """Largest difference of the latents and of the frames of a case; the tokens must be equal."""
    found = model.encode(stored[f"{case}.x"], length_mode="original")
    if model.codebook_size:
        assert torch.equal(found.indices, stored[f"{case}.indices"])
        assert torch.equal(found.codes, stored[f"{case}.codes"])
        latent, z = largest(found.pre, stored[f"{case}.pre"]), stored[f"{case}.codes"]
    else:
        latent = max(largest(found.mean, stored[f"{case}.mean"]), largest(found.logvar, stored[f"{case}.logvar"]))
        torch.testing.assert_close(
            found.kl().mean().reshape(1), stored[f"{case}.kl_loss"].reshape(1), rtol=1e-4, atol=0
        )
        z = stored[f"{case}.mean"]
    return latent, largest(model.decode(z, length_mode="original"), stored[f"{case}.dec"])
